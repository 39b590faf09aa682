//! The DHCP server of a bridge: dnsmasq, told of each VM by its MAC and address, and listened to.
//!
//! It serves reservations only: who is not announced gets no address, so a guest's address is the
//! one its job was given or none. What it says on stderr becomes signals per MAC. A lease script
//! would say less (no DISCOVER, no refusals) and cost a fork for each lease on the way of a boot.

mod hub;
mod leases;
mod orphans;
mod reservations;
mod server;
pub(crate) mod words;

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use stoker_schemas::id::Mac;
use tokio::sync::mpsc;

use self::{hub::Hub, reservations::Reservations, server::Server};
use super::{links::Links, namespace::Namespace, system};
use crate::ports::net::{NetError, NetSignal};

/// How long a start of dnsmasq may take (20 ms when idle).
const UP_WITHIN: Duration = Duration::from_secs(5);

/// What dnsmasq is to serve, and where it keeps its files.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub bridge: String,
    pub bridge_index: u32,
    pub server: Ipv4Addr,
    pub prefix: u8,
    pub dns: Vec<Ipv4Addr>,
    pub dir: PathBuf,
}

impl Settings {
    fn leases(&self) -> PathBuf {
        self.dir.join("leases")
    }

    fn reservations(&self) -> PathBuf {
        self.dir.join("reservations")
    }
}

/// A running DHCP server.
pub(super) struct Dhcp {
    namespace: Namespace,
    settings: Arc<Settings>,
    hub: Arc<Hub>,
    server: Arc<Server>,
    reservations: Reservations,
}

impl Dhcp {
    /// Replaces what an earlier worker left of this server, and starts. Of its reservations those
    /// stay for which `keep` holds.
    pub async fn start(
        namespace: &Namespace,
        links: Links,
        mut settings: Settings,
        keep: impl Fn(Mac) -> bool,
    ) -> Result<Self, NetError> {
        settings.dir = prepare(&settings.dir)?;
        let settings = Arc::new(settings);
        // The old one served adopted VMs until now; its words, though, go nowhere.
        orphans::end(settings.leases()).await?;
        let known = reservations::load(&settings.reservations(), keep)?;
        let hub = Arc::new(Hub::new(links, settings.bridge_index));
        let server = Arc::new(Server::start(namespace, Arc::clone(&settings), Arc::clone(&hub)));
        server.wait_up(UP_WITHIN).await?;
        let reservations =
            Reservations::start(namespace, Arc::clone(&settings), Arc::clone(&hub), Arc::clone(&server), known);
        Ok(Self { namespace: namespace.clone(), settings, hub, server, reservations })
    }

    /// Announces a VM; returns once the server knows it.
    pub async fn reserve(&self, mac: Mac, address: Ipv4Addr) -> Result<(), NetError> {
        self.reservations.add(mac, address).await
    }

    /// DHCP traffic of this MAC from now on; an earlier listener's ends.
    pub fn listen(&self, mac: Mac) -> mpsc::Receiver<NetSignal> {
        self.hub.listen(mac)
    }

    /// Takes back lease and reservation, so that another MAC can have the address at once.
    pub async fn withdraw(&self, mac: Mac) -> Result<(), NetError> {
        self.hub.unlisten(mac);
        let released = leases::release(&self.namespace, &self.settings, &self.hub, mac).await;
        self.reservations.remove(mac).await?;
        if let Err(error) = released {
            // A start reads only leases that have a reservation (see `leases::prune`).
            tracing::warn!(%mac, %error, "lease was not given back; restarting dnsmasq without it");
            self.server.restart().await;
            self.server.wait_up(UP_WITHIN).await?;
        }
        Ok(())
    }

    /// Whether it runs.
    pub fn is_up(&self) -> bool {
        self.server.is_up()
    }

    /// Ends it. Not done at a worker's end: adopted VMs renew their leases meanwhile.
    pub async fn stop(&self) {
        self.server.stop().await;
    }
}

/// The folder, absolute and open to dnsmasq, which gives up root after its start.
fn prepare(dir: &Path) -> Result<PathBuf, NetError> {
    let what = || format!("prepare {}", dir.display());
    fs::create_dir_all(dir).map_err(|e| system(what(), &e))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).map_err(|e| system(what(), &e))?;
    let dir = dir.canonicalize().map_err(|e| system(what(), &e))?;
    for folder in dir.ancestors() {
        let mode = fs::metadata(folder).map_err(|e| system(what(), &e))?.permissions().mode();
        if mode & 0o001 == 0 {
            let cause =
                format!("{} is closed to dnsmasq's user: chmod o+x it, or choose another folder", folder.display());
            return Err(NetError::System { what: what(), cause });
        }
    }
    Ok(dir)
}
