//! A TCP proxy that can cut every connection through it, or swallow what passes.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Mutex, watch},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pass,
    /// Reads and drops: a frozen peer, the connection stays open.
    Swallow,
}

/// Listens on loopback and forwards to the broker.
pub struct Proxy {
    /// The broker's URL, through the proxy.
    pub url: String,
    cuts: watch::Sender<u64>,
    mode: watch::Sender<Mode>,
    accepted: Arc<AtomicUsize>,
    feigned: Arc<AtomicUsize>,
}

impl Proxy {
    pub async fn start(url: &str) -> Self {
        let (front, rest) = url.split_once('@').expect("a URL with user and password");
        let (target, path) = rest.split_once('/').expect("a URL with a virtual host");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cuts, mode) = (watch::Sender::new(0), watch::Sender::new(Mode::Pass));
        let accepted = Arc::new(AtomicUsize::new(0));
        let feigned = Arc::new(AtomicUsize::new(0));
        let ways = Ways { cuts: cuts.clone(), mode: mode.clone(), feigned: Arc::clone(&feigned) };
        tokio::spawn(accept(listener, target.to_owned(), ways, Arc::clone(&accepted)));
        Self { url: format!("{front}@{address}/{path}"), cuts, mode, accepted, feigned }
    }

    /// Drops every connection that is open now.
    pub fn cut(&self) {
        self.cuts.send_modify(|n| *n += 1);
    }

    /// Keeps connections open but lets nothing through.
    pub fn freeze(&self) {
        self.mode.send_replace(Mode::Swallow);
    }

    pub fn thaw(&self) {
        self.mode.send_replace(Mode::Pass);
    }

    /// The broker never hears of the next consumers, so many; each is answered as if it had begun.
    pub fn feign_consumers(&self, number: usize) {
        self.feigned.store(number, Relaxed);
    }

    /// Consumers that are still to be feigned.
    pub fn left_to_feign(&self) -> usize {
        self.feigned.load(Relaxed)
    }

    /// Connections so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Relaxed)
    }
}

/// What the proxy does with what passes.
struct Ways {
    cuts: watch::Sender<u64>,
    mode: watch::Sender<Mode>,
    feigned: Arc<AtomicUsize>,
}

async fn accept(listener: TcpListener, target: String, ways: Ways, accepted: Arc<AtomicUsize>) {
    while let Ok((client, _)) = listener.accept().await {
        accepted.fetch_add(1, Relaxed);
        let Ok(server) = TcpStream::connect(&target).await else { continue };
        let mut cut = ways.cuts.subscribe();
        let mode = ways.mode.subscribe();
        let feigned = Arc::clone(&ways.feigned);
        tokio::spawn(async move {
            let (client_read, client_write) = client.into_split();
            let client_write = Mutex::new(client_write);
            let (server_read, server_write) = server.into_split();
            // Both directions live in this task: leaving it closes all four halves at once.
            tokio::select! {
                _ = cut.changed() => {}
                () = ask(client_read, server_write, mode.clone(), &feigned, &client_write) => {}
                () = forward(server_read, &client_write, mode) => {}
            }
        });
    }
}

/// Passes on what the client asks, frame by frame, except for consumers that are feigned.
async fn ask(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mode: watch::Receiver<Mode>,
    feigned: &AtomicUsize,
    back: &Mutex<impl AsyncWrite + Unpin>,
) {
    let (mut pending, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let Ok(n @ 1..) = from.read(&mut buffer).await else { return };
        if *mode.borrow() == Mode::Swallow {
            continue;
        }
        pending.extend_from_slice(&buffer[..n]);
        while let Some(frame) = next_frame(&mut pending) {
            let answered = match consume_ok(&frame) {
                Some(answer) if feigned.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok() => {
                    back.lock().await.write_all(&answer).await
                }
                _ => to.write_all(&frame).await,
            };
            if answered.is_err() {
                return;
            }
        }
    }
}

/// Takes a whole frame (or the protocol's header) off the front: type, channel, size, payload, end.
fn next_frame(pending: &mut Vec<u8>) -> Option<Vec<u8>> {
    let size = if pending.starts_with(b"AMQP") {
        8
    } else {
        7 + u32::from_be_bytes(pending.get(3..7)?.try_into().unwrap()) as usize + 1
    };
    (pending.len() >= size).then(|| pending.drain(..size).collect())
}

/// The answer to `basic.consume` (class 60, method 20; a reserved short, then queue and tag as short strings) as the
/// broker would give it: `basic.consume-ok` (method 21) with the tag.
fn consume_ok(frame: &[u8]) -> Option<Vec<u8>> {
    let arguments = frame.strip_prefix(&[1])?.get(6..)?.strip_prefix(&[0, 60, 0, 20])?.get(2..)?;
    let after_queue = arguments.get(1 + usize::from(*arguments.first()?)..)?;
    let tag = after_queue.get(..1 + usize::from(*after_queue.first()?))?;
    let payload = [&[0, 60, 0, 21], tag].concat();
    let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
    Some([&frame[..3], &size, &payload, &[0xce]].concat())
}

async fn forward(mut from: impl AsyncRead + Unpin, to: &Mutex<impl AsyncWrite + Unpin>, mode: watch::Receiver<Mode>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) if *mode.borrow() == Mode::Swallow => {}
            Ok(n) => {
                if to.lock().await.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
        }
    }
}
