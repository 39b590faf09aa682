//! kill -9 of the whole process: in the middle of a boot, and with VMs running.

use serde_json::Value;
use stoker_schemas::{JobId, Phase};

use crate::stage::{Needs, Stage, Up, eventually};

/// VMs of the test that takes VMs over.
const VMS: usize = 3;

async fn stop_all(up: &mut Up, stage: &Stage, ids: &[JobId]) {
    let names: Vec<_> = ids.iter().map(ToString::to_string).collect();
    let mut arguments = vec!["stop"];
    arguments.extend(names.iter().map(String::as_str));
    let (code, _, stderr) = up.stoker(&arguments).await;
    assert_eq!(code, 0, "{stderr}");
    for id in ids {
        up.reaches(*id, Phase::Stopped).await;
    }
    stage.assert_nothing_left();
}

async fn killed_in_a_boot(test: &str, driver: Needs, image: &str, arguments: &[&str]) {
    let Some(stage) = Stage::open(test, driver, image) else { return };
    let mut up = stage.up(&["--no-vm"]).await;
    let id = up.enqueue(&[&[image], arguments].concat()).await;
    // The VMM itself, not what is said of it: nothing may depend on how far the telling has come.
    eventually("a VMM starts", async || (!stage.vmms().is_empty()).then_some(())).await;
    up.crash().await;

    let mut up = stage.up(&["--no-vm"]).await;
    let job = up.reaches(id, Phase::Ready).await;
    let vmms = stage.vmms();
    assert_eq!(vmms.len(), 1, "one VMM for one job: {vmms:?} {job:#}");
    let ready = job["attempts"].as_array().unwrap().iter().filter(|a| a["outcome"] == "ready");
    let vms: Vec<_> = ready.map(|a| a["vm"].as_str().unwrap().to_owned()).collect();
    assert_eq!(vms, [vmms[0].1.clone()], "{job:#}");
    stop_all(&mut up, &stage, &[id]).await;
    up.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_a_boot_in_qemu() {
    killed_in_a_boot("killed_in_a_boot_in_qemu", Needs::Qemu, "linux-minimal", &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_a_boot_in_firecracker() {
    let slow = ["--kernel-args", "probe.fault=slow-boot-ms=3000"];
    killed_in_a_boot("killed_in_a_boot_in_firecracker", Needs::Firecracker, "probe", &slow).await;
}

async fn killed_with_ready_vms(test: &str, driver: Needs) {
    let Some(stage) = Stage::open(test, driver, "probe") else { return };
    let mut up = stage.up(&["--no-vm"]).await;
    let mut ids = Vec::new();
    for _ in 0..VMS {
        ids.push(up.enqueue(&["probe"]).await);
    }
    for id in &ids {
        up.reaches(*id, Phase::Ready).await;
    }
    let before = stage.vmms();
    assert_eq!(before.len(), VMS, "{before:?}");
    up.crash().await;
    assert_eq!(stage.vmms(), before, "VMs outlive their worker");

    let mut up = stage.up(&["--no-vm"]).await;
    for id in &ids {
        let adopted = |job: &Value| job["attempts"][0]["adopted"].as_u64() == Some(1);
        let job = up.job(*id, "is taken over", adopted).await;
        assert_eq!(job["phase"], "ready", "{job:#}");
        assert_eq!(stage.ask(&job, "/health").await["vmId"], job["attempts"][0]["vm"], "{job:#}");
    }
    assert_eq!(stage.vmms(), before, "the same processes");
    stop_all(&mut up, &stage, &ids).await;
    up.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_with_ready_vms_in_qemu() {
    killed_with_ready_vms("killed_with_ready_vms_in_qemu", Needs::Qemu).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_with_ready_vms_in_firecracker() {
    killed_with_ready_vms("killed_with_ready_vms_in_firecracker", Needs::Firecracker).await;
}

/// What VMs counted is told, also by one that ended before its minute was over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_vmms_count_is_kept_for_prometheus() {
    let test = "what_vmms_count_is_kept_for_prometheus";
    let Some(stage) = Stage::open(test, Needs::Firecracker, "probe") else { return };
    let mut up = stage.up(&["--no-vm"]).await;
    let id = up.enqueue(&["probe"]).await;
    up.reaches(id, Phase::Ready).await;
    stop_all(&mut up, &stage, &[id]).await;
    up.end().await;
    let file = std::fs::read_to_string(stage.data().join("metrics.prom")).unwrap();
    let value = |name: &str| -> u64 {
        let line = file.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in {file}")).parse().unwrap()
    };
    // A lease and an answer over HTTP, each way.
    assert!(value("stoker_vmm_net_received_bytes_total") > 300, "{file}");
    assert!(value("stoker_vmm_net_sent_bytes_total") > 300, "{file}");
    assert_eq!(value("stoker_vmm_seccomp_faults_total"), 0, "{file}");
}

/// A VMM that is there and answers nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vmm_that_hangs_is_ended() {
    let Some(stage) = Stage::open("a_vmm_that_hangs_is_ended", Needs::Firecracker, "probe") else { return };
    let mut up = stage.up(&["--no-vm"]).await;
    let id = up.enqueue(&["probe"]).await;
    up.reaches(id, Phase::Ready).await;
    let (pid, _) = stage.vmms().remove(0);
    let stopped = std::process::Command::new("kill").args(["-STOP", &pid.to_string()]).status().unwrap();
    assert!(stopped.success());
    let job = up.reaches(id, Phase::Stopped).await;
    let gone = &job["attempts"][0]["gone"];
    assert_eq!(gone["why"], "exited", "{job:#}");
    assert!(gone["detail"].as_str().unwrap().contains("did not answer three times"), "{job:#}");
    stage.assert_nothing_left();
    up.end().await;
}
