//! Dead letters without RabbitMQ: the broker in this process writes them into its log, nothing is kept in memory
//! alone, and no start reads them.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a failed expectation is a failed test")]

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::{Value, json};
use stoker_schemas::event::{DeadReason, Event, EventData, JOB_LEVEL, JobDead, JobEnqueued, LetterBody};
use stoker_schemas::{Epoch, JobId, JobSpec};
use stoker_tests::control::Control;
use stoker_tests::harness::{Life, config};
use stoker_tests::within;
use stoker_worker::broker::embedded::EmbeddedBroker;
use stoker_worker::clock::Clock;
use stoker_worker::log::{Append, EventLog, Expected, IndexChange, LogOptions};
use stoker_worker::ports::broker::{About, Broker, Parked};
use stoker_worker::vm::simulated::SimWorld;

const OPEN: &str = "/v1/dead-letters";

fn parked(body: impl Into<Bytes>, reason: &str) -> Parked {
    let about = About { queue: "stoker.jobs.default.normal".to_owned(), ..About::default() };
    let routing_key = "job.enqueued.default.normal".to_owned();
    Parked { routing_key, reason: reason.to_owned(), at: Clock::system().now(), about, body: body.into() }
}

fn spec() -> JobSpec {
    JobSpec::from_value(&json!({"image": "simulated", "kernel_args": "sim.healthy-ms=1"})).unwrap()
}

fn enqueued(id: JobId) -> Event {
    let data = EventData::JobEnqueued(JobEnqueued { spec: spec(), by: "test".to_owned() });
    Event::about_job(id, JOB_LEVEL, "/producers/test", Clock::system().now(), data)
}

fn letters(page: &Value) -> &Vec<Value> {
    page["letters"].as_array().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_parked_survives_the_process_and_settles_its_job() {
    let dir = tempfile::tempdir().unwrap();
    let world = SimWorld::new();
    let config = config(dir.path(), |_| {});
    let life = Life::begin(&config, &world);
    let id = JobId(uuid::Uuid::now_v7());
    let body = enqueued(id).encode().unwrap();
    life.broker.park(parked(b"not json".as_slice(), "not a CloudEvent")).await.unwrap();
    life.broker.park(parked(vec![b'x'; 9 << 20], "too large")).await.unwrap();
    life.broker.park(parked(body, "a newer version")).await.unwrap();
    let log = life.crash().await;
    assert_eq!(log.open_streams(None).count(), 0, "a start reads none of them");

    let life = Life::begin_on(&config, &world, log);
    let control = Control::start(life.broker.clone()).await;
    let page = control.until("all are seen", OPEN, |page| letters(page).len() == 3).await;
    assert_eq!(page["open"], json!({"unreadable": 2, "too_large": 1}));
    let dead = control.until("its job is dead", &format!("/v1/jobs/{id}"), |job| job["phase"] == "dead").await;
    assert_eq!(dead["dead"], json!({"reason": "message_lost", "detail": "a newer version", "at": dead["dead"]["at"]}));
    let letter = letters(&page).iter().find(|letter| letter["work"]["job"] == json!(id)).unwrap();
    let path = format!("{OPEN}/{}", letter["id"].as_str().unwrap());
    let (status, answer) = control.post(&format!("{path}/redrive"), &json!({"reason": "upgraded"})).await;
    assert_eq!((status, &answer["events"]), (202, &json!(["job.retry-scheduled", "message.redriven"])));
    control.until("its job is ready", &format!("/v1/jobs/{id}"), |job| job["phase"] == "ready").await;
    assert_eq!(control.get(&path).await["state"], "redriven");
    let (status, again) = control.post(&format!("{path}/redrive"), &json!({})).await;
    assert_eq!((status, &again["events"]), (200, &json!([])));

    let large = letters(&page).iter().find(|letter| letter["reason"] == "too_large").unwrap();
    let path = format!("{OPEN}/{}", large["id"].as_str().unwrap());
    let whole = control.get(&path).await;
    let body: LetterBody = serde_json::from_value(whole["body"].clone()).unwrap();
    assert!(body.truncated && body.content.len() >= 32 * 1024 && whole["size"] == 9 << 20, "{}", body.content.len());
    let (status, problem) = control.post(&format!("{path}/redrive"), &json!({})).await;
    assert_eq!((status, &problem["detail"]), (409, &json!("only the beginning of its 9437184 bytes is kept")));
    control.end().await;
    life.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_runs_is_not_killed_by_a_dead_double_of_its_message() {
    let dir = tempfile::tempdir().unwrap();
    let world = SimWorld::new();
    let life = Life::begin(&config(dir.path(), |_| {}), &world);
    let control = Control::start(life.broker.clone()).await;
    let id = life.enqueue(json!({"image": "simulated", "kernel_args": "sim.healthy-ms=1"})).await;
    control.until("it is ready", &format!("/v1/jobs/{id}"), |job| job["phase"] == "ready").await;
    let body = enqueued(id).encode().unwrap();
    life.broker.park(parked(body, "a double")).await.unwrap();
    let done = format!("{OPEN}?state=done");
    let page = control.until("its letter needs nothing", &done, |page| letters(page).len() == 1).await;
    assert_eq!(page["letters"][0]["state"], "overtaken");
    assert_eq!(control.model.unsettled(10).unwrap(), []);
    let path = format!("{OPEN}/{}/redrive", page["letters"][0]["id"].as_str().unwrap());
    let (status, problem) = control.post(&path, &json!({})).await;
    assert_eq!(status, 409, "{problem:#}");
    assert_eq!(control.get(&format!("/v1/jobs/{id}")).await["phase"], "ready");
    control.end().await;
    life.drain().await;
}

/// Parks at once; the log writes them together.
const AT_ONCE: usize = 500;

/// A log with so many jobs that ended dead, and as many dead letters.
async fn log_with(dead: u128, dir: &Path) -> EventLog {
    let log = EventLog::open(dir.join("log"), LogOptions::default()).unwrap();
    let (reason, detail) = (DeadReason::AttemptsExhausted, String::new());
    let data = EventData::JobDead(JobDead { attempt: 1, reason, diagnosis: None, detail, spec: spec() });
    let id = JobId(uuid::Uuid::from_u128(1));
    let died = Event::about_job(id, Epoch::first(1), "/hosts/h-1", Clock::system().now(), data);
    let events = [enqueued(id), died].map(|event| Bytes::from(event.encode().unwrap())).to_vec();
    let broker = EmbeddedBroker::open(log.clone(), Clock::system()).unwrap();
    let ids: Vec<u128> = (1..=dead).collect();
    for some in ids.chunks(AT_ONCE) {
        let ended = |n: &u128| Append {
            stream: uuid::Uuid::from_u128(*n),
            expected: Expected::Any,
            events: events.clone(),
            index: IndexChange::Remove,
        };
        log.append(some.iter().map(ended).collect()).await.unwrap();
        let parks = some.iter().map(|n| broker.park(parked(n.to_string(), "not a CloudEvent")));
        join_all(parks).await.into_iter().for_each(|parked| parked.unwrap());
    }
    broker.close().await;
    log
}

/// From the log to a host that has said that it is there: the fastest of some, for what else the machine does only
/// makes one slower.
async fn start_takes(mut log: EventLog, dir: &Path) -> Duration {
    let (world, config) = (SimWorld::new(), config(dir, |_| {}));
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let mut head = log.head();
        let before = *head.borrow();
        let begun = Instant::now();
        let life = Life::begin_on(&config, &world, log);
        within("the host started", head.wait_for(|head| *head > before)).await.unwrap();
        fastest = fastest.min(begun.elapsed());
        log = life.crash().await;
    }
    fastest
}

/// Reading the larger number of them takes many times longer than this.
const NOISE: Duration = Duration::from_millis(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_reads_nothing_of_dead_jobs_and_dead_letters() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let few = start_takes(log_with(1_000, one.path()).await, one.path()).await;
    let many = start_takes(log_with(20_000, other.path()).await, other.path()).await;
    assert!(many <= few * 3 + NOISE, "{few:?} with 1,000 and {many:?} with 20,000: it reads them");
}
