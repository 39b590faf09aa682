//! The network of the simulated world: a pool of any size and no packets.

use std::net::{Ipv4Addr, SocketAddr};

use async_trait::async_trait;
use stoker_schemas::VmId;

use super::{guest::AgentState, script::Dhcp, world::SimWorld};
use crate::ports::net::{AttachRequest, Attachment, NetError, NetEvidence, Network, Nic};

/// First address of the pool; 10/8 leaves room for 16 million.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// Addresses unless said otherwise: more than a host has room for VMs.
const DEFAULT_POOL: u32 = 65_536;
/// The most addresses a pool may have: what is left of 10/8.
const MAX_POOL: u32 = (1 << 24) - 3;

/// A network without packets.
pub struct SimulatedNetwork {
    world: SimWorld,
    size: u32,
}

impl SimulatedNetwork {
    /// A network with more addresses than needed.
    pub fn new(world: SimWorld) -> Self {
        Self::with_pool(world, DEFAULT_POOL)
    }

    /// A network with `size` addresses.
    pub fn with_pool(world: SimWorld, size: u32) -> Self {
        Self { world, size: size.min(MAX_POOL) }
    }

    fn attachment(&self, request: &AttachRequest) -> Attachment {
        // Without a pool every VM has a loopback address of its own, made of its id.
        let [a, b, c, ..] = *request.vm.0.as_bytes();
        let address = request.address.unwrap_or(Ipv4Addr::new(127, a, b, c | 1));
        let agent = SocketAddr::from((address, request.agent_port));
        let signals = self.world.attach(request.vm, agent);
        Attachment {
            nic: Nic::Simulated { mac: request.vm.mac() },
            agent,
            signals,
            sees_dhcp: request.address.is_some(),
            owner: None,
        }
    }
}

#[async_trait]
impl Network for SimulatedNetwork {
    fn describe(&self) -> String {
        format!("simulated network with {} addresses", self.size)
    }

    fn pool(&self) -> Vec<Ipv4Addr> {
        let first = u32::from(FIRST);
        (first..first + self.size).map(Ipv4Addr::from).collect()
    }

    async fn attach(&self, request: AttachRequest) -> Result<Attachment, NetError> {
        Ok(self.attachment(&request))
    }

    async fn reattach(&self, request: AttachRequest) -> Result<Attachment, NetError> {
        if !self.world.has_card(request.vm) {
            let hint = "it was never attached, or detached since".to_owned();
            return Err(NetError::Missing { what: "the simulated network card".to_owned(), hint });
        }
        Ok(self.attachment(&request))
    }

    async fn detach(&self, vm: VmId, _: Option<Ipv4Addr>) -> Result<(), NetError> {
        self.world.detach(vm);
        Ok(())
    }

    async fn evidence(&self, vm: VmId, _: Option<Ipv4Addr>) -> NetEvidence {
        let guest = self.world.guest(vm);
        let reachable = guest.as_ref().is_some_and(|guest| guest.agent().0 != AgentState::Unreachable);
        let sends = guest.as_ref().is_some_and(|guest| guest.script.dhcp != Dhcp::NoClient);
        NetEvidence {
            bridge: self.world.has_card(vm).then(|| "sim0".to_owned()),
            from_guest: u64::from(sends),
            to_guest: u64::from(reachable),
            neighbour: reachable.then(|| vm.mac()),
            neighbour_state: Some(if reachable { "REACHABLE" } else { "FAILED" }.to_owned()),
            dhcp_server_up: true,
        }
    }

    async fn taps(&self) -> Result<Vec<String>, NetError> {
        Ok(self.world.attached().into_iter().map(VmId::tap).collect())
    }

    async fn remove_tap(&self, name: &str) -> Result<(), NetError> {
        for vm in self.world.attached().into_iter().filter(|vm| vm.tap() == name) {
            self.world.detach(vm);
        }
        Ok(())
    }
}
