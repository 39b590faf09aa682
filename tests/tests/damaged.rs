//! A rotten block in one job's events: that job says so, and every other one works, over a restart too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use stoker_schemas::{JobId, Phase};
use stoker_tests::control::Control;
use stoker_tests::harness::{self, Life};
use stoker_tests::within;
use stoker_worker::config::Config;
use stoker_worker::vm::simulated::SimWorld;
use tempfile::TempDir;

/// Boots and stays up.
const READY: &str = "sim.healthy-ms=1";
/// Never answers: fails, and is tried again in an hour.
const RETRYING: &str = "sim.agent=refused";

fn job(args: &str, memory_mib: u32) -> Value {
    let retry = json!({"max_attempts": 3, "base_ms": 3_600_000, "cap_ms": 3_600_000});
    let readiness = json!({"deadline_ms": if args == RETRYING { 100 } else { 60_000 }});
    json!({"image": "simulated", "kernel_args": args, "memory_mib": memory_mib, "retry": retry, "readiness": readiness})
}

/// The log's database; tasks that were ended hold it for a moment.
async fn database(log: &Path) -> sled::Db {
    let opened = async {
        loop {
            match sled::Config::new().path(log).open() {
                Ok(db) => return db,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    within("the log is free", opened).await
}

/// Flips a bit in the first event of the job, behind the log's back.
async fn rot(log: &Path, id: JobId) {
    let db = database(log).await;
    let id = id.to_string();
    let blocks = db.scan_prefix("e").map(Result::unwrap);
    let at = |block: &sled::IVec| block.windows(id.len()).position(|bytes| bytes == id.as_bytes());
    let (key, block, at) = blocks.filter_map(|(key, block)| at(&block).map(|at| (key, block, at))).next().unwrap();
    let mut rotten = block.to_vec();
    rotten[at] ^= 4;
    db.insert(key, rotten).unwrap();
    db.flush().unwrap();
}

/// A host with a job in each state of waiting and being up, and one that is to be damaged.
struct Stage {
    data: Arc<TempDir>,
    config: Config,
    world: SimWorld,
}

impl Stage {
    fn new() -> Self {
        let data = Arc::new(tempfile::tempdir().unwrap());
        let config = harness::config(data.path(), |_| {});
        Self { data, config, world: SimWorld::new() }
    }

    fn begin(&self) -> Life {
        Life::begin(&self.config, &self.world)
    }
}

/// `victim` makes the job whose first event then rots, and waits until it is as far as it is to be; `ends` is what
/// becomes of it.
async fn others_go_on(ends: Phase, victim: impl AsyncFn(&Life) -> JobId) {
    let stage = Stage::new();
    let life = stage.begin();
    let control = Control::start_in(stage.data.clone(), life.broker.clone()).await;
    let up = life.enqueue(job(READY, 64)).await;
    life.reaches(up, Phase::Ready).await;
    let rotten = victim(&life).await;
    let retrying = life.enqueue(job(RETRYING, 64)).await;
    life.reaches(retrying, Phase::Retrying).await;
    let known = format!("/v1/jobs/{retrying}");
    control.until("all are known", &known, |job| job["phase"] == "retrying").await;
    control.end().await;
    drop(life.crash().await);
    rot(&stage.config.data.join("log"), rotten).await;

    let life = stage.begin();
    let control = Control::start_in(stage.data.clone(), life.broker.clone()).await;
    let new = life.enqueue(job(READY, 64)).await;
    life.reaches(new, Phase::Ready).await;
    assert_eq!(life.state(up).phase(), Phase::Ready, "the VM that was up stays up");
    assert_eq!(life.state(retrying).phase(), Phase::Retrying);
    let is_over = |job: &Value| job["phase"] == ends.as_str();
    let over = control.until("it is over", &format!("/v1/jobs/{rotten}"), is_over).await;
    assert!(over.to_string().contains("is damaged"), "{over:#}");
    // Nothing is left to do about one whose job ended otherwise.
    let page = if ends == Phase::Dead { "/v1/dead-letters" } else { "/v1/dead-letters?state=done" };
    let is_told = |page: &Value| !page["letters"].as_array().unwrap().is_empty();
    let letters = control.until("it is told of", page, is_told).await;
    let letter = &letters["letters"][0];
    assert_eq!((&letter["work"]["job"], &letter["reason"]), (&json!(rotten), &json!("unreadable")), "{letters:#}");
    life.stop(up).await;
    life.reaches(up, Phase::Stopped).await;
    control.end().await;

    // Rows made anew pass the damage by; the start after it has nothing more to say.
    drop(life.crash().await);
    drop(database(&stage.config.data.join("log")).await);
    let life = stage.begin();
    let control = Control::start(life.broker.clone()).await;
    let path = format!("/v1/jobs/{new}");
    control.until("what came after is known", &path, |job| job["phase"] == "ready").await;
    let letters = control.until("it is told of", page, is_told).await;
    assert_eq!((letters["letters"].as_array().unwrap().len(), &letters["letters"][0]["deaths"]), (1, &json!(1)));
    control.end().await;
    within("drained", life.drain()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotten_queued_job_says_so_and_the_others_go_on() {
    // More memory than there is: it waits.
    let victim = async |life: &Life| life.enqueue(job(READY, 1_000_000)).await;
    others_go_on(Phase::Dead, victim).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotten_job_that_waits_for_another_attempt_says_so_and_the_others_go_on() {
    others_go_on(Phase::Dead, async |life: &Life| {
        let id = life.enqueue(job(RETRYING, 64)).await;
        life.reaches(id, Phase::Retrying).await;
        id
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotten_job_with_a_vm_says_so_and_the_others_go_on() {
    others_go_on(Phase::Stopped, async |life: &Life| {
        let id = life.enqueue(job(READY, 64)).await;
        life.reaches(id, Phase::Ready).await;
        id
    })
    .await;
}
