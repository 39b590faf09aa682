//! What every [`Network`] keeps to, simulated or real. Panics where one does not.

use std::collections::BTreeSet;

use stoker_schemas::{Epoch, JobId, VmId};
use stoker_worker::ports::net::{AttachRequest, Network};
use uuid::Uuid;

/// A VM that no other test has.
pub fn some_vm() -> VmId {
    // The invariant: "test" is a valid host name.
    VmId::derive(JobId(Uuid::now_v7()), Epoch::first(1), &"test".parse().unwrap())
}

/// A request for the `nth` address of the network's pool, or none where there is no pool.
pub fn request(network: &dyn Network, vm: VmId, nth: usize) -> AttachRequest {
    AttachRequest {
        vm,
        address: network.pool().get(nth).copied(),
        agent_port: 8080,
        dhcp: true,
        reach: Default::default(),
    }
}

/// The whole suite; leaves the network as it was.
pub async fn suite(network: &dyn Network) {
    attaching_twice_is_attaching_anew(network).await;
    an_attachment_survives_its_worker(network).await;
    detaching_is_idempotent(network).await;
    attachments_in_parallel_are_apart(network).await;
    assert_eq!(network.taps().await.unwrap(), Vec::<String>::new(), "the suite left taps");
}

async fn attaching_twice_is_attaching_anew(network: &dyn Network) {
    let vm = some_vm();
    let first = network.attach(request(network, vm, 0)).await.unwrap();
    let second = network.attach(request(network, vm, 0)).await.unwrap();
    assert_eq!(second.sees_dhcp, first.sees_dhcp);
    assert!(network.taps().await.unwrap().len() <= 1, "the first attachment was left");
    network.detach(vm, request(network, vm, 0).address).await.unwrap();
}

async fn an_attachment_survives_its_worker(network: &dyn Network) {
    let vm = some_vm();
    let first = network.attach(request(network, vm, 0)).await.unwrap();
    let again = network.reattach(request(network, vm, 0)).await.unwrap();
    assert_eq!((again.nic, again.agent), (first.nic, first.agent));
    network.detach(vm, request(network, vm, 0).address).await.unwrap();
    assert!(network.reattach(request(network, vm, 0)).await.is_err(), "there is nothing to take over");
    network.detach(vm, request(network, vm, 0).address).await.unwrap();
}

async fn detaching_is_idempotent(network: &dyn Network) {
    let vm = some_vm();
    let address = request(network, vm, 0).address;
    network.detach(vm, address).await.unwrap();
    network.attach(request(network, vm, 0)).await.unwrap();
    for _ in 0..2 {
        network.detach(vm, address).await.unwrap();
    }
}

async fn attachments_in_parallel_are_apart(network: &dyn Network) {
    const VMS: usize = 20;
    let vms: Vec<VmId> = (0..VMS).map(|_| some_vm()).collect();
    let attaching = vms.iter().enumerate().map(|(nth, vm)| network.attach(request(network, *vm, nth)));
    let attached = futures_util::future::try_join_all(attaching).await.unwrap();
    let agents: BTreeSet<_> = attached.iter().map(|attachment| attachment.agent).collect();
    assert_eq!(agents.len(), VMS, "two VMs share an address");
    let detaching = vms.iter().enumerate().map(|(nth, vm)| network.detach(*vm, request(network, *vm, nth).address));
    futures_util::future::try_join_all(detaching).await.unwrap();
}
