//! A TCP proxy that can cut every connection through it, or swallow what passes.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
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
}

impl Proxy {
    pub async fn start(url: &str) -> Self {
        let (front, rest) = url.split_once('@').expect("a URL with user and password");
        let (target, path) = rest.split_once('/').expect("a URL with a virtual host");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cuts, mode) = (watch::Sender::new(0), watch::Sender::new(Mode::Pass));
        let accepted = Arc::new(AtomicUsize::new(0));
        tokio::spawn(accept(listener, target.to_owned(), cuts.clone(), mode.clone(), Arc::clone(&accepted)));
        Self { url: format!("{front}@{address}/{path}"), cuts, mode, accepted }
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

    /// Connections so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

async fn accept(
    listener: TcpListener,
    target: String,
    cuts: watch::Sender<u64>,
    mode: watch::Sender<Mode>,
    accepted: Arc<AtomicUsize>,
) {
    while let Ok((client, _)) = listener.accept().await {
        accepted.fetch_add(1, Ordering::Relaxed);
        let Ok(server) = TcpStream::connect(&target).await else { continue };
        let mut cut = cuts.subscribe();
        let mode = mode.subscribe();
        tokio::spawn(async move {
            let (client_read, client_write) = client.into_split();
            let (server_read, server_write) = server.into_split();
            // Both directions live in this task: leaving it closes all four halves at once.
            tokio::select! {
                _ = cut.changed() => {}
                () = forward(client_read, server_write, mode.clone()) => {}
                () = forward(server_read, client_write, mode) => {}
            }
        });
    }
}

async fn forward(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mode: watch::Receiver<Mode>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) if *mode.borrow() == Mode::Swallow => {}
            Ok(n) => {
                if to.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
        }
    }
}
