//! Reads one request head from untrusted bytes.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use thiserror::Error;

/// Largest request head. Probes send some hundred bytes.
pub const MAX_HEAD_BYTES: usize = 8 * 1024;
/// Most header fields of a request.
const MAX_HEADERS: usize = 64;
/// Time for the whole head, however slowly it trickles in.
pub const HEAD_DEADLINE: Duration = Duration::from_secs(5);

/// The part of a request that the agent looks at.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `HEAD` and so on.
    pub method: String,
    /// The path without its query.
    pub path: String,
}

/// Why no request could be read.
#[derive(Debug, Error)]
pub enum RequestError {
    /// Not HTTP/1.
    #[error("the request is not valid HTTP/1: {0}")]
    Malformed(#[from] httparse::Error),
    /// More than the agent is willing to hold.
    #[error("the request head exceeds {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} fields")]
    TooLarge,
    /// The peer was too slow.
    #[error("the request head did not arrive within {HEAD_DEADLINE:?}")]
    TooSlow,
    /// The peer went away.
    #[error("the connection ended before the request: {0}")]
    Connection(#[from] io::Error),
}

/// A stream whose reads can be given a time limit.
pub trait TimedRead: Read {
    /// Limits the next read.
    fn limit_read(&self, limit: Duration) -> io::Result<()>;
}

impl TimedRead for std::net::TcpStream {
    fn limit_read(&self, limit: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(limit))
    }
}

/// Reads until the head is complete.
pub fn read_request(stream: &mut impl TimedRead) -> Result<Request, RequestError> {
    let started = Instant::now();
    let mut head = Vec::with_capacity(1024);
    let mut chunk = [0_u8; 1024];
    loop {
        let left = HEAD_DEADLINE.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Err(RequestError::TooSlow);
        }
        stream.limit_read(left)?;
        let count = match stream.read(&mut chunk) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if is_timeout(&error) => return Err(RequestError::TooSlow),
            Err(error) => return Err(error.into()),
        };
        head.extend_from_slice(chunk.get(..count).unwrap_or_default());
        if let Some(request) = parse(&head)? {
            return Ok(request);
        }
        if head.len() >= MAX_HEAD_BYTES {
            return Err(RequestError::TooLarge);
        }
    }
}

/// `None` while the head is incomplete.
fn parse(head: &[u8]) -> Result<Option<Request>, RequestError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(head) {
        Ok(httparse::Status::Partial) => Ok(None),
        Ok(httparse::Status::Complete(_)) => {
            let target = parsed.path.unwrap_or_default();
            let path = target.split_once('?').map_or(target, |(path, _)| path);
            Ok(Some(Request { method: parsed.method.unwrap_or_default().to_owned(), path: path.to_owned() }))
        }
        Err(httparse::Error::TooManyHeaders) => Err(RequestError::TooLarge),
        Err(error) => Err(error.into()),
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes one at a time, then behaves as told.
    struct Trickle<'a>(&'a [u8], Option<io::ErrorKind>);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.split_first() {
                Some((first, rest)) => {
                    buffer[0] = *first;
                    self.0 = rest;
                    Ok(1)
                }
                None => self.1.map_or(Ok(0), |kind| Err(kind.into())),
            }
        }
    }

    impl TimedRead for Trickle<'_> {
        fn limit_read(&self, _limit: Duration) -> io::Result<()> {
            Ok(())
        }
    }

    fn read(bytes: &[u8]) -> Result<Request, RequestError> {
        read_request(&mut Trickle(bytes, None))
    }

    #[test]
    fn a_head_may_arrive_in_pieces() {
        let request = read(b"GET /health?x=1 HTTP/1.1\r\nHost: vm\r\n\r\n").unwrap();
        assert_eq!(request.method, "GET");
        assert_eq!(request.path, "/health");
    }

    #[test]
    fn what_is_not_http_is_refused() {
        assert!(matches!(read(b"\x16\x03\x01\x02\x00"), Err(RequestError::Malformed(_))));
        assert!(matches!(read(b"GET /\r\n\r\n"), Err(RequestError::Malformed(_))));
    }

    #[test]
    fn an_endless_head_is_cut_off() {
        let mut bytes = b"GET / HTTP/1.1\r\nx: ".to_vec();
        bytes.resize(2 * MAX_HEAD_BYTES, b'a');
        assert!(matches!(read(&bytes), Err(RequestError::TooLarge)));
    }

    #[test]
    fn too_many_fields_are_refused() {
        let mut bytes = b"GET / HTTP/1.1\r\n".to_vec();
        for _ in 0..=MAX_HEADERS {
            bytes.extend_from_slice(b"a: b\r\n");
        }
        bytes.extend_from_slice(b"\r\n");
        assert!(matches!(read(&bytes), Err(RequestError::TooLarge)));
    }

    #[test]
    fn silence_and_a_closed_connection_are_told_apart() {
        let mut silent = Trickle(b"GET", Some(io::ErrorKind::WouldBlock));
        assert!(matches!(read_request(&mut silent), Err(RequestError::TooSlow)));
        assert!(matches!(read(b"GET"), Err(RequestError::Connection(_))));
    }
}
