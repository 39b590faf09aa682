//! A real guest in a real VMM: what counts in the end.

use std::{fs, path::PathBuf, process::Stdio, time::Instant};

use stoker_schemas::{image::ImageManifest, spec::Readiness};
use stoker_tests::{
    DEADLINE,
    conformance::net::{request, some_vm},
    setting, skipped,
};
use stoker_worker::{
    ports::{
        net::{NetSignal, Network},
        probe::{ProbeLog, ProbeTarget, Prober},
    },
    probe::HttpProber,
};
use tokio::{process::Command, time::timeout};

use crate::sandbox::{Sandbox, signal};

/// Firecracker's path and the probe image's kernel.
fn needed(test: &str) -> Option<(PathBuf, PathBuf)> {
    let vmm = setting(test, "STOKER_TEST_FIRECRACKER")?;
    let image = setting(test, "STOKER_TEST_IMAGES")?.join("probe");
    let Ok(manifest) = fs::read(image.join("image.json")) else {
        skipped(test, "there is no image named probe");
        return None;
    };
    let manifest: ImageManifest = serde_json::from_slice(&manifest).unwrap();
    Some((vmm, image.join(manifest.kernel)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_guest_is_seen_from_its_lease_to_its_answer() {
    const TEST: &str = "a_real_guest_is_seen_from_its_lease_to_its_answer";
    let (Some((vmm, kernel)), Some(sandbox)) = (needed(TEST), Sandbox::open(TEST).await) else { return };
    let network = sandbox.network().await;
    let prober = HttpProber::new(sandbox.namespace.clone(), Some(network.neighbours())).unwrap();
    // The second VM gets the first one's address.
    for round in 0..2 {
        let vm = some_vm();
        let mut attached = network.attach(request(&network, vm, 0)).await.unwrap();
        let config = serde_json::json!({
            "boot-source": { "kernel_image_path": kernel, "boot_args": format!("console=ttyS0 stoker.vm_id={vm}") },
            "drives": [],
            "machine-config": { "vcpu_count": 1, "mem_size_mib": 32 },
            "network-interfaces": [
                { "iface_id": "eth0", "host_dev_name": vm.tap(), "guest_mac": vm.mac().to_string() }
            ]
        });
        let file = sandbox.dir.path().join(format!("{round}.json"));
        fs::write(&file, config.to_string()).unwrap();
        let mut command = Command::new(&vmm);
        command.arg("--no-api").arg("--config-file").arg(&file).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let started = Instant::now();
        let mut child = sandbox.namespace.run(move || command.spawn()).await.unwrap();

        let readiness = Readiness {
            port: 8080,
            path: "/health".to_owned(),
            expected_status: 200,
            body_contains: None,
            check_identity: true,
            deadline_ms: 60_000,
            units: Vec::new(),
        };
        let target = ProbeTarget { vm, mac: vm.mac(), agent: attached.agent, readiness };
        let log = ProbeLog::default();
        let (acked, answer) = tokio::join!(
            async {
                while signal(&mut attached.signals).await != NetSignal::Ack(network.pool()[0]) {}
                started.elapsed()
            },
            async {
                let answer = timeout(DEADLINE, prober.until_ready(&target, &log)).await;
                (answer.unwrap_or_else(|_| panic!("{:?}", log.summary())), started.elapsed())
            }
        );
        let (answer, ready) = answer;
        eprintln!("ACK after {acked:?}, ready after {ready:?} ({:?} of it the answer)", answer.latency);
        eprintln!("{:?}", log.summary());
        assert_eq!(answer.vm_id, Some(vm.to_string()));
        child.kill().await.unwrap();
        network.detach(vm, request(&network, vm, 0).address).await.unwrap();
    }
}
