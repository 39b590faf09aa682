//! Simulated guests: the suite, and many at once.

use std::{path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use stoker_tests::conformance::vm::{Subject, fresh_vm};
use stoker_worker::{
    ports::{
        net::{AttachRequest, Network, Nic},
        probe::{ProbeLog, ProbeTarget, Prober},
        vm::{Hypervisor, VmPlan, VmRecord},
    },
    vm::simulated::{SimWorld, Simulated, SimulatedNetwork, SimulatedProber},
};

use crate::conformance;

#[derive(Default)]
struct Guests {
    world: SimWorld,
}

fn plan(dir: &Path, args: &str) -> VmPlan {
    let vm = fresh_vm();
    VmPlan {
        vm,
        vcpus: 1,
        memory_mib: 16,
        kernel: "kernel".into(),
        initrd: None,
        kernel_args: args.to_owned(),
        template_args: None,
        disk: None,
        nic: Nic::Simulated { mac: vm.mac() },
        dir: dir.to_owned(),
        owner: None,
    }
}

#[async_trait]
impl Subject for Guests {
    async fn driver(&self) -> Arc<dyn Hypervisor> {
        Arc::new(Simulated::new(self.world.clone()))
    }
    fn plan(&self, dir: &Path) -> VmPlan {
        plan(dir, "sim.boot-ms=2 sim.healthy-ms=10")
    }
    fn plan_that_exits(&self, dir: &Path) -> VmPlan {
        plan(dir, "sim.exit-ms=10")
    }
    fn broken_plan(&self, dir: &Path) -> VmPlan {
        plan(dir, "sim.boot=refused")
    }
    fn crash(&self, _: &VmRecord) {
        self.world.kill_all();
    }
    fn processes_in(&self, _: &Path) -> usize {
        self.world.running()
    }
    fn stops_when_asked(&self) -> bool {
        true
    }
}

/// Two at once share a world, so "left" counts both; the suite stops both before it looks.
async fn subject(_: &str) -> Option<Guests> {
    Some(Guests::default())
}

conformance!(subject);

#[tokio::test(start_paused = true)]
async fn a_thousand_at_once_end_as_their_scripts_say() {
    const GUESTS: u64 = 1_000;
    let world = SimWorld::new();
    let hypervisor = Simulated::new(world.clone());
    let network = SimulatedNetwork::new(world.clone());
    let prober = Arc::new(SimulatedProber::new(world.clone()));
    let begun = tokio::time::Instant::now();
    let mut probes = tokio::task::JoinSet::new();
    let mut running = Vec::new();
    for (n, address) in (0..GUESTS).zip(network.pool()) {
        let plan = plan(Path::new(""), &format!("sim.dhcp-ms={n} sim.healthy-ms={}", 2 * n));
        let attached = network
            .attach(AttachRequest {
                vm: plan.vm,
                address: Some(address),
                agent_port: 8080,
                dhcp: true,
                reach: Default::default(),
            })
            .await
            .unwrap();
        let vm = plan.vm;
        running.push(hypervisor.boot(plan).await.unwrap());
        let prober = Arc::clone(&prober);
        let readiness = stoker_schemas::spec::Readiness {
            port: 8080,
            path: "/health".to_owned(),
            expected_status: 200,
            body_contains: None,
            check_identity: true,
            deadline_ms: 10_000,
            units: vec![],
        };
        probes.spawn(async move {
            let target = ProbeTarget { vm, mac: vm.mac(), agent: attached.agent, readiness };
            prober.until_ready(&target, &ProbeLog::default()).await;
            (n, begun.elapsed())
        });
    }
    assert_eq!(world.running(), running.len());
    while let Some(ready) = probes.join_next().await {
        let (n, after) = ready.unwrap();
        assert_eq!(after, Duration::from_millis(2 * n), "guest {n}");
    }
    for vm in running {
        vm.stop(Duration::ZERO).await.unwrap();
    }
    assert_eq!(world.running(), 0);
    assert_eq!(world.stats().address_conflicts, 0);
}
