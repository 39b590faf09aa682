//! Health is about the work, and what was counted outlives the process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use stoker_producer::clock;
use stoker_producer::readmodel::{Filter, ReadModel};
use stoker_producer::work::{Why, Work};
use stoker_schemas::Event;
use stoker_worker::metrics::render;
use stoker_worker::ports::broker::{BrokerStatus, CONTENT_EVENT, HistoryEntry};
use support::client::Client;
use support::story::{Story, host_started};
use support::{SOON, Server};

const AFTER: Duration = Duration::from_millis(200);

/// Waits until the work is so.
async fn until(server: &Server, what: &str, wanted: impl Fn(&Work) -> bool) {
    let mut work = server.work.clone();
    let is_so = tokio::time::timeout(SOON, work.wait_for(|work| wanted(work))).await;
    assert!(is_so.is_ok_and(|seen| seen.is_ok()), "{what}: {:?}", server.work.borrow());
}

async fn is_stalled(server: &Server) {
    until(server, "stalled", |work| work.blocked_by(Why::NothingStarts).count() == 1).await;
}

async fn flows(server: &Server) {
    until(server, "flows", |work| work.is_known && work.blocked.is_empty()).await;
}

/// The event of a job that was just enqueued through the API.
async fn enqueue(client: &Client<'_>, server: &Server, job: &Value) -> Event {
    assert_eq!(client.post("/v1/jobs", job).await.status(), StatusCode::ACCEPTED);
    let newest = server.model.list(&Filter::default(), None, 1).unwrap().jobs[0].id;
    server.model.events(newest).unwrap().remove(0)
}

#[tokio::test]
async fn jobs_that_wait_while_a_host_has_room_and_nothing_starts_are_a_failure_with_a_name() {
    let server = Server::start_watching(AFTER).await;
    let client = Client::of(&server);
    server.tell(&[host_started("h-01")]).await;
    let enqueued = enqueue(&client, &server, &json!({"image": "golden"})).await;
    is_stalled(&server).await;

    let sentence = "1 job waits in pool default, 1 host has room, and nothing has started for";
    let answer = client.get("/health").await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let health: Value = answer.json().await.unwrap();
    assert_eq!((&health["ok"], &health["work"]["state"]), (&json!(false), &json!("stalled")));
    assert!(health["work"]["reason"].as_str().unwrap().starts_with(sentence), "{health}");
    let ready = client.json("/ready").await;
    assert_eq!((&ready["ready"], &ready["work"]["state"]), (&json!(true), &json!("stalled")));
    assert!(ready["needs"][0].as_str().unwrap().starts_with(sentence), "{ready}");
    let overview = client.get("/").await.text().await.unwrap();
    assert!(overview.contains("Needs you") && overview.contains(sentence), "{overview}");
    let metrics = client.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("stoker_work_stalled{reason=\"nothing_starts\"} 1\n"), "{metrics}");

    // A pause is a reason to wait, and so is a broker that is away, of which is told elsewhere.
    assert_eq!(client.post("/v1/pools/default/pause", &json!({})).await.status(), StatusCode::ACCEPTED);
    flows(&server).await;
    assert_eq!(client.json("/health").await["work"], json!({"state": "flowing"}));
    assert_eq!(client.post("/v1/pools/default/resume", &json!({})).await.status(), StatusCode::ACCEPTED);
    is_stalled(&server).await;
    server.broker.status.send_replace(BrokerStatus::Down("connection refused".into()));
    until(&server, "is not known", |work| !work.is_known).await;
    server.broker.status.send_replace(BrokerStatus::Connected);
    is_stalled(&server).await;

    server.tell(&Story::after(&enqueued).started(1, 3, "192.168.100.17").events).await;
    flows(&server).await;
    assert_eq!(client.get("/health").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_pool_that_no_host_serves_has_a_name_of_its_own_and_does_not_fail_the_whole() {
    let server = Server::start_watching(AFTER).await;
    let client = Client::of(&server);
    server.tell(&[host_started("h-01")]).await;
    enqueue(&client, &server, &json!({"image": "golden", "pool": "gpu"})).await;
    until(&server, "unserved", |work| work.blocked_by(Why::NoHost).count() == 1).await;
    let health = client.json("/health").await;
    assert_eq!((&health["ok"], &health["work"]["state"]), (&json!(true), &json!("unserved")));
    let reason = health["work"]["reason"].as_str().unwrap();
    assert!(reason.starts_with("no host serves pool gpu, and 1 job waits in it for"), "{reason}");
    let metrics = client.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("stoker_work_stalled{reason=\"no_host\"} 1\n"), "{metrics}");
}

fn entries(events: &[Event]) -> Vec<HistoryEntry> {
    let entry = |(offset, event): (u64, &Event)| HistoryEntry {
        offset,
        content_type: CONTENT_EVENT.to_owned(),
        routing_key: String::new(),
        body: event.encode().unwrap().into(),
    };
    (0..).zip(events).map(entry).collect()
}

#[tokio::test]
async fn what_was_counted_outlives_the_process_and_counts_each_event_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut events = Story::failed_then_ready("twice").events;
    events.extend(Story::ready_at_first("once").events);
    let model = ReadModel::open(dir.path(), clock::system()).unwrap();
    model.apply(&entries(&events)).unwrap();
    let told = render(&model.totals().metrics());
    for line in [
        "stoker_jobs_enqueued_total 2\n",
        "stoker_attempts_total{outcome=\"ready\",cause=\"none\"} 2\n",
        "stoker_attempts_total{outcome=\"failed\",cause=\"agent_not_listening\"} 1\n",
        "stoker_boot_duration_seconds_count 2\n",
        "stoker_boot_stage_duration_seconds_count{stage=\"kernel_started\"} 2\n",
        "stoker_queue_wait_seconds_count 3\n",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    drop(model);
    let model = ReadModel::open(dir.path(), clock::system()).unwrap();
    assert_eq!(render(&model.totals().metrics()), told);
    model.rewind();
    model.apply(&entries(&events)).unwrap();
    assert_eq!(render(&model.totals().metrics()), told, "told again, nothing is counted again");
}
