//! Who waits for which of dnsmasq's words.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use stoker_schemas::id::Mac;
use tokio::sync::{broadcast, mpsc, watch};

use super::words::Said;
use crate::{net::links::Links, ports::net::NetSignal};

/// Signals kept for a listener that is slow: a lease is four, a refused guest repeats itself.
const SIGNALS_KEPT: usize = 64;
/// Released leases kept for those who wait for one; all detach at once at a drain.
const RELEASES_KEPT: usize = 1024;

pub(super) struct Hub {
    links: Links,
    bridge: u32,
    listeners: Mutex<HashMap<Mac, mpsc::Sender<NetSignal>>>,
    reads: watch::Sender<u64>,
    releases: broadcast::Sender<Mac>,
}

impl Hub {
    pub fn new(links: Links, bridge: u32) -> Self {
        Self {
            links,
            bridge,
            listeners: Mutex::default(),
            reads: watch::Sender::new(0),
            releases: broadcast::Sender::new(RELEASES_KEPT),
        }
    }

    pub fn listen(&self, mac: Mac) -> mpsc::Receiver<NetSignal> {
        let (sender, receiver) = mpsc::channel(SIGNALS_KEPT);
        self.listeners().insert(mac, sender);
        receiver
    }

    pub fn unlisten(&self, mac: Mac) {
        self.listeners().remove(&mac);
    }

    /// Counts how often the reservations were read.
    pub fn reads(&self) -> watch::Receiver<u64> {
        self.reads.subscribe()
    }

    /// Leases given back, from now on.
    pub fn releases(&self) -> broadcast::Receiver<Mac> {
        self.releases.subscribe()
    }

    /// Passes on what was said.
    pub async fn pass_on(&self, said: Said) {
        match said {
            Said::Read => self.reads.send_modify(|count| *count += 1),
            // Nobody waits: a guest gave its lease back by itself.
            Said::Released(mac) => drop(self.releases.send(mac)),
            Said::Dhcp(mac, signals) => {
                let Some(listener) = self.listeners().get(&mac).cloned() else { return };
                for signal in signals {
                    self.note_neighbour(mac, &signal).await;
                    // Full: the oldest tell more about a boot than the newest.
                    let _ = listener.try_send(signal);
                }
            }
            Said::Ready | Said::Other => {}
        }
    }

    /// With its ACK a guest is reachable, though the kernel may still be waiting for an answer to
    /// an ARP request it sent too early; told now, the first poll goes out at once.
    async fn note_neighbour(&self, mac: Mac, signal: &NetSignal) {
        let NetSignal::Ack(address) = signal else { return };
        if let Err(error) = self.links.learn(self.bridge, *address, mac).await {
            tracing::debug!(%mac, %address, %error, "neighbour not noted; ARP will find it");
        }
    }

    fn listeners(&self) -> MutexGuard<'_, HashMap<Mac, mpsc::Sender<NetSignal>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
