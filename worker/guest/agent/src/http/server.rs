//! Accepts connections, a bounded number at a time.

use std::io::{self, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::request::read_request;
use super::route::{Response, Routes, answer_error, busy};
use crate::console;
use crate::power;

/// Connections served at the same time. Each costs a thread in a guest of 128 MiB.
const MAX_CONNECTIONS: usize = 32;
/// Stack of such a thread; its largest buffers are a few KiB.
const STACK_BYTES: usize = 128 * 1024;
/// Time for the peer to take the answer.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);
/// Pause after a failed accept, which would otherwise fail again at once (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Opens the port on every address: the guest's own address is not known yet.
pub fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
}

/// Serves for ever.
pub fn serve(listener: &TcpListener, routes: &Routes) {
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => admit(stream, routes, &open),
            Err(error) => {
                console::say(format_args!("accept failed: {error}"));
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

/// Lowers the count also when the thread's work panics.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    /// Only the accepting thread takes slots, so looking first and counting then is safe.
    fn take(open: &Arc<AtomicUsize>) -> Option<Self> {
        if open.load(Ordering::Acquire) >= MAX_CONNECTIONS {
            return None;
        }
        open.fetch_add(1, Ordering::AcqRel);
        Some(Self(Arc::clone(open)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn admit(stream: TcpStream, routes: &Routes, open: &Arc<AtomicUsize>) {
    let Some(slot) = Slot::take(open) else {
        routes.status().count_refused();
        // A short answer fits into the socket's buffer, so this cannot hold up the others.
        let _ = send(&stream, &busy());
        return;
    };
    let routes = routes.clone();
    let spawned = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
        let _slot = slot;
        handle(stream, &routes);
    });
    if let Err(error) = spawned {
        console::say(format_args!("no thread for a connection: {error}"));
    }
}

fn handle(mut stream: TcpStream, routes: &Routes) {
    let response = match read_request(&mut stream) {
        Ok(request) => Some(routes.answer(&request)),
        Err(error) => answer_error(&error),
    };
    if let Some(response) = response {
        thread::sleep(response.delay);
        if send(&stream, &response).is_ok() {
            routes.status().count_request();
        }
        if response.then_end {
            power::ask_to_end();
        }
    }
}

fn send(mut stream: &TcpStream, response: &Response) -> io::Result<()> {
    stream.set_write_timeout(Some(WRITE_DEADLINE))?;
    stream.write_all(&response.to_bytes())?;
    stream.shutdown(Shutdown::Write)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Faults;
    use crate::status::Status;
    use std::io::Read;

    fn start() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Routes::new(Arc::new(Status::new("vm-1")), Faults::default());
        thread::spawn(move || serve(&listener, &routes));
        address
    }

    fn exchange(stream: &mut TcpStream, request: &[u8]) -> String {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn answers_health_and_closes() {
        let mut stream = TcpStream::connect(start()).unwrap();
        let answer = exchange(&mut stream, b"GET /health HTTP/1.1\r\nHost: vm\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains(r#""vmId":"vm-1""#));
    }

    #[test]
    fn idle_connections_use_up_the_slots_and_release_them() {
        let address = start();
        let idle: Vec<_> = (0..MAX_CONNECTIONS).map(|_| TcpStream::connect(address).unwrap()).collect();
        let mut one_too_many = TcpStream::connect(address).unwrap();
        one_too_many.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut answer = String::new();
        one_too_many.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");

        drop(idle);
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            let mut stream = TcpStream::connect(address).unwrap();
            let mut answer = String::new();
            let sent = stream.write_all(b"GET /health HTTP/1.0\r\n\r\n");
            if sent.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer.contains(" 200 ") {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "slots were not released");
        }
    }

    #[test]
    fn garbage_gets_a_400() {
        let mut stream = TcpStream::connect(start()).unwrap();
        assert!(exchange(&mut stream, b"\x00\xff\r\n\r\n").starts_with("HTTP/1.1 400 "));
    }
}
