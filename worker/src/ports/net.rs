//! A VM's network: a card with an address that only this VM gets, and what can be seen of it.

use std::net::{Ipv4Addr, SocketAddr};

use async_trait::async_trait;
use stoker_schemas::VmId;
use stoker_schemas::id::Mac;
use stoker_schemas::image::Reach;
use tokio::sync::mpsc;

/// A VM's network card, as the hypervisor is told about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nic {
    /// A tap device that exists and is on the bridge.
    Tap {
        /// Name of the device, in the namespace of the network.
        name: String,
        /// The guest's MAC.
        mac: Mac,
    },
    /// QEMU's user network with one forwarded port on loopback.
    User {
        /// The guest's MAC.
        mac: Mac,
        /// Port on 127.0.0.1 that reaches the agent.
        host_port: u16,
        /// The agent's port in the guest.
        guest_port: u16,
    },
    /// A simulated guest.
    Simulated {
        /// The guest's MAC.
        mac: Mac,
    },
}

/// What a VM is to get.
#[derive(Debug, Clone)]
pub struct AttachRequest {
    /// For which VM.
    pub vm: VmId,
    /// Address from the pool. `None` where there is no pool (user network).
    pub address: Option<Ipv4Addr>,
    /// The guest gets it by DHCP: it is reserved for its MAC. Else the guest has it from its kernel
    /// line, and asking for one by DHCP as well is a fault that must not be hidden by an answer.
    pub dhcp: bool,
    /// The agent's port.
    pub agent_port: u16,
    /// What its image may reach.
    pub reach: Reach,
}

/// A VM's place on the network.
pub struct Attachment {
    /// The card.
    pub nic: Nic,
    /// Where its agent will answer.
    pub agent: SocketAddr,
    /// DHCP traffic of this MAC, as it happens. Bounded; the oldest are kept.
    pub signals: mpsc::Receiver<NetSignal>,
    /// Whether DHCP can be seen here (not on the user network).
    pub sees_dhcp: bool,
    /// The user whose tap it is, where VMMs run as users of their own.
    pub owner: Option<u32>,
}

/// One DHCP message seen by the host's server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetSignal {
    /// The guest looks for a server.
    Discover,
    /// The server offered this address.
    Offer(Ipv4Addr),
    /// The guest asked for this address.
    Request(Ipv4Addr),
    /// The server confirmed this address: the guest has it from now on.
    Ack(Ipv4Addr),
    /// The server refused; its words.
    Refused(String),
    /// The guest does not want this address: somebody else answered for it.
    Declined(Ipv4Addr),
}

/// What the host knows about a VM's network, for a diagnosis.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetEvidence {
    /// Bridge the tap is on.
    pub bridge: Option<String>,
    /// Packets the guest sent.
    pub from_guest: u64,
    /// Packets the guest was sent.
    pub to_guest: u64,
    /// MAC that answers for the address, if one does.
    pub neighbour: Option<Mac>,
    /// The neighbour entry's state, as the kernel calls it.
    pub neighbour_state: Option<String>,
    /// Whether the DHCP server runs.
    pub dhcp_server_up: bool,
}

/// The host's side of VM networking.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// For people (`bridge st0 192.168.100.1/24 in namespace stoker`).
    fn describe(&self) -> String;

    /// Addresses that VMs may be given; empty where there is no pool.
    fn pool(&self) -> Vec<Ipv4Addr>;

    /// Makes the card and reserves the address. Anything left of an earlier VM with the same tap
    /// name is removed first. On error nothing is left.
    async fn attach(&self, request: AttachRequest) -> Result<Attachment, NetError>;

    /// Whether the card still is where it was put: asked once the VMM runs, because one that may
    /// make devices makes a missing tap by itself, off the bridge, and reports success.
    async fn verify(&self, _vm: VmId) -> Result<(), NetError> {
        Ok(())
    }

    /// Takes over the card of a VM that an earlier worker attached.
    async fn reattach(&self, request: AttachRequest) -> Result<Attachment, NetError>;

    /// Removes card, reservation, lease and neighbour entry. Idempotent.
    async fn detach(&self, vm: VmId, address: Option<Ipv4Addr>) -> Result<(), NetError>;

    /// What can be seen of a VM's network now. Never fails: what cannot be seen is absent.
    async fn evidence(&self, vm: VmId, address: Option<Ipv4Addr>) -> NetEvidence;

    /// Names of the tap devices on this network, for the reaper.
    async fn taps(&self) -> Result<Vec<String>, NetError>;

    /// Removes a tap nobody owns, by its name.
    async fn remove_tap(&self, name: &str) -> Result<(), NetError>;

    /// Removes what VMs share (bridge, DHCP server, namespace) when no VM is left that needs it. For a worker that
    /// ends for good: one that is restarted leaves it to its VMs.
    async fn close_unused(&self) -> Result<(), NetError> {
        Ok(())
    }
}

/// What can go wrong with the network.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NetError {
    /// Not allowed.
    #[error("no permission to {what}: run as root, or use the user network (--unprivileged)")]
    Permission {
        /// What was tried.
        what: String,
    },
    /// A program or device is missing.
    #[error("{what} is missing: {hint}")]
    Missing {
        /// What.
        what: String,
        /// How to get it.
        hint: String,
    },
    /// The system refused.
    #[error("{what} failed: {cause}")]
    System {
        /// What was tried.
        what: String,
        /// The system's words.
        cause: String,
    },
    /// The DHCP server is not running.
    #[error("DHCP server ended: {0}")]
    DhcpDown(String),
}
