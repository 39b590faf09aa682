//! A node that was killed within half a second of declaring its first stream forgets the process
//! that keeps streams: the history is gone until a person repairs it. Work goes on, and afterwards
//! the history has everything.

use std::{collections::BTreeSet, time::Duration};

use lapin::{
    Connection, ConnectionProperties,
    options::{QueueDeclareOptions, QueueDeleteOptions},
    types::{FieldTable, ShortString},
};
use serde_json::json;
use stoker_producer::submit;
use stoker_schemas::{
    JobId, JobSpec, Phase, Time,
    event::{Event, EventData, JOB_LEVEL, JobEnqueued},
    spec::Priority,
    topology::Names,
};
use stoker_tests::harness;
use stoker_worker::{
    broker::amqp::{AmqpBroker, AmqpConfig},
    clock::Clock,
    ports::broker::{Broker, CONTENT_BATCH, HistoryEntry, HistoryStatus, Offset},
};
use tokio::time::timeout;

use crate::{
    PATIENCE,
    host::SimHost,
    node::{Node, kill_9_at_once},
};

const TEST: &str = "a_lost_history_stops_no_work";
/// Nodes that are made until one is killed early enough.
const NODES: usize = 5;
const JOBS: usize = 20;
/// A worker that finds a queue of the wrong type says so at once; it tries again until then.
const REFUSAL: Duration = Duration::from_secs(3);

/// Declares what work needs, and sees it on disk, while another queue is in the place of the stream.
async fn declare_work(node: &Node) {
    let (names, config) = (Names::default(), AmqpConfig::new(node.url.as_str()));
    let connection = Connection::connect(&node.url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let stream = ShortString::from(names.history_stream());
    // One that is not durable is refused.
    channel.queue_declare(stream.clone(), QueueDeclareOptions::default(), FieldTable::default()).await.unwrap();
    let refused = AmqpBroker::connect(AmqpConfig { connect_deadline: REFUSAL, ..config.clone() }).await;
    assert!(refused.is_err(), "it must not put up with a history that is no stream");
    // The last queue it declares.
    node.knows_queue(&names.jobs_queue(&config.pools[0], Priority::Normal)).await;
    channel.queue_delete(stream, QueueDeleteOptions::default()).await.unwrap();
    connection.close(200, "bye".into()).await.unwrap();
}

/// A running node whose history stream is down for good.
async fn node_without_history() -> Option<Node> {
    for _ in 0..NODES {
        let node = Node::start(TEST).await?;
        declare_work(&node).await;
        let pid = node.pid().await;
        let broker = AmqpBroker::connect(AmqpConfig::new(node.url.as_str())).await.unwrap();
        kill_9_at_once(&pid).await;
        broker.close().await;
        if !node.knew_its_streams().await {
            node.start_again().await;
            return Some(node);
        }
    }
    panic!("{NODES} nodes were killed too late to lose anything");
}

async fn enqueue(broker: &dyn Broker, life: &str) -> JobId {
    let id = JobId(uuid::Uuid::now_v7());
    let spec = json!({
        "image": "simulated", "kernel_args": life,
        "readiness": {"deadline_ms": 2_000}, "retry": {"max_attempts": 2, "base_ms": 1, "cap_ms": 5}
    });
    let data = EventData::JobEnqueued(JobEnqueued { spec: JobSpec::from_value(&spec).unwrap(), by: "test".into() });
    let event = Event::about_job(id, JOB_LEVEL, "/producers/test", Clock::system().now(), data);
    submit::publish_event(broker, &event).await.unwrap();
    id
}

fn events(entry: &HistoryEntry) -> Vec<Event> {
    let body: serde_json::Value = serde_json::from_slice(&entry.body).unwrap();
    let events = if entry.content_type == CONTENT_BATCH { body.as_array().unwrap().clone() } else { vec![body] };
    events.iter().map(|e| Event::decode(e.to_string().as_bytes(), Time::UNIX_EPOCH).unwrap()).collect()
}

/// Reads the history from its beginning until it tells of all these.
async fn history_tells(broker: &dyn Broker, mut missing: BTreeSet<(JobId, &'static str)>) {
    let mut reader = broker.history(Offset::First).await.unwrap();
    let told = async {
        while !missing.is_empty() {
            for event in events(&reader.recv().await.expect("the broker was closed")) {
                if let Some(job) = event.job() {
                    missing.retain(|m| *m != (job, event.data.kind()));
                }
            }
        }
    };
    let in_time = timeout(PATIENCE, told).await.is_ok();
    assert!(in_time, "not in the history: {missing:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_history_stops_no_work() {
    let Some(node) = node_without_history().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let config = harness::config(dir.path(), |_| {});
    let host = SimHost::start(&config, &node.url).await;
    let mut status = host.broker.history_status();
    assert!(matches!(*status.borrow(), HistoryStatus::Away(_)), "{:?}", *status.borrow());

    let mut healthy = Vec::new();
    for _ in 0..JOBS {
        healthy.push(enqueue(&*host.broker, "sim.healthy-ms=20").await);
    }
    // Its retry and its end are messages, too.
    let hopeless = enqueue(&*host.broker, "sim.agent=refused").await;
    host.until("every job reaches its end", PATIENCE, |host| {
        let ready = |id: &JobId| host.state(*id).phase() == Phase::Ready;
        healthy.iter().all(ready) && host.state(hopeless).phase() == Phase::Dead
    })
    .await;
    assert_eq!(host.state(hopeless).attempts.len(), 2);
    assert!(matches!(*status.borrow(), HistoryStatus::Away(_)), "{:?}", *status.borrow());

    node.forget_queue(&Names::default().history_stream()).await;
    let back = timeout(PATIENCE, status.wait_for(|s| *s == HistoryStatus::Available)).await;
    back.expect("the history was not declared again").unwrap();
    let mut wanted: BTreeSet<_> = healthy.iter().map(|id| (*id, "attempt.ready")).collect();
    wanted.extend(["attempt.started", "attempt.failed", "job.retry-scheduled", "job.dead"].map(|k| (hopeless, k)));
    // Published while it is there: told by its producer, not by the worker's log.
    wanted.insert((enqueue(&*host.broker, "sim.healthy-ms=20").await, "job.enqueued"));
    history_tells(&*host.broker, wanted).await;
    host.end(PATIENCE).await;
}
