//! The agent's parsers of bytes from outside, for the fuzzers: each panics where a promise is broken.
#![allow(clippy::expect_used, reason = "a broken promise ends the fuzzer; no product code calls this")]

use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use smoltcp::wire::EthernetAddress;

use crate::cmdline::Settings;
use crate::http::Routes;
use crate::http::request::{MAX_HEAD_BYTES, Request, RequestError, TimedRead, read_request};
use crate::http::route::answer_error;
use crate::net::message::{Client, Lease, Reply};
use crate::resume::Resume;
use crate::status::Status;

/// Transaction of the answers in [`dhcp_answers`].
const XID: u32 = 0x1234_5678;
const MAC: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 1]);

/// Bytes that come in pieces of this size; then the peer goes away.
struct Pieces<'a>(&'a [u8], usize);

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (piece, rest) = self.0.split_at(self.1.min(buffer.len()).min(self.0.len()));
        buffer[..piece.len()].copy_from_slice(piece);
        self.0 = rest;
        Ok(piece.len())
    }
}

impl TimedRead for Pieces<'_> {
    fn limit_read(&self, _limit: Duration) -> io::Result<()> {
        Ok(())
    }
}

/// Valid requests.
pub fn requests() -> Vec<Vec<u8>> {
    let texts = [
        "GET /health?x=1 HTTP/1.1\r\nHost: 192.168.100.2:8080\r\nUser-Agent: stoker\r\nAccept: */*\r\n\r\n",
        "HEAD /metrics HTTP/1.0\r\n\r\n",
        "POST /shutdown HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi",
        "GET /identity HTTP/1.1\r\nX: \"\u{e9}\"\r\n\r\n",
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// A request is what it is however it is cut, and every answer is one whole answer.
pub fn request(bytes: &[u8]) {
    let in_pieces = |size| read_request(&mut Pieces(bytes, size));
    let whole = in_pieces(1024);
    if bytes.len() < MAX_HEAD_BYTES {
        let size = bytes.first().map_or(1, |first| usize::from(*first) % 7 + 1);
        assert_eq!(said(&in_pieces(size)), said(&whole), "in pieces of {size}");
    }
    let routes = Routes::new(Arc::new(Status::new("vm-1")), crate::fault::Faults::default());
    let answer = match &whole {
        Ok(request) => Some(routes.answer(request)),
        Err(error) => answer_error(error),
    };
    let Some(answer) = answer else { return };
    let ends = whole.as_ref().is_ok_and(|r| r.method == "POST" && r.path == "/shutdown");
    assert_eq!(answer.then_end, ends, "only one request ends the machine");
    let text = String::from_utf8(answer.to_bytes()).expect("an answer is text");
    let (head, body) = text.split_once("\r\n\r\n").expect("an answer has a head");
    assert!(head.starts_with(&format!("HTTP/1.1 {} ", answer.code)), "{head}");
    assert_eq!(body, if answer.head_only { "" } else { answer.body.as_str() }, "{head}");
    assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", answer.body.len())), "{head}");
}

fn said(result: &Result<Request, RequestError>) -> String {
    match result {
        Ok(request) => format!("{request:?}"),
        Err(error) => error.to_string(),
    }
}

fn client() -> Client {
    Client::new(MAC, "vm-1")
}

/// Answers of a DHCP server.
pub fn dhcp_answers() -> Vec<Vec<u8>> {
    let lease = Lease {
        address: Ipv4Addr::new(192, 168, 100, 7),
        prefix: 24,
        gateway: Some(Ipv4Addr::new(192, 168, 100, 1)),
        server: Some(Ipv4Addr::new(192, 168, 100, 1)),
        duration: Duration::from_hours(1),
    };
    client().answers(XID, &lease)
}

/// A lease that is taken can be asked for and kept.
pub fn dhcp(bytes: &[u8]) {
    let Some(Reply::Offer(lease) | Reply::Ack(lease)) = client().parse(XID, bytes) else { return };
    assert!(!lease.address.is_unspecified() && !lease.address.is_multicast() && lease.prefix <= 32, "{lease:?}");
    assert!(lease.renew_after() >= Duration::from_secs(5), "no renewal without end: {lease:?}");
    assert!(!client().request(XID, &lease).is_empty() && !client().renew(XID, &lease).is_empty(), "{lease:?}");
}

/// Lines from which a guest has its settings, and those that name a copy of a template.
pub fn lines() -> Vec<Vec<u8>> {
    let resume = format!("resume vm_id=vm-7 mac=52:54:00:00:00:07 unix_ms=1700000000123 seed={}", "a5".repeat(32));
    let texts = [
        "console=ttyS0 quiet stoker.vm_id=vm-7 panic=-1 stoker.port=9090\n",
        "stoker.fault=no-dhcp,status=503,delay-ms=7,unit-failed=Network \"stoker.fault=body={\\\"a\\\": 1}\" stoker.template=1",
        resume.as_str(),
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Whatever stands there, a delay has its bound, and a copy has a name.
pub fn line(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let settings = Settings::parse(&text);
    assert!(settings.faults.delay <= Duration::from_mins(10), "{:?}", settings.faults);
    if let Some(resume) = Resume::parse(&text) {
        assert!(!resume.vm_id.is_empty(), "{resume:?}");
    }
}
