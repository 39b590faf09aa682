//! A job's whole life on a simulated host with the real supervisor, log and embedded broker.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a failed expectation is a failed test")]

#[path = "scenario/booting.rs"]
mod booting;
#[path = "scenario/slow.rs"]
mod slow;
#[path = "scenario/waiting.rs"]
mod waiting;
#[path = "scenario/warm.rs"]
mod warm;

use std::time::Duration;

use serde_json::json;
use stoker_schemas::diagnosis::Cause;
use stoker_schemas::event::{DeadReason, GoneWhy, Stage};
use stoker_schemas::{JobState, Phase};
use stoker_tests::harness::{Life, config};
use stoker_worker::vm::simulated::SimWorld;

/// A job whose guest lives as `life` says, with quick retries.
fn job(life: &str) -> serde_json::Value {
    json!({
        "image": "sim", "kernel_args": life,
        "readiness": {"deadline_ms": 2_000},
        "retry": {"max_attempts": 2, "base_ms": 1, "cap_ms": 5}
    })
}

fn begin(change: impl FnOnce(&mut stoker_worker::config::Config)) -> (tempfile::TempDir, SimWorld, Life) {
    let dir = tempfile::tempdir().unwrap();
    let world = SimWorld::new();
    let life = Life::begin(&config(dir.path(), change), &world);
    (dir, world, life)
}

#[tokio::test]
async fn a_healthy_guest_is_ready_and_keeps_running() {
    let (_dir, world, life) = begin(|_| {});
    let id = life.enqueue(job("sim.healthy-ms=5")).await;
    let state = life.reaches(id, Phase::Ready).await;
    let attempt = state.attempts.values().next().unwrap();
    assert!(attempt.ready.as_ref().unwrap().value.body.contains("vmId"));
    let disk = attempt.marks.iter().find(|mark| mark.stage == Stage::DiskReady).unwrap();
    assert!(disk.absent, "a simulated guest has no disk: {disk:?}");
    assert_eq!(world.running(), 1);
    life.stop(id).await;
    let state = life.reaches(id, Phase::Stopped).await;
    assert_eq!(state.attempts.values().next().unwrap().gone.as_ref().unwrap().value.why, GoneWhy::Stopped);
    assert_eq!(world.running(), 0);
    life.drain().await;
}

#[tokio::test]
async fn a_guest_that_never_answers_is_retried_then_dead_with_the_cause() {
    let (_dir, world, life) = begin(|_| {});
    let id = life.enqueue(job("sim.agent=refused")).await;
    let state = life.reaches(id, Phase::Dead).await;
    assert_eq!(state.attempts.len(), 2, "as many as the policy allows");
    let dead = &state.dead.values().next().unwrap().value;
    assert_eq!(dead.reason, DeadReason::AttemptsExhausted);
    assert_eq!(dead.diagnosis.as_ref().unwrap().cause, Cause::AgentNotListening);
    assert_eq!(world.running(), 0);
    life.drain().await;
}

#[tokio::test]
async fn a_panic_fails_at_once_and_names_itself() {
    let (_dir, _world, life) = begin(|_| {});
    let id = life.enqueue(job("sim.agent=refused sim.panic-ms=1")).await;
    let state = life.reaches(id, Phase::Dead).await;
    let cause = state.dead.values().next().unwrap().value.diagnosis.as_ref().unwrap().cause;
    assert_eq!(cause, Cause::KernelPanic);
    life.drain().await;
}

#[tokio::test]
async fn a_guest_that_prints_nothing_is_called_silent() {
    let (_dir, _world, life) = begin(|_| {});
    for (args, remedy) in [("", "add console=ttyS0"), ("console=ttyS0", "uncompressed x86-64 ELF")] {
        let mut spec = job(&format!("{args} sim.boot=silent"));
        spec["readiness"]["deadline_ms"] = json!(2_100);
        spec["retry"]["max_attempts"] = json!(1);
        let id = life.enqueue(spec).await;
        let state = life.reaches(id, Phase::Dead).await;
        let found = state.dead.values().next().unwrap().value.diagnosis.clone().unwrap();
        assert_eq!((found.cause, found.stage), (Cause::GuestSilent, Stage::Spawned), "{found:#?}");
        assert!(found.remedy.contains(remedy), "{found:#?}");
    }
    life.drain().await;
}

#[tokio::test]
async fn cancelling_a_boot_leaves_no_vm() {
    let (_dir, world, life) = begin(|_| {});
    let mut spec = job("sim.agent=never");
    spec["readiness"]["deadline_ms"] = json!(60_000);
    let id = life.enqueue(spec).await;
    life.reaches(id, Phase::Booting).await;
    life.cancel(id).await;
    life.reaches(id, Phase::Cancelled).await;
    assert_eq!(world.running(), 0);
    life.drain().await;
}

#[tokio::test]
async fn cancelling_a_queued_job_means_it_never_boots() {
    let (_dir, world, life) = begin(|c| c.capacity.slots = 1);
    let first = life.enqueue(job("sim.healthy-ms=1")).await;
    life.reaches(first, Phase::Ready).await;
    let second = life.enqueue(job("sim.healthy-ms=1")).await;
    life.cancel(second).await;
    life.stop(first).await;
    let state = life.reaches(second, Phase::Cancelled).await;
    assert!(state.attempts.is_empty());
    life.reaches(first, Phase::Stopped).await;
    assert_eq!(world.running(), 0);
    life.drain().await;
}

#[tokio::test]
async fn a_job_whose_time_to_live_passed_is_dead_without_a_boot() {
    let (_dir, world, life) = begin(|c| c.capacity.slots = 1);
    let first = life.enqueue(job("sim.healthy-ms=1")).await;
    life.reaches(first, Phase::Ready).await;
    let mut spec = job("sim.healthy-ms=1");
    spec["ttl_s"] = json!(60);
    let second = life.enqueue_ago(spec, Duration::from_secs(61)).await;
    life.stop(first).await;
    let state = life.reaches(second, Phase::Dead).await;
    assert_eq!(state.dead.values().next().unwrap().value.reason, DeadReason::Expired);
    assert!(state.attempts.is_empty());
    assert_eq!(world.running(), 0);
    life.drain().await;
}

#[tokio::test]
async fn a_full_host_is_not_an_attempt() {
    let (_dir, _world, life) = begin(|c| c.capacity.slots = 2);
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(life.enqueue(job("sim.healthy-ms=1")).await);
    }
    for id in ids {
        let state = life.reaches(id, Phase::Ready).await;
        assert_eq!(state.attempts.len(), 1);
        life.stop(id).await;
        life.reaches(id, Phase::Stopped).await;
    }
    life.drain().await;
}

#[tokio::test]
async fn a_crash_in_the_middle_of_a_boot_ends_ready_with_one_vm() {
    let (dir, world, life) = begin(|_| {});
    let id = life.enqueue(job("sim.healthy-ms=1000")).await;
    let spawned = |s: &JobState| s.attempts.values().any(|a| a.marks.iter().any(|m| m.stage == Stage::Spawned));
    life.until(id, "spawned", spawned).await;
    let log = life.crash().await;
    let life = Life::begin_on(&config(dir.path(), |_| {}), &world, log);
    let state = life.reaches(id, Phase::Ready).await;
    assert_eq!(world.running(), 1);
    assert_eq!(state.attempts.len(), 1, "adopted, not booted again: {state:#?}");
    life.drain().await;
}

#[tokio::test]
async fn ready_vms_are_adopted_after_a_crash_and_watched() {
    let (dir, world, life) = begin(|_| {});
    let id = life.enqueue(job("sim.healthy-ms=1")).await;
    life.reaches(id, Phase::Ready).await;
    let log = life.crash().await;
    let life = Life::begin_on(&config(dir.path(), |_| {}), &world, log);
    life.until(id, "adopted", |s| s.attempts.values().any(|a| !a.adopted.is_empty())).await;
    assert_eq!(world.running(), 1);
    life.stop(id).await;
    life.reaches(id, Phase::Stopped).await;
    assert_eq!(world.running(), 0);
    life.drain().await;
}

#[tokio::test]
async fn a_vm_that_ended_while_no_worker_ran_is_noticed() {
    let (dir, world, life) = begin(|_| {});
    let id = life.enqueue(job("sim.healthy-ms=1")).await;
    life.reaches(id, Phase::Ready).await;
    let log = life.crash().await;
    world.kill_all();
    let life = Life::begin_on(&config(dir.path(), |_| {}), &world, log);
    let state = life.reaches(id, Phase::Stopped).await;
    assert_eq!(state.attempts.values().next().unwrap().gone.as_ref().unwrap().value.why, GoneWhy::Exited);
    life.drain().await;
}

#[tokio::test]
async fn queued_jobs_survive_a_crash() {
    let (dir, world, life) = begin(|c| c.capacity.slots = 1);
    let first = life.enqueue(job("sim.healthy-ms=1")).await;
    life.reaches(first, Phase::Ready).await;
    let second = life.enqueue(job("sim.healthy-ms=1")).await;
    let log = life.crash().await;
    let life = Life::begin_on(&config(dir.path(), |c| c.capacity.slots = 1), &world, log);
    life.stop(first).await;
    life.reaches(second, Phase::Ready).await;
    assert_eq!(world.running(), 1);
    life.drain().await;
}

#[tokio::test]
async fn a_drained_host_lets_its_vms_run() {
    let (dir, world, life) = begin(|_| {});
    let id = life.enqueue(job("sim.healthy-ms=50")).await;
    life.reaches(id, Phase::Booting).await;
    let log = tokio::time::timeout(Duration::from_secs(30), life.drain()).await.unwrap();
    assert_eq!(world.running(), 1);
    let life = Life::begin_on(&config(dir.path(), |_| {}), &world, log);
    assert_eq!(life.state(id).phase(), Phase::Ready);
    life.drain().await;
}
