//! The bridged network: a bridge with a DHCP server, and a fresh tap per VM.

use std::{
    collections::HashSet,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use stoker_schemas::{VmId, id::Mac, image::Reach};
use tokio::sync::mpsc;

use super::{
    dhcp::{Dhcp, Settings},
    firewall::Firewall,
    links::{Link, Links},
    namespace::Namespace,
    system, tap,
};
use crate::ports::net::{AttachRequest, Attachment, NetError, NetEvidence, NetSignal, Network, Nic};

/// A neighbour that was asked for too early is asked again after this long (kernel's default: 1 s).
const NEIGHBOUR_RETRY_MS: &str = "100";
/// A neighbour noted at its ACK is asked itself after this long in use (kernel's default: 5 s), so
/// that a guest which lost its address shows as such.
const NEIGHBOUR_CHECK_S: &str = "1";

/// Ids above this are negative to some programs, and the very last ones have meanings of their own.
const MAX_UID: u32 = i32::MAX as u32;

/// Groups of taps begin here ("St").
const TAP_GROUPS: u32 = 0x5374_0000;

/// A bridged network. The namespace says where.
#[derive(Debug, Clone)]
pub struct BridgeConfig {
    /// The bridge's name (`st0`).
    pub bridge: String,
    /// The bridge's own address: gateway and DHCP server of the guests.
    pub address: Ipv4Addr,
    /// Prefix length of the subnet, 8-30.
    pub prefix: u8,
    /// First address for VMs.
    pub first: Ipv4Addr,
    /// Last address for VMs.
    pub last: Ipv4Addr,
    /// Name servers the guests are told of.
    pub dns: Vec<Ipv4Addr>,
    /// dnsmasq's files. On a tmpfs: dnsmasq syncs its leases before each answer (5 ms on a disk,
    /// nothing in memory), and no VM outlives a reboot of the host.
    pub dir: PathBuf,
    /// Whether guests are kept from the host, from each other and from metadata services.
    pub firewall: bool,
    /// Jailed VMMs run as users of their own, who then may open their tap: this one at the first
    /// address, and so on. Addresses are unique at a time, and so are the users.
    pub uid_base: Option<u32>,
}

impl BridgeConfig {
    /// `st0`, 192.168.100.1/24, VMs on the other addresses.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self::with_subnet(dir, "st0", Ipv4Addr::new(192, 168, 100, 1), 24)
    }

    /// A bridge of this name and address; the rest of the subnet is for VMs. Whether it makes sense
    /// is checked when it is opened.
    pub fn with_subnet(dir: impl Into<PathBuf>, bridge: &str, address: Ipv4Addr, prefix: u8) -> Self {
        let hosts = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
        let network = u32::from(address) & !hosts;
        Self {
            bridge: bridge.to_owned(),
            address,
            prefix,
            // Without the subnet's own address and its broadcast address.
            first: Ipv4Addr::from(network.saturating_add(1)),
            last: Ipv4Addr::from((network | hosts).saturating_sub(1)),
            dns: Vec::new(),
            dir: dir.into(),
            firewall: true,
            uid_base: None,
        }
    }

    fn pool(&self) -> impl Iterator<Item = Ipv4Addr> {
        let own = self.address;
        (u32::from(self.first)..=u32::from(self.last)).map(Ipv4Addr::from).filter(move |a| *a != own)
    }

    fn contains(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address) && address != self.address
    }

    fn owner(&self, address: Ipv4Addr) -> Option<u32> {
        self.uid_base.map(|base| base + (u32::from(address) - u32::from(self.first)))
    }

    fn check(&self) -> Result<(), NetError> {
        let host_bits = 32 - u32::from(self.prefix.clamp(8, 30));
        let inside = |a: Ipv4Addr| u32::from(a) >> host_bits == u32::from(self.address) >> host_bits;
        let cause = if !(8..=30).contains(&self.prefix) {
            "the prefix length must be 8-30"
        } else if self.first > self.last || !inside(self.first) || !inside(self.last) {
            "the pool must be a range within the subnet"
        } else if is_tap(&self.bridge) || self.bridge.is_empty() || self.bridge.len() > 15 || self.bridge.contains('/')
        {
            "the bridge's name must be 1-15 bytes and unlike a tap's"
        } else if !self.uid_base.is_none_or(|base| base > 0 && base <= MAX_UID - (u32::MAX >> self.prefix)) {
            "the first user id must leave room for one per address, and root is none of them"
        } else {
            return Ok(());
        };
        let what = format!("bridge {} {}/{}", self.bridge, self.address, self.prefix);
        Err(NetError::System { what, cause: cause.to_owned() })
    }

    /// Fixed by the address: locally administered, and the same after a restart.
    fn mac(&self) -> Mac {
        let [a, b, c, d] = self.address.octets();
        Mac([0x02, 0xff, a, b, c, d])
    }
}

/// Answers which MAC the host takes an address to be at.
pub type NeighbourLookup = Arc<dyn Fn(Ipv4Addr) -> BoxFuture<'static, Option<Mac>> + Send + Sync>;

/// A bridge, its DHCP server and its taps.
pub struct BridgedNetwork {
    config: BridgeConfig,
    namespace: Namespace,
    links: Links,
    bridge: u32,
    dhcp: Dhcp,
    firewall: Option<Firewall>,
}

impl BridgedNetwork {
    /// Makes what is missing and takes over what an earlier worker left.
    pub async fn open(namespace: Namespace, config: BridgeConfig) -> Result<Self, NetError> {
        config.check()?;
        let links = Links::open(&namespace).await?;
        let bridge = links.ensure_bridge(&config.bridge, config.mac(), config.address, config.prefix).await?;
        let (name, private) = (config.bridge.clone(), namespace.name().is_some());
        namespace.run(move || tune(&name, private)).await?;
        // Before any guest can send: also those that an earlier worker left.
        let firewall = match config.firewall {
            true => Some(Firewall::open(&namespace, &config.bridge, group(bridge)).await?),
            false => None,
        };
        let settings = Settings {
            bridge: config.bridge.clone(),
            bridge_index: bridge,
            server: config.address,
            prefix: config.prefix,
            dns: config.dns.clone(),
            dir: config.dir.clone(),
        };
        let with_tap: HashSet<Mac> = links.all().await?.iter().filter_map(|link| mac_of_tap(&link.name)).collect();
        let dhcp = Dhcp::start(&namespace, links.clone(), settings, |mac| with_tap.contains(&mac)).await?;
        Ok(Self { config, namespace, links, bridge, dhcp, firewall })
    }

    /// For a prober: tells VMs apart by MAC.
    pub fn neighbours(&self) -> NeighbourLookup {
        let (links, bridge) = (self.links.clone(), self.bridge);
        Arc::new(move |address| {
            let links = links.clone();
            Box::pin(async move { links.neighbour(bridge, address).await.ok().flatten()?.mac })
        })
    }

    /// Ends the DHCP server; for the end of the network, not of the worker.
    pub async fn stop_dhcp(&self) {
        self.dhcp.stop().await;
    }

    /// Ends the DHCP server and removes the bridge.
    pub async fn destroy(&self) -> Result<(), NetError> {
        self.dhcp.stop().await;
        if let Some(firewall) = &self.firewall {
            firewall.destroy().await?;
        }
        self.links.delete(&self.config.bridge).await
    }

    fn pooled(&self, request: &AttachRequest) -> Result<Ipv4Addr, NetError> {
        let wrong = |cause: String| NetError::System { what: format!("attach {}", request.vm), cause };
        let address = request.address.ok_or_else(|| wrong("a VM on a bridge needs an address".to_owned()))?;
        if !self.config.contains(address) {
            let (first, last) = (self.config.first, self.config.last);
            return Err(wrong(format!("{address} is not in the pool {first} to {last}")));
        }
        Ok(address)
    }

    async fn reserve(&self, request: &AttachRequest, address: Ipv4Addr) -> Result<(), NetError> {
        if request.dhcp { self.dhcp.reserve(request.vm.mac(), address).await } else { Ok(()) }
    }

    async fn fresh_tap(&self, name: &str, owner: Option<u32>) -> Result<(), NetError> {
        if let Err(error) = self.make_tap(name, owner).await {
            if error.kind() != std::io::ErrorKind::ResourceBusy {
                return Err(system(format!("make tap {name}"), &error));
            }
            self.links.delete(name).await?;
            self.make_tap(name, owner).await.map_err(|e| system(format!("make tap {name}"), &e))?;
        }
        self.links.join_bridge(name, self.bridge, group(self.bridge)).await?;
        self.verify_tap(name).await
    }

    async fn make_tap(&self, name: &str, owner: Option<u32>) -> std::io::Result<()> {
        let name = name.to_owned();
        self.namespace.run(move || tap::create(&name, owner)).await
    }

    /// A tap off the bridge boots a VM that nobody can reach and nothing reports: look.
    async fn verify_tap(&self, name: &str) -> Result<(), NetError> {
        let cause = match self.links.find(name).await? {
            None => "it is not there".to_owned(),
            Some(link) if link.master != Some(self.bridge) => format!("it is not on bridge {}", self.config.bridge),
            Some(link) if !link.up => "it is down".to_owned(),
            Some(_) => return Ok(()),
        };
        Err(NetError::System { what: format!("check tap {name}"), cause })
    }

    async fn admit(&self, tap: &str, reach: &Reach) -> Result<(), NetError> {
        match &self.firewall {
            Some(firewall) => firewall.admit(tap, reach).await,
            None => Ok(()),
        }
    }

    async fn forget(&self, tap: &str) -> Result<(), NetError> {
        match &self.firewall {
            Some(firewall) => firewall.forget(tap).await,
            None => Ok(()),
        }
    }

    fn attachment(&self, request: &AttachRequest, address: Ipv4Addr, signals: mpsc::Receiver<NetSignal>) -> Attachment {
        Attachment {
            nic: Nic::Tap { name: request.vm.tap(), mac: request.vm.mac() },
            agent: SocketAddr::from((address, request.agent_port)),
            signals,
            sees_dhcp: true,
            owner: self.config.owner(address),
        }
    }
}

#[async_trait]
impl Network for BridgedNetwork {
    fn describe(&self) -> String {
        let BridgeConfig { bridge, address, prefix, .. } = &self.config;
        match self.namespace.name() {
            Some(name) => format!("bridge {bridge} {address}/{prefix} in namespace {name}"),
            None => format!("bridge {bridge} {address}/{prefix}"),
        }
    }

    fn pool(&self) -> Vec<Ipv4Addr> {
        self.config.pool().collect()
    }

    async fn attach(&self, request: AttachRequest) -> Result<Attachment, NetError> {
        let address = self.pooled(&request)?;
        let (mac, tap) = (request.vm.mac(), request.vm.tap());
        let signals = self.dhcp.listen(mac);
        // All to their end even where one fails: undoing must not run beside doing.
        let (reserved, admitted, made, forgotten) = tokio::join!(
            self.reserve(&request, address),
            self.admit(&tap, &request.reach),
            self.fresh_tap(&tap, self.config.owner(address)),
            // Whoever had the address before is not to get the first packets: 5 s until ARP notices.
            self.links.forget(self.bridge, address),
        );
        if let Err(error) = reserved.and(admitted).and(made).and(forgotten) {
            if let Err(left) = self.detach(request.vm, Some(address)).await {
                tracing::warn!(vm = %request.vm, error = %left, "could not undo a failed attach");
            }
            return Err(error);
        }
        Ok(self.attachment(&request, address, signals))
    }

    async fn verify(&self, vm: VmId) -> Result<(), NetError> {
        self.verify_tap(&vm.tap()).await
    }

    async fn reattach(&self, request: AttachRequest) -> Result<Attachment, NetError> {
        let address = self.pooled(&request)?;
        let signals = self.dhcp.listen(request.vm.mac());
        self.verify_tap(&request.vm.tap()).await?;
        self.admit(&request.vm.tap(), &request.reach).await?;
        self.reserve(&request, address).await?;
        Ok(self.attachment(&request, address, signals))
    }

    async fn detach(&self, vm: VmId, address: Option<Ipv4Addr>) -> Result<(), NetError> {
        // All of it even where one part fails. The tap goes first: a guest cut off asks for nothing.
        let tap = self.links.delete(&vm.tap()).await;
        let lease = self.dhcp.withdraw(vm.mac()).await;
        let exceptions = self.forget(&vm.tap()).await;
        let neighbour = match address {
            Some(address) => self.links.forget(self.bridge, address).await,
            None => Ok(()),
        };
        tap.and(lease).and(exceptions).and(neighbour)
    }

    async fn evidence(&self, vm: VmId, address: Option<Ipv4Addr>) -> NetEvidence {
        let mut evidence = NetEvidence { dhcp_server_up: self.dhcp.is_up(), ..NetEvidence::default() };
        let links = self.links.all().await.unwrap_or_default();
        if let Some(tap) = links.iter().find(|link| link.name == vm.tap()) {
            let bridge = links.iter().find(|link| Some(link.index) == tap.master);
            evidence.bridge = bridge.map(|link| link.name.clone());
            evidence.from_guest = tap.received;
            evidence.to_guest = tap.sent;
        }
        if let Some(address) = address
            && let Ok(Some(neighbour)) = self.links.neighbour(self.bridge, address).await
        {
            evidence.neighbour = neighbour.mac;
            evidence.neighbour_state = Some(neighbour.state);
        }
        evidence
    }

    async fn taps(&self) -> Result<Vec<String>, NetError> {
        // Those off every bridge too: a VMM that made its own. Those on another bridge are another worker's.
        let ours = |master: Option<u32>| master.is_none_or(|index| index == self.bridge);
        let links = self.links.all().await?.into_iter();
        Ok(links.filter(|l| is_tap(&l.name) && ours(l.master)).map(|l| l.name).collect())
    }

    async fn remove_tap(&self, name: &str) -> Result<(), NetError> {
        let Some(mac) = mac_of_tap(name) else {
            let cause = "it is not named like a tap of Stoker".to_owned();
            return Err(NetError::System { what: format!("remove {name}"), cause });
        };
        // Its reservation would keep the address from everybody else.
        let removed = self.links.delete(name).await;
        removed.and(self.forget(name).await).and(self.dhcp.withdraw(mac).await)
    }

    async fn close_unused(&self) -> Result<(), NetError> {
        let own = |name: &str| name == self.config.bridge || name == "lo";
        let used = |links: &[Link]| links.iter().any(|link| is_tap(&link.name) && link.master == Some(self.bridge));
        if used(&self.links.all().await?) {
            return Ok(());
        }
        self.destroy().await?;
        // A namespace with anything else in it has another use.
        if self.links.all().await?.iter().all(|link| own(&link.name)) {
            self.namespace.delete().await?;
        }
        Ok(())
    }
}

/// The device group of a bridge's taps, by which the firewall knows them; nobody else's by accident.
fn group(bridge: u32) -> u32 {
    TAP_GROUPS | (bridge & 0xffff)
}

/// `st` and twelve hexadecimal digits, as [`VmId::tap`] makes them.
fn is_tap(name: &str) -> bool {
    mac_of_tap(name).is_some()
}

/// MAC and tap derive from the same bytes of the VM's id: the tap has six of them, the MAC the
/// first five.
fn mac_of_tap(name: &str) -> Option<Mac> {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let digits = name.strip_prefix("st").filter(|digits| digits.len() == 12 && digits.bytes().all(hex))?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    let [_, _, a, b, c, d, e, _] = number.to_be_bytes();
    Some(Mac([0x02, a, b, c, d, e]))
}

/// Must run inside: these files show the namespace of the thread that opens them.
fn tune(bridge: &str, private: bool) -> Result<(), NetError> {
    let mut settings = vec![
        (format!("ipv4/neigh/{bridge}/retrans_time_ms"), NEIGHBOUR_RETRY_MS),
        (format!("ipv4/neigh/{bridge}/delay_first_probe_time"), NEIGHBOUR_CHECK_S),
        (format!("ipv6/conf/{bridge}/disable_ipv6"), "1"),
    ];
    if private {
        // New taps say nothing by themselves then: counters show the guest, and `up` is quicker.
        settings.push(("ipv6/conf/default/disable_ipv6".to_owned(), "1"));
    }
    for (name, value) in settings {
        match fs::write(format!("/proc/sys/net/{name}"), value) {
            // A kernel without IPv6.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && name.starts_with("ipv6") => {}
            other => other.map_err(|e| system(format!("set net/{name}"), &e))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
