//! The bridged network against the real thing (namespaces, dnsmasq, taps), and the prober against
//! servers that misbehave. Each test has a namespace of its own.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a failed expectation is a failed test")]

#[path = "net/firecracker.rs"]
mod firecracker;
#[path = "net/firewall.rs"]
mod firewall;
#[path = "net/prober.rs"]
mod prober;
#[path = "net/sandbox.rs"]
mod sandbox;

use std::{
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use sandbox::{OFFER, Sandbox, signal};
use stoker_schemas::id::Mac;
use stoker_tests::{
    DEADLINE,
    conformance::net::{request, some_vm, suite},
};
use stoker_worker::{
    net::{BridgedNetwork, Namespace, UserNetwork},
    ports::net::{NetSignal, Network},
    vm::simulated::{SimWorld, SimulatedNetwork},
};
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread")]
async fn the_bridged_network_passes_the_suite() {
    let Some(sandbox) = Sandbox::open("the_bridged_network_passes_the_suite").await else { return };
    suite(&sandbox.network().await).await;
    assert_eq!(sandbox.file("reservations"), "");
}

#[tokio::test]
async fn the_user_network_passes_the_suite() {
    let dir = tempfile::tempdir().unwrap();
    suite(&UserNetwork::open(dir.path()).unwrap()).await;
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn the_simulated_network_passes_the_suite() {
    suite(&SimulatedNetwork::new(SimWorld::new())).await;
}

#[tokio::test]
async fn a_lease_is_seen_as_it_happens_and_nothing_of_it_stays() {
    let Some(sandbox) = Sandbox::open("a_lease_is_seen_as_it_happens_and_nothing_of_it_stays").await else { return };
    let network = sandbox.network().await;
    let (vm, wanted) = (some_vm(), Ipv4Addr::new(192, 168, 100, 77));
    let started = Instant::now();
    let mut attached = network.attach(request(&network, vm, 75)).await.unwrap();
    let attach = started.elapsed();
    let mut guest = sandbox.guest(&vm.tap(), vm.mac()).await;

    let (leased, acked) = tokio::join!(async { (guest.lease().await, Instant::now()) }, async {
        assert_eq!(signal(&mut attached.signals).await, NetSignal::Discover);
        assert_eq!(signal(&mut attached.signals).await, NetSignal::Offer(wanted));
        assert_eq!(signal(&mut attached.signals).await, NetSignal::Request(wanted));
        assert_eq!(signal(&mut attached.signals).await, NetSignal::Ack(wanted));
        Instant::now()
    });
    assert_eq!(leased.0, wanted);
    let late = acked.saturating_duration_since(leased.1);
    // As it happens, not by looking at a file now and then; the rest is for a busy machine.
    assert!(late < Duration::from_secs(1), "the signal came {late:?} after the ACK itself");
    let evidence = network.evidence(vm, Some(wanted)).await;
    assert_eq!(evidence.bridge.as_deref(), Some("st0"));
    assert_eq!(evidence.neighbour, Some(vm.mac()), "not known with its ACK: {evidence:?}");
    assert!(evidence.dhcp_server_up && evidence.from_guest >= 2 && evidence.to_guest >= 2, "{evidence:?}");
    assert!(sandbox.file("leases").contains(&wanted.to_string()));

    let started = Instant::now();
    network.detach(vm, Some(wanted)).await.unwrap();
    eprintln!("attach {attach:?}, signal {late:?} after the ACK (0: before it), detach {:?}", started.elapsed());
    assert_eq!(network.taps().await.unwrap(), Vec::<String>::new());
    assert_eq!((sandbox.file("leases"), sandbox.file("reservations")), (String::new(), String::new()));
    assert!(!sandbox.ip(&["neigh"]).contains(&wanted.to_string()), "neighbour left");
    network.destroy().await.unwrap();
    assert_eq!(sandbox.processes(), Vec::<String>::new());
    assert!(!sandbox.ip(&["link"]).contains("st0"), "bridge left");
    sandbox.namespace.clone().delete().await.unwrap();
    assert!(!Path::new("/run/netns").join(&sandbox.name).exists());
}

#[tokio::test]
async fn what_vms_share_goes_with_the_last_of_them() {
    let Some(sandbox) = Sandbox::open("what_vms_share_goes_with_the_last_of_them").await else { return };
    let (network, vm) = (sandbox.network().await, some_vm());
    network.attach(request(&network, vm, 0)).await.unwrap();
    network.close_unused().await.unwrap();
    assert!(sandbox.ip(&["link"]).contains("st0"), "a VM is on it");
    assert_eq!(sandbox.processes().len(), 1, "its DHCP server");
    network.detach(vm, Some(network.pool()[0])).await.unwrap();
    // Not of ours: the namespace has another use.
    sandbox.ip(&["link", "add", "other", "type", "bridge"]);
    network.close_unused().await.unwrap();
    assert!(!sandbox.ip(&["link"]).contains("st0"), "bridge left");
    assert_eq!(sandbox.processes(), Vec::<String>::new());
    sandbox.ip(&["link", "delete", "other"]);
    let again = sandbox.network().await;
    again.close_unused().await.unwrap();
    assert!(!Path::new("/run/netns").join(&sandbox.name).exists(), "namespace left");
}

#[tokio::test]
async fn an_address_serves_the_next_mac_at_once() {
    let Some(sandbox) = Sandbox::open("an_address_serves_the_next_mac_at_once").await else { return };
    let network = sandbox.network().await;
    let address = Some(network.pool()[0]);
    for _ in 0..3 {
        let vm = some_vm();
        network.attach(request(&network, vm, 0)).await.unwrap();
        let leased = sandbox.guest(&vm.tap(), vm.mac()).await.lease().await;
        assert_eq!(Some(leased), address);
        let evidence = network.evidence(vm, address).await;
        assert_eq!(evidence.neighbour, Some(vm.mac()), "the former VM's neighbour entry was left");
        network.detach(vm, address).await.unwrap();
    }
}

#[tokio::test]
async fn an_address_in_use_is_refused_and_nothing_is_left() {
    let Some(sandbox) = Sandbox::open("an_address_in_use_is_refused_and_nothing_is_left").await else { return };
    let network = sandbox.network().await;
    let (first, second) = (some_vm(), some_vm());
    network.attach(request(&network, first, 0)).await.unwrap();
    let Err(error) = network.attach(request(&network, second, 0)).await else { panic!("two VMs, one address") };
    assert!(error.to_string().contains(&first.mac().to_string()), "does not say who has it: {error}");
    assert_eq!(network.taps().await.unwrap(), [first.tap()]);
    assert_eq!(sandbox.guest(&first.tap(), first.mac()).await.lease().await, network.pool()[0]);
}

#[tokio::test]
async fn who_is_not_announced_gets_no_address() {
    let Some(sandbox) = Sandbox::open("who_is_not_announced_gets_no_address").await else { return };
    let network = sandbox.network().await;
    let vm = some_vm();
    network.attach(request(&network, vm, 0)).await.unwrap();
    let mut guest = sandbox.guest(&vm.tap(), vm.mac()).await;
    guest.discover(Mac([0x02, 0, 0, 0, 0, 0xee]));
    guest.discover(vm.mac());
    // dnsmasq answers in order: a reply to the stranger would come first.
    assert_eq!(guest.reply().await, (vm.mac(), OFFER, network.pool()[0]));
}

#[tokio::test]
async fn a_killed_dhcp_server_comes_back() {
    let Some(sandbox) = Sandbox::open("a_killed_dhcp_server_comes_back").await else { return };
    let network = sandbox.network().await;
    let vm = some_vm();
    network.attach(request(&network, vm, 0)).await.unwrap();
    let before = sandbox.processes();
    assert_eq!(before.len(), 1, "one dnsmasq: {before:?}");
    assert!(Command::new("kill").args(["-9", &before[0]]).status().unwrap().success());
    // An attach meanwhile waits for the new one.
    let other = some_vm();
    let mut tries = 0;
    while sandbox.processes() == before || !network.evidence(vm, None).await.dhcp_server_up {
        tries += 1;
        assert!(tries < 2_000, "no new dnsmasq");
    }
    timeout(DEADLINE, network.attach(request(&network, other, 1))).await.unwrap().unwrap();
    for (nth, vm) in [vm, other].into_iter().enumerate() {
        assert_eq!(sandbox.guest(&vm.tap(), vm.mac()).await.lease().await, network.pool()[nth]);
    }
}

#[tokio::test]
async fn the_next_worker_takes_over() {
    let Some(sandbox) = Sandbox::open("the_next_worker_takes_over").await else { return };
    let (vm, gone) = (some_vm(), some_vm());
    let first: BridgedNetwork = sandbox.network().await;
    first.attach(request(&first, vm, 0)).await.unwrap();
    first.attach(request(&first, gone, 1)).await.unwrap();
    drop(first);
    let left = sandbox.processes();
    assert_eq!(left.len(), 1, "dnsmasq serves on without a worker");
    sandbox.ip(&["link", "delete", &gone.tap()]);

    let second = sandbox.network().await;
    let now = sandbox.processes();
    assert!(now.len() == 1 && now != left, "{left:?} was to be replaced, there is {now:?}");
    let mut attached = second.reattach(request(&second, vm, 0)).await.unwrap();
    assert!(!sandbox.file("reservations").contains(&gone.mac().to_string()), "kept for a VM without a tap");
    assert_eq!(sandbox.guest(&vm.tap(), vm.mac()).await.lease().await, second.pool()[0]);
    assert_eq!(signal(&mut attached.signals).await, NetSignal::Discover);
}

#[tokio::test]
async fn a_tap_off_the_bridge_is_seen() {
    let Some(sandbox) = Sandbox::open("a_tap_off_the_bridge_is_seen").await else { return };
    let network = sandbox.network().await;
    let vm = some_vm();
    network.attach(request(&network, vm, 0)).await.unwrap();
    sandbox.ip(&["link", "set", &vm.tap(), "nomaster"]);
    let mut guest = sandbox.unheard_guest(&vm.tap(), vm.mac()).await;
    guest.discover(vm.mac());
    let evidence = network.evidence(vm, None).await;
    assert_eq!((evidence.bridge, evidence.from_guest), (None, 1), "the guest sends into the void");
    assert_eq!(network.taps().await.unwrap(), [vm.tap()], "the reaper must still find it");
    let Err(error) = network.reattach(request(&network, vm, 0)).await else { panic!("taken over off the bridge") };
    assert!(error.to_string().contains("not on bridge st0"), "{error}");
    network.remove_tap(&vm.tap()).await.unwrap();
    assert_eq!(sandbox.file("reservations"), "", "the address is free again");
    assert!(network.remove_tap("st0").await.is_err(), "the bridge is no tap");
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_guests_at_once_each_get_their_own() {
    const VMS: usize = 20;
    let Some(sandbox) = Sandbox::open("twenty_guests_at_once_each_get_their_own").await else { return };
    let network = sandbox.network().await;
    let boots = (0..VMS).map(async |nth| {
        let vm = some_vm();
        let request = request(&network, vm, nth);
        let wanted = request.address.unwrap();
        let mut attached = network.attach(request).await.unwrap();
        assert_eq!(sandbox.guest(&vm.tap(), vm.mac()).await.lease().await, wanted);
        while signal(&mut attached.signals).await != NetSignal::Ack(wanted) {}
        vm
    });
    let started = Instant::now();
    let vms = futures_util::future::join_all(boots).await;
    let up = started.elapsed();
    let detaching = vms.iter().enumerate().map(|(nth, vm)| network.detach(*vm, Some(network.pool()[nth])));
    let started = Instant::now();
    futures_util::future::try_join_all(detaching).await.unwrap();
    eprintln!("{VMS} attached and leased in {up:?}, detached in {:?}", started.elapsed());
    assert_eq!((sandbox.file("leases"), sandbox.file("reservations")), (String::new(), String::new()));
    assert_eq!(network.taps().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_closed_folder_is_named_before_it_hurts() {
    let Some(sandbox) = Sandbox::open("a_closed_folder_is_named_before_it_hurts").await else { return };
    let closed = tempfile::tempdir().unwrap();
    std::fs::set_permissions(closed.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let config = stoker_worker::net::BridgeConfig::new(closed.path().join("dhcp"));
    let Err(error) = BridgedNetwork::open(sandbox.namespace.clone(), config).await else { panic!("opened") };
    let text = error.to_string();
    assert!(text.contains("chmod o+x") && text.contains(closed.path().to_str().unwrap()), "{text}");
}

#[tokio::test]
async fn names_of_namespaces_are_no_paths() {
    for name in ["", "../x", "a/b", "-d", "A"] {
        assert!(Namespace::open(name).await.is_err(), "{name:?} was accepted");
    }
}
