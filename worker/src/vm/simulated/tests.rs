use std::{net::Ipv4Addr, path::PathBuf};

use stoker_schemas::{VmId, spec::Readiness};
use tokio::time::Instant;

use super::*;
use crate::ports::{
    net::{AttachRequest, NetSignal, Network, Nic},
    probe::{ProbeLog, ProbeOutcome, ProbeTarget, Prober, WrongAnswer},
};

struct Rig {
    hypervisor: Simulated,
    network: SimulatedNetwork,
    prober: SimulatedProber,
    world: SimWorld,
}

/// Everything but the world, as a restarted worker would make it.
fn rig(world: &SimWorld) -> Rig {
    Rig {
        hypervisor: Simulated::new(world.clone()),
        network: SimulatedNetwork::new(world.clone()),
        prober: SimulatedProber::new(world.clone()),
        world: world.clone(),
    }
}

fn vm(n: u128) -> VmId {
    VmId(uuid::Uuid::from_u128(n << 64 | n))
}

fn request(vm: VmId, last: u8) -> AttachRequest {
    AttachRequest {
        vm,
        address: Some(Ipv4Addr::new(10, 0, 0, last)),
        agent_port: 8080,
        dhcp: true,
        reach: Default::default(),
    }
}

fn target(vm: VmId, last: u8) -> ProbeTarget {
    let readiness = Readiness {
        port: 8080,
        path: "/health".to_owned(),
        expected_status: 200,
        body_contains: Some("healthy".to_owned()),
        check_identity: true,
        deadline_ms: 1000,
        units: vec![],
    };
    ProbeTarget { vm, mac: vm.mac(), agent: (Ipv4Addr::new(10, 0, 0, last), 8080).into(), readiness }
}

impl Rig {
    async fn boot(&self, vm: VmId, args: &str) -> Result<Arc<dyn Vm>, VmError> {
        let plan = VmPlan {
            vm,
            vcpus: 1,
            memory_mib: 16,
            kernel: PathBuf::from("k"),
            initrd: None,
            kernel_args: args.to_owned(),
            template_args: None,
            disk: None,
            nic: Nic::Simulated { mac: vm.mac() },
            owner: None,
            dir: PathBuf::from("d"),
        };
        self.hypervisor.boot(plan).await
    }
}

#[tokio::test(start_paused = true)]
async fn readiness_comes_exactly_when_the_script_says() {
    let rig = rig(&SimWorld::new());
    let mut net = rig.network.attach(request(vm(1), 2)).await.unwrap();
    let begun = Instant::now();
    let _running = rig.boot(vm(1), "sim.dhcp-ms=100 sim.healthy-ms=250").await.unwrap();
    let log = ProbeLog::default();
    let answer = rig.prober.until_ready(&target(vm(1), 2), &log).await;
    assert_eq!(begun.elapsed().as_millis(), 250);
    assert_eq!(answer.status, 200);
    assert_eq!(net.signals.recv().await, Some(NetSignal::Discover));
    assert_eq!(net.signals.recv().await, Some(NetSignal::Ack(Ipv4Addr::new(10, 0, 0, 2))));
    let kinds: Vec<_> = log.summary().kinds.into_iter().map(|(kind, _)| kind).collect();
    assert!(
        matches!(kinds[..], [ProbeOutcome::Unreachable(_), ProbeOutcome::Refused, ProbeOutcome::Ready(_)]),
        "{kinds:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn every_fault_shows_as_its_outcome() {
    type Expected = fn(&ProbeOutcome) -> bool;
    let faults: [(&str, Expected); 9] = [
        ("sim.agent=refused", |o| *o == ProbeOutcome::Refused),
        ("sim.agent=never", |o| *o == ProbeOutcome::ConnectTimeout),
        ("sim.agent=hang", |o| *o == ProbeOutcome::ReadTimeout),
        ("sim.down-ms=0", |o| *o == ProbeOutcome::Refused),
        ("sim.dhcp=none", |o| matches!(o, ProbeOutcome::Unreachable(_))),
        ("sim.status=503", |o| matches!(o, ProbeOutcome::Wrong(a, WrongAnswer::Status) if a.status == 503)),
        ("sim.body=sick", |o| matches!(o, ProbeOutcome::Wrong(_, WrongAnswer::Body))),
        ("sim.id=x", |o| matches!(o, ProbeOutcome::Wrong(_, WrongAnswer::Identity(who)) if who == "x")),
        ("sim.id=none", |o| matches!(o, ProbeOutcome::Ready(_))),
    ];
    for (args, expected) in faults {
        let rig = rig(&SimWorld::new());
        let _net = rig.network.attach(request(vm(1), 2)).await.unwrap();
        let _running = rig.boot(vm(1), args).await.unwrap();
        let outcome = rig.prober.once(&target(vm(1), 2)).await;
        assert!(expected(&outcome), "{args}: {outcome:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_vm_at_the_address_is_recognised() {
    let rig = rig(&SimWorld::new());
    let _net = rig.network.attach(request(vm(1), 2)).await.unwrap();
    let _running = rig.boot(vm(1), "").await.unwrap();
    let outcome = rig.prober.once(&target(vm(2), 2)).await;
    assert!(matches!(outcome, ProbeOutcome::Wrong(_, WrongAnswer::Identity(_))), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn guests_survive_a_worker_restart() {
    let world = SimWorld::new();
    let first = rig(&world);
    let _net = first.network.attach(request(vm(1), 2)).await.unwrap();
    let record = first.boot(vm(1), "sim.healthy-ms=500 sim.crash-ms=900").await.unwrap().record();
    drop(first);
    tokio::time::advance(Duration::from_millis(300)).await;

    let second = rig(&world);
    let mut net = second.network.reattach(request(vm(1), 2)).await.unwrap();
    let adopted = second.hypervisor.adopt(record.clone()).await.unwrap().unwrap();
    assert_eq!(net.signals.recv().await, Some(NetSignal::Discover));
    assert!(matches!(net.signals.recv().await, Some(NetSignal::Ack(_))), "the lease is told again");
    second.prober.until_ready(&target(vm(1), 2), &ProbeLog::default()).await;
    assert_eq!(adopted.exited().await.signal, Some(11));
    assert!(second.hypervisor.adopt(record).await.unwrap().is_none());
    assert!(second.world.living().is_empty());
}

#[tokio::test(start_paused = true)]
async fn stopping_follows_the_script() {
    let rig = rig(&SimWorld::new());
    let grace = Duration::from_secs(2);
    for (args, grace, millis, code) in [
        ("", grace, 0, Some(0)),
        ("sim.stop-ms=300", grace, 300, Some(0)),
        ("sim.stop=ignored", grace, 2000, None),
        ("sim.stop-ms=300", Duration::ZERO, 0, None),
    ] {
        let running = rig.boot(vm(1), args).await.unwrap();
        let begun = Instant::now();
        let exit = running.stop(grace).await.unwrap();
        assert_eq!((begun.elapsed().as_millis(), exit.code), (millis, code), "{args}");
        assert_eq!(running.stop(grace).await.unwrap(), exit, "stopping again says the same");
    }
    assert!(rig.world.living().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_vm_cannot_run_twice_and_refusals_are_counted() {
    let rig = rig(&SimWorld::new());
    let _running = rig.boot(vm(1), "").await.unwrap();
    assert!(matches!(rig.boot(vm(1), "").await, Err(VmError::Refused { .. })));
    assert!(matches!(rig.boot(vm(2), "sim.boot=refused").await, Err(VmError::Refused { .. })));
    assert!(matches!(rig.boot(vm(3), "sim.typo").await, Err(VmError::Unsupported { .. })));
    assert_eq!(rig.world.stats(), SimStats { boots: 1, refused: 1, peak: 1, address_conflicts: 0 });
}

#[tokio::test(start_paused = true)]
async fn two_cards_with_one_address_are_counted() {
    let rig = rig(&SimWorld::new());
    let _one = rig.network.attach(request(vm(1), 2)).await.unwrap();
    let _two = rig.network.attach(request(vm(2), 2)).await.unwrap();
    assert_eq!(rig.world.stats().address_conflicts, 1);
    rig.network.detach(vm(1), None).await.unwrap();
    rig.network.detach(vm(2), None).await.unwrap();
    assert!(rig.network.taps().await.unwrap().is_empty());
}
