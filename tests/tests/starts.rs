//! What a start costs does not depend on how many jobs ended dead.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use stoker_schemas::Phase;
use stoker_tests::control::Control;
use stoker_tests::crowd::Crowd;
use stoker_tests::harness::{self, Life};
use stoker_worker::clock::Clock;
use stoker_worker::log::{Append, EventLog, Expected, IndexChange, LogOptions};
use stoker_worker::vm::simulated::SimWorld;
use tempfile::TempDir;

/// Starts measured; the quickest counts, since whatever else runs here only makes them slower.
const STARTS: usize = 3;
/// Ten times the jobs may take so many times as long, and this more.
const MAX_RATIO: u32 = 3;
const NOISE: Duration = Duration::from_millis(150);
const NEW_JOB: &str = "sim.healthy-ms=1";

/// A host's folder with jobs that ended dead, in its log and in the rows.
async fn with_dead_jobs(jobs: usize) -> Arc<TempDir> {
    let data = Arc::new(tempfile::tempdir().unwrap());
    let log = EventLog::open(data.path().join("log"), LogOptions::default()).unwrap();
    let mut crowd = Crowd::of_the_dead();
    for _ in 0..jobs / 100 {
        let of_one = |_| {
            let told = crowd.tell(Clock::system().now()).unwrap();
            let events = told.iter().map(|event| Bytes::from(event.encode().unwrap())).collect();
            let stream = told[0].job().unwrap().0;
            Append { stream, expected: Expected::Any, events, index: IndexChange::Remove }
        };
        log.append((0..100).map(of_one).collect()).await.unwrap();
    }
    let life = Life::begin_on(&harness::config(data.path(), |_| {}), &SimWorld::new(), log);
    let control = Control::start_in(data.clone(), life.broker.clone()).await;
    let known = |counts: &serde_json::Value| counts["phases"]["dead"] == jobs;
    control.until("all are known", "/v1/counts", known).await;
    control.end().await;
    drop(life.drain().await);
    data
}

/// From nothing until a new job is ready and the page of dead jobs is there.
async fn start(data: &Arc<TempDir>) -> Duration {
    let config = harness::config(data.path(), |_| {});
    let begun = Instant::now();
    let life = Life::begin(&config, &SimWorld::new());
    let control = Control::start_in(data.clone(), life.broker.clone()).await;
    let job = life.enqueue(json!({"image": "simulated", "kernel_args": NEW_JOB})).await;
    life.reaches(job, Phase::Ready).await;
    let dead = control.get("/v1/dead?limit=50").await;
    let took = begun.elapsed();
    assert_eq!(dead["jobs"].as_array().unwrap().len(), 50);
    life.stop(job).await;
    life.reaches(job, Phase::Stopped).await;
    control.end().await;
    drop(life.drain().await);
    took
}

async fn quickest(data: &Arc<TempDir>) -> Duration {
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        starts.push(start(data).await);
    }
    starts.into_iter().min().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_times_the_dead_jobs_cost_a_start_nothing() {
    let (few, many) = (with_dead_jobs(300).await, with_dead_jobs(3_000).await);
    let (with_few, with_many) = (quickest(&few).await, quickest(&many).await);
    assert!(with_many <= with_few * MAX_RATIO + NOISE, "{with_few:?} with 300 dead jobs, {with_many:?} with 3,000");
}
