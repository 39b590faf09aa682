//! Jobs that wait because somebody wants it so: a snoozed attempt, a pool that is paused or limited.

use std::time::Duration;

use serde_json::{Value, json};
use stoker_schemas::event::{Event, EventData, JobSnoozeRequested, PoolConfigured};
use stoker_schemas::{JobId, Phase, Time};
use stoker_tests::harness::{Life, config};
use stoker_worker::vm::simulated::SimWorld;

use super::{begin, job};

fn rule(paused: bool, max_per_host: Option<u32>) -> PoolConfigured {
    PoolConfigured { paused, max_per_host, host: None, by: "ada".to_owned(), reason: String::new() }
}

fn in_pool(pool: &str) -> Value {
    let mut spec = job("sim.healthy-ms=5");
    spec["pool"] = json!(pool);
    spec
}

fn pools(config: &mut stoker_worker::config::Config) {
    config.pools = ["default", "batch"].map(|name| name.parse().unwrap()).into();
    config.hold = Duration::from_millis(20);
}

/// Commands are obeyed in order: once a later one was, this one was, too.
async fn configure(life: &Life, rule: PoolConfigured) {
    life.configure_pool("batch", rule).await;
    let fence = life.enqueue(in_pool("default")).await;
    life.reaches(fence, Phase::Ready).await;
    life.cancel(fence).await;
    life.reaches(fence, Phase::Cancelled).await;
}

/// A job that fails and then waits for so long.
fn patient(wait_ms: u64) -> Value {
    json!({
        "image": "sim", "kernel_args": "sim.agent=refused", "readiness": {"deadline_ms": 100},
        "retry": {"max_attempts": 2, "base_ms": wait_ms, "cap_ms": wait_ms, "jitter_percent": 0}
    })
}

async fn snooze(life: &Life, id: JobId, by: Duration) {
    let due = life.state(id).due(2).unwrap();
    let (by_whom, reason) = ("ada".to_owned(), String::new());
    let snoozed = JobSnoozeRequested { attempt: 2, until: due.plus(by), by: by_whom, reason };
    life.publish(id, EventData::SnoozeRequested(snoozed)).await;
}

#[tokio::test]
async fn a_snoozed_attempt_waits_until_then_and_starts() {
    let (_dir, _world, life) = begin(|_| {});
    let id = life.enqueue(patient(400)).await;
    life.reaches(id, Phase::Retrying).await;
    snooze(&life, id, Duration::from_millis(300)).await;
    let state = life.until(id, "the second attempt", |state| state.attempts.len() == 2).await;
    let until = state.due(2).unwrap();
    let started = state.attempts.values().next_back().unwrap().started.as_ref().unwrap().at;
    assert!(started >= until, "started at {started}, snoozed until {until}");
    let deferred = state.deferred.as_ref().unwrap();
    assert!(deferred.value.reason.contains("by ada"), "{}", deferred.value.reason);
    life.reaches(id, Phase::Dead).await;
    life.drain().await;
}

#[tokio::test]
async fn a_snooze_outlives_the_worker() {
    let dir = tempfile::tempdir().unwrap();
    let (world, config) = (SimWorld::new(), config(dir.path(), |_| {}));
    let life = Life::begin(&config, &world);
    let id = life.enqueue(patient(100)).await;
    life.reaches(id, Phase::Retrying).await;
    snooze(&life, id, Duration::from_secs(3_600)).await;
    life.until(id, "put back", |state| state.deferred.is_some()).await;
    let log = life.crash().await;
    let life = Life::begin_on(&config, &world, log);
    let other = life.enqueue(job("sim.healthy-ms=5")).await;
    life.reaches(other, Phase::Ready).await;
    assert_eq!(life.state(id).phase(), Phase::Retrying);
    life.cancel(id).await;
    life.drain().await;
}

#[tokio::test]
async fn a_paused_pool_starts_nothing_until_it_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let (world, config) = (SimWorld::new(), config(dir.path(), pools));
    let life = Life::begin(&config, &world);
    let before = life.enqueue(in_pool("batch")).await;
    life.reaches(before, Phase::Ready).await;
    configure(&life, rule(true, None)).await;
    let paused = life.enqueue(in_pool("batch")).await;
    let other = life.enqueue(in_pool("default")).await;
    life.reaches(other, Phase::Ready).await;
    assert_eq!(life.state(paused).phase(), Phase::Queued);
    assert_eq!(life.state(before).phase(), Phase::Ready, "what is up stays");

    // A restart does not resume it.
    let life = Life::begin_on(&config, &world, life.crash().await);
    let other = life.enqueue(in_pool("default")).await;
    life.reaches(other, Phase::Ready).await;
    assert_eq!(life.state(paused).phase(), Phase::Queued);
    configure(&life, rule(false, None)).await;
    life.reaches(paused, Phase::Ready).await;
    life.drain().await;
}

#[tokio::test]
async fn a_limited_pool_has_no_more_vms_than_it_may() {
    let (_dir, world, life) = begin(pools);
    configure(&life, rule(false, Some(2))).await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(life.enqueue(in_pool("batch")).await);
    }
    let other = life.enqueue(in_pool("default")).await;
    life.reaches(other, Phase::Ready).await;
    life.reaches(ids[0], Phase::Ready).await;
    life.reaches(ids[1], Phase::Ready).await;
    let up = |life: &Life| ids.iter().filter(|id| life.state(**id).phase() == Phase::Ready).count();
    assert_eq!((up(&life), world.running()), (2, 3));
    life.stop(ids[0]).await;
    life.until(ids[2], "room for the third", |state| state.phase() == Phase::Ready).await;
    assert_eq!((up(&life), world.running()), (2, 3), "two of the pool and the other");
    configure(&life, rule(false, None)).await;
    life.reaches(ids[3], Phase::Ready).await;
    life.drain().await;
}

/// A host with 32 MiB free, and a job that needs more; the job that takes the rest comes first.
async fn full_but_for(hold: Duration) -> (tempfile::TempDir, Life, JobId, JobId) {
    let (dir, _world, life) = begin(|config| {
        config.hold = hold;
        config.capacity.memory_mib = 512;
    });
    let sized = |mib: u32| {
        let mut spec = job("");
        spec["memory_mib"] = json!(mib);
        spec
    };
    let first = life.enqueue(sized(480)).await;
    life.reaches(first, Phase::Ready).await;
    let second = life.enqueue(sized(256)).await;
    (dir, life, first, second)
}

/// Returns after so long, by the clock of the host: a retry is due.
async fn pass(life: &Life, wait_ms: u64) {
    let mut clock = patient(wait_ms);
    clock["memory_mib"] = json!(16);
    let clock = life.enqueue(clock).await;
    life.reaches(clock, Phase::Dead).await;
}

#[tokio::test]
async fn a_job_that_never_fits_is_recorded_once_and_not_each_time() {
    let (_dir, life, first, second) = full_but_for(Duration::from_millis(20)).await;
    life.until(second, "put back", |state| state.deferred.is_some()).await;
    pass(&life, 4_000).await;
    assert_eq!(life.kinds(second), ["job.enqueued", "job.deferred"], "it was put back three times");
    life.stop(first).await;
    let state = life.reaches(second, Phase::Ready).await;
    assert_eq!(state.attempts.len(), 1, "waiting was no attempt");
    life.drain().await;
}

#[tokio::test]
async fn a_job_that_is_held_is_read_once_however_often_it_is_looked_at() {
    let (_dir, life, first, second) = full_but_for(Duration::from_secs(60)).await;
    pass(&life, 10).await;
    let before = life.log.streams_read();
    let mut clock = patient(3_000);
    clock["memory_mib"] = json!(16);
    let clock = life.enqueue(clock).await;
    // Looks at the log as a whole, which reads no stream.
    let mut head = life.log.head();
    let is_over = || {
        let records = life.log.scan(1, 10_000).unwrap();
        let mut events = records.iter().map(|r| Event::decode(&r.payload, Time::UNIX_EPOCH).unwrap());
        events.any(|event| event.job() == Some(clock) && matches!(event.data, EventData::JobDead(_)))
    };
    let over = async {
        while !is_over() {
            head.changed().await.unwrap();
        }
    };
    stoker_tests::within("three seconds", over).await;
    assert_eq!(life.log.streams_read() - before, 2, "the clock's job was read, once for each attempt");
    assert_eq!(life.kinds(second), ["job.enqueued"]);
    life.stop(first).await;
    life.reaches(second, Phase::Ready).await;
    life.drain().await;
}

#[tokio::test]
async fn a_job_that_is_held_is_cancelled_at_once() {
    let (_dir, life, _first, second) = full_but_for(Duration::from_secs(60)).await;
    life.cancel(second).await;
    let state = life.reaches(second, Phase::Cancelled).await;
    assert!(state.attempts.is_empty());
    life.drain().await;
}

#[tokio::test]
async fn a_job_without_an_address_is_put_back_and_starts_when_it_is_free() {
    let (_dir, world, life) = begin(|config| config.hold = Duration::from_millis(50));
    let mut spec = job("sim.healthy-ms=5");
    spec["network"] = json!({"static": {"address": "10.0.0.9", "prefix": 8, "gateway": "10.0.0.1"}});
    let first = life.enqueue(spec.clone()).await;
    life.reaches(first, Phase::Ready).await;
    let second = life.enqueue(spec).await;
    let state = life.until(second, "put back", |state| state.deferred.is_some()).await;
    let reason = &state.deferred.as_ref().unwrap().value.reason;
    assert_eq!(reason, "host h-1 has another VM with address 10.0.0.9");
    assert_eq!((state.attempts.len(), world.running()), (0, 1));
    life.stop(first).await;
    let state = life.reaches(second, Phase::Ready).await;
    assert_eq!(state.attempts.len(), 1, "waiting was no attempt");
    life.drain().await;
}
