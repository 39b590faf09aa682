//! Which MAC gets which address, told to dnsmasq in one file with one writer.
//!
//! Each change replaces the file and has dnsmasq read it again (SIGHUP, 0.3 ms for a /24), which
//! forgets what is no longer in it. Its inotify folder would be quicker for additions but keeps
//! removed entries, and refuses their address to the next MAC. Changes that come while one is
//! under way are written together.

use std::{collections::BTreeMap, fmt::Write, fs, io, net::Ipv4Addr, path::Path, sync::Arc, time::Duration};

use stoker_schemas::id::Mac;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{Settings, hub::Hub, server::Server};
use crate::{
    net::{namespace::Namespace, system},
    ports::net::NetError,
};

/// Changes waiting or written at once; more wait in their callers.
const MAX_BATCH: usize = 256;
/// How long dnsmasq may take to read the file before it is asked again.
const READ_WITHIN: Duration = Duration::from_millis(500);
/// How often it is asked.
const READ_TRIES: usize = 4;
/// How long a change waits for a dnsmasq that is being restarted.
const UP_WITHIN: Duration = Duration::from_secs(2);

/// The way to the writer.
pub(super) struct Reservations(mpsc::Sender<Change>);

struct Change {
    mac: Mac,
    /// `None` removes it.
    address: Option<Ipv4Addr>,
    done: oneshot::Sender<Result<(), NetError>>,
}

impl Reservations {
    pub fn start(
        namespace: &Namespace,
        settings: Arc<Settings>,
        hub: Arc<Hub>,
        server: Arc<Server>,
        known: BTreeMap<Mac, Ipv4Addr>,
    ) -> Self {
        let (sender, changes) = mpsc::channel(MAX_BATCH);
        namespace.spawn(Writer { settings, hub, server, known }.run(changes));
        Self(sender)
    }

    /// Returns once dnsmasq knows.
    pub async fn add(&self, mac: Mac, address: Ipv4Addr) -> Result<(), NetError> {
        self.change(mac, Some(address)).await
    }

    /// Returns once dnsmasq has forgotten; one that is down forgets at its start.
    pub async fn remove(&self, mac: Mac) -> Result<(), NetError> {
        match self.change(mac, None).await {
            Err(NetError::DhcpDown(_)) => Ok(()),
            other => other,
        }
    }

    async fn change(&self, mac: Mac, address: Option<Ipv4Addr>) -> Result<(), NetError> {
        let (done, result) = oneshot::channel();
        let ended = || NetError::DhcpDown("its supervisor ended".to_owned());
        self.0.send(Change { mac, address, done }).await.map_err(|_| ended())?;
        result.await.map_err(|_| ended())?
    }
}

struct Writer {
    settings: Arc<Settings>,
    hub: Arc<Hub>,
    server: Arc<Server>,
    known: BTreeMap<Mac, Ipv4Addr>,
}

impl Writer {
    async fn run(mut self, mut changes: mpsc::Receiver<Change>) {
        let mut batch = Vec::new();
        while changes.recv_many(&mut batch, MAX_BATCH).await > 0 {
            let before = self.known.clone();
            let mut waiting = Vec::new();
            for change in batch.drain(..) {
                match self.apply(change.mac, change.address) {
                    Ok(()) => waiting.push(change.done),
                    Err(error) => drop(change.done.send(Err(error))),
                }
            }
            let result = if self.known == before { Ok(()) } else { self.publish().await };
            for done in waiting {
                let _ = done.send(result.clone());
            }
        }
    }

    fn apply(&mut self, mac: Mac, address: Option<Ipv4Addr>) -> Result<(), NetError> {
        let Some(address) = address else {
            self.known.remove(&mac);
            return Ok(());
        };
        if let Some((holder, _)) = self.known.iter().find(|(other, held)| **held == address && **other != mac) {
            let cause = format!("it is reserved for {holder}");
            return Err(NetError::System { what: format!("reserve {address} for {mac}"), cause });
        }
        self.known.insert(mac, address);
        Ok(())
    }

    async fn publish(&self) -> Result<(), NetError> {
        let path = self.settings.reservations();
        store(&path, &self.known).map_err(|e| system(format!("write {}", path.display()), &e))?;
        let mut reads = self.hub.reads();
        for _ in 0..READ_TRIES {
            reads.mark_unchanged();
            if !self.server.reload() {
                // One that starts reads the file by itself.
                return self.server.wait_up(UP_WITHIN).await;
            }
            if timeout(READ_WITHIN, reads.changed()).await.is_ok() {
                return Ok(());
            }
        }
        let cause = format!("dnsmasq did not read {} though asked {READ_TRIES} times", path.display());
        Err(NetError::System { what: "change a reservation".to_owned(), cause })
    }
}

/// Reservations as they are on disk.
pub(super) fn read(path: &Path) -> io::Result<BTreeMap<Mac, Ipv4Addr>> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        other => other?,
    };
    let entry = |line: &str| {
        let (mac, address) = line.split_once(',')?;
        Some((mac.parse().ok()?, address.parse().ok()?))
    };
    Ok(text.lines().filter_map(entry).collect())
}

/// Reads what an earlier worker left and keeps what is still wanted.
pub(super) fn load(path: &Path, keep: impl Fn(Mac) -> bool) -> Result<BTreeMap<Mac, Ipv4Addr>, NetError> {
    let what = || format!("read {}", path.display());
    let mut known = read(path).map_err(|e| system(what(), &e))?;
    known.retain(|mac, _| keep(*mac));
    store(path, &known).map_err(|e| system(what(), &e))?;
    Ok(known)
}

/// Replaced by a rename, so that dnsmasq never reads half of it.
fn store(path: &Path, known: &BTreeMap<Mac, Ipv4Addr>) -> io::Result<()> {
    let text = known.iter().fold(String::new(), |mut text, (mac, address)| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{mac},{address}");
        text
    });
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(new, path)
}
