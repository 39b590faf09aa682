//! What only a host with a KVM that runs guests natively can show: a whole Linux in Firecracker.
//! `scripts/dev test --kvm` runs it, and says so where it cannot.

use std::path::Path;

use serde_json::{Value, json};
use stoker_schemas::Phase;
use stoker_tests::skipped;
use stoker_worker::vm::{
    Accel, AccelMode, Trial,
    qemu::{choose, probe_guest},
};

use crate::stage::{Needs, Stage};

const TEST: &str = "kvm::linux_boots_and_ends_in_firecracker";

/// Where a trial guest runs too slowly, Linux does not boot either.
async fn usable(images: &Path) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let guest = probe_guest(images);
    let trial = Trial { qemu: Path::new("qemu-system-x86_64"), guest: &guest, dir: dir.path() };
    let found = choose(AccelMode::Auto, &trial, None).await.unwrap();
    if found.accel != Accel::Kvm {
        skipped(TEST, &found.reason);
    }
    found.accel == Accel::Kvm
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "scripts/dev test --kvm runs it"]
async fn linux_boots_and_ends_in_firecracker() {
    let Some(stage) = Stage::open(TEST, Needs::Firecracker, "linux-minimal") else { return };
    if !usable(stage.images()).await {
        return;
    }
    let stage = stage.with_image_like("linux-minimal", "linux-firecracker", |manifest| {
        // The driver adds what Firecracker needs; what stands there is for software emulation.
        manifest["kernel_args"] = "".into();
        manifest["drivers"] = json!(["firecracker"]);
    });
    let mut up = stage.up(&["--no-vm", "--warm", "linux-firecracker=1"]).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(up.enqueue(&["linux-firecracker", "--memory-mib", "128"]).await);
    }
    for id in ids {
        let job = up.reaches(id, Phase::Ready).await;
        assert_eq!(job["attempts"].as_array().map(Vec::len), Some(1), "{job:#}");
        let (code, _, stderr) = up.stoker(&["stop", &id.to_string()]).await;
        assert_eq!(code, 0, "{stderr}");
        let job = up.job(id, "is cleared away", |job| job["attempts"][0]["gone"] != Value::Null).await;
        let (_, console, _) = up.stoker(&["logs", "--console", &id.to_string()]).await;
        assert!(console.contains("stoker-agent: Restart"), "its agent ended it: {job:#}\n{console}");
    }
    up.end().await;
    stage.assert_nothing_left();
}
