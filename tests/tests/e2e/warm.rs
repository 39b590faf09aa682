//! VMs that are up before their job comes, with real ones.

use std::process::Command;

use serde_json::Value;
use stoker_schemas::Phase;

use crate::stage::{Needs, Stage, Up, eventually};

const KEPT: usize = 2;

/// What the host says of its warm VMs, once it is as asked.
async fn warm(up: &mut Up, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let url = format!("{}/v1/hosts", up.server().await);
    let look = async || {
        let hosts: Value = reqwest::get(&url).await.ok()?.json().await.ok()?;
        Some(hosts[0]["warm"][0].clone()).filter(|warm| wanted(warm))
    };
    eventually(what, look).await
}

async fn full(up: &mut Up) {
    warm(up, "all are ready", |warm| warm["ready"] == KEPT).await;
}

fn spawned(job: &Value) -> &str {
    let stages = job["attempts"][0]["stages"].as_array().unwrap();
    let spawned = stages.iter().find(|mark| mark["name"] == "spawned");
    spawned.unwrap_or_else(|| panic!("{job:#}"))["detail"].as_str().unwrap()
}

/// Handed over, proven as the job's own, replaced; then ended by hand, crashed, and drained.
async fn kept_and_handed_over(test: &str, driver: Needs, image: &str) {
    let Some(stage) = Stage::open(test, driver, image) else { return };
    let keep = format!("{image}={KEPT}");
    let mut up = stage.up_prewarmed(&["--no-vm", "--warm", &keep]).await;
    full(&mut up).await;
    let id = up.enqueue(&[image]).await;
    let job = up.reaches(id, Phase::Ready).await;
    assert!(spawned(&job).contains("taken from the warm pool"), "{job:#}");
    let attempt = &job["attempts"][0];
    assert!(attempt["proof"]["body"].as_str().unwrap().contains(attempt["vm"].as_str().unwrap()), "{job:#}");
    full(&mut up).await;
    // A template in the making is one more for a while.
    eventually("one more than are kept", async || (stage.vmms().len() == KEPT + 1).then_some(())).await;

    // One that dies while it waits is replaced.
    let of_job = attempt["vm"].as_str().unwrap();
    let victim = stage.vmms().into_iter().find(|(_, vm)| vm != of_job).unwrap();
    let killed = Command::new("kill").args(["-9", &victim.0.to_string()]).status().unwrap();
    assert!(killed.success());
    eventually("the dead one is replaced", async || {
        let now = stage.vmms();
        (now.len() == KEPT + 1 && now.iter().all(|(_, vm)| *vm != victim.1)).then_some(())
    })
    .await;
    full(&mut up).await;

    // The next worker keeps the job's VM, and none of those that were nobody's.
    let before = stage.vmms();
    up.crash().await;
    let mut up = stage.up_prewarmed(&["--no-vm"]).await;
    up.job(id, "is adopted", |job| job["attempts"][0]["adopted"] == 1).await;
    let after = stage.vmms();
    assert_eq!(after.iter().map(|(_, vm)| vm.as_str()).collect::<Vec<_>>(), [of_job], "{before:?}");
    let (code, _, stderr) = up.stoker(&["stop", &id.to_string()]).await;
    assert_eq!(code, 0, "{stderr}");
    up.reaches(id, Phase::Stopped).await;
    stage.assert_nothing_left();
    up.end().await;

    // A worker that ends in order takes its warm VMs with it.
    let mut up = stage.up_prewarmed(&["--no-vm", "--warm", &keep]).await;
    full(&mut up).await;
    up.end().await;
    stage.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_and_handed_over_in_qemu() {
    kept_and_handed_over("kept_and_handed_over_in_qemu", Needs::Qemu, "linux-minimal").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_and_handed_over_in_firecracker() {
    kept_and_handed_over("kept_and_handed_over_in_firecracker", Needs::Firecracker, "probe").await;
}

/// A guest that stays and stops answering is seen before a job gets it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_stopped_answering_is_not_handed_over() {
    let test = "one_that_stopped_answering_is_not_handed_over";
    let Some(stage) = Stage::open(test, Needs::Firecracker, "probe") else { return };
    let mut up = stage.up(&["--no-vm", "--warm", "probe=1"]).await;
    warm(&mut up, "it is ready", |warm| warm["ready"] == 1).await;
    let (pid, first) = stage.vmms().remove(0);
    let stopped = Command::new("kill").args(["-STOP", &pid.to_string()]).status().unwrap();
    assert!(stopped.success());
    let replaced = async || stage.vmms().into_iter().all(|(_, vm)| vm != first).then_some(());
    eventually("it is replaced", replaced).await;
    let now = warm(&mut up, "the next is ready", |warm| warm["ready"] == 1).await;
    assert_eq!(now["failure"], Value::Null, "{now:#}");
    up.end().await;
    stage.assert_nothing_left();
}
