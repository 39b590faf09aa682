//! A delay queue is full: the jobs that need it wait, and nothing else does.

use lapin::{Connection, ConnectionProperties, options::QueueDeclareOptions, types::FieldTable};
use serde_json::{Value, json};
use stoker_producer::submit;
use stoker_schemas::{
    JobId, JobSpec, Phase, Time,
    event::{Event, EventData, JOB_LEVEL, JobEnqueued},
    spec::Priority,
    topology::Names,
};
use stoker_tests::{harness, within};
use stoker_worker::{
    broker::amqp::{AmqpBroker, AmqpConfig},
    clock::Clock,
    ports::broker::Broker,
    supervisor::HOST_STREAM,
};

use crate::{PATIENCE, host::SimHost, node::Node};

const TEST: &str = "a_full_delay_queue_stops_only_the_jobs_that_need_it";
/// VMs that may boot at once, and so deliveries that the broker hands out.
const AT_ONCE: u32 = 3;
/// Jobs that need the full queue: several times as many.
const RETRIES: usize = 12;
/// Waits of 12 to 15 min go through this one.
const TIER_MS: u64 = 1_800_000;
/// It takes so many.
const ROOM: u32 = 2;

async fn enqueue(broker: &dyn Broker, life: &str, retry: Value) -> JobId {
    let id = JobId(uuid::Uuid::now_v7());
    let spec = JobSpec::from_value(&json!({"image": "simulated", "kernel_args": life, "retry": retry})).unwrap();
    let data = EventData::JobEnqueued(JobEnqueued { spec, by: "test".to_owned() });
    let event = Event::about_job(id, JOB_LEVEL, "/producers/test", Clock::system().now(), data);
    submit::publish_event(broker, &event).await.unwrap();
    id
}

/// A job whose retry goes to the full queue.
async fn needs_queue(broker: &dyn Broker) -> JobId {
    let retry = json!({"max_attempts": 3, "base_ms": 900_000, "cap_ms": 900_000, "jitter_percent": 20});
    enqueue(broker, "sim.agent=refused sim.panic-ms=1", retry).await
}

/// Messages in a queue that nobody holds.
async fn depth(url: &str, queue: &str) -> usize {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let found = channel.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap();
    let _ = connection.close(200, "bye".into()).await;
    found.message_count() as usize
}

/// Another process counts: all one can do is look again.
async fn until_depth(url: &str, queue: &str, wanted: usize) {
    let reached = async {
        while depth(url, queue).await != wanted {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    within(&format!("{wanted} messages in {queue}"), reached).await;
}

/// How often the host itself said this, in all its lives.
fn said(host: &SimHost, kind: &str) -> usize {
    let records = host.log.read_stream(HOST_STREAM).unwrap();
    let is_it = |payload: &[u8]| Event::decode(payload, Time::UNIX_EPOCH).is_ok_and(|e| e.data.kind() == kind);
    records.iter().filter(|record| is_it(&record.payload)).count()
}

async fn ends_as(host: &SimHost, id: JobId, phase: Phase) {
    host.until(&format!("{id} is {}", phase.as_str()), PATIENCE, |host| host.state(id).phase() == phase).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_delay_queue_stops_only_the_jobs_that_need_it() {
    let Some(node) = Node::start(TEST).await else { return };
    let (names, dir) = (Names::default(), tempfile::tempdir().unwrap());
    let queue = names.delay_queue(TIER_MS);
    let config = harness::config(dir.path(), |config| config.max_booting = AT_ONCE);
    let producer = AmqpBroker::connect(AmqpConfig::new(node.url.as_str())).await.unwrap();
    node.limit_queue(&queue, ROOM).await;
    let host = SimHost::start(&config, &node.url).await;
    let mut waiting = Vec::new();
    for _ in 0..RETRIES {
        waiting.push(needs_queue(&producer).await);
    }
    // More than could be in hand if a delivery whose retry is refused took the place of another.
    for _ in 0..2 * AT_ONCE {
        let other = enqueue(&producer, "sim.boot=refused", json!({"max_attempts": 1})).await;
        ends_as(&host, other, Phase::Dead).await;
    }
    for id in &waiting {
        ends_as(&host, *id, Phase::Retrying).await;
    }
    assert!(depth(&node.url, &queue).await < RETRIES, "it is not full");
    host.until("the host says so", PATIENCE, |host| said(host, "host.publishing-refused") > 0).await;
    let before = said(&host, "host.publishing-refused");

    host.end(PATIENCE).await;
    let host = SimHost::start(&config, &node.url).await;
    let other = enqueue(&producer, "", json!({"max_attempts": 1})).await;
    ends_as(&host, other, Phase::Ready).await;
    host.until("the next worker says so", PATIENCE, |host| said(host, "host.publishing-refused") > before).await;

    node.lift_limit().await;
    until_depth(&node.url, &queue, RETRIES).await;
    host.until("the host says so", PATIENCE, |host| said(host, "host.publishing-resumed") == 1).await;
    for lane in [Priority::High, Priority::Normal] {
        let queue = names.jobs_queue(&config.pools[0], lane);
        let acknowledged = async { while node.unsettled(&queue).await > 0 {} };
        within(&format!("each delivery of {queue} acknowledged"), acknowledged).await;
    }
    host.end(PATIENCE).await;
    producer.close().await;
}
