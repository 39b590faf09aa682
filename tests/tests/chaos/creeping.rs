//! What must not stop a host little by little: a producer's repeated requests, jobs that end dead, and messages
//! that cannot even be parked.

use std::time::Duration;

use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{BasicGetOptions, BasicPublishOptions},
    types::AMQPValue,
};
use serde_json::json;
use stoker_producer::submit;
use stoker_schemas::{
    JobId, JobSpec, Phase, Time,
    event::{Event, EventData, JOB_LEVEL, JobEnqueued},
    spec::Priority,
    topology::Names,
};
use stoker_tests::{harness, within};
use stoker_worker::{
    broker::amqp::{AmqpBroker, AmqpConfig, MAX_BODY_BYTES},
    clock::Clock,
    ports::broker::Broker,
};

use crate::{PATIENCE, host::SimHost, node::Node};

/// VMs that may boot at once, and so deliveries that the broker hands out.
const AT_ONCE: u32 = 3;

async fn enqueue(broker: &dyn Broker, healthy_after: Duration, messages: u32) -> JobId {
    publish(broker, &format!("sim.healthy-ms={}", healthy_after.as_millis()), messages).await
}

async fn publish(broker: &dyn Broker, life: &str, messages: u32) -> JobId {
    let id = JobId(uuid::Uuid::now_v7());
    let spec = json!({"image": "simulated", "kernel_args": life, "retry": {"max_attempts": 1}});
    let spec = JobSpec::from_value(&spec).unwrap();
    let data = EventData::JobEnqueued(JobEnqueued { spec, by: "test".to_owned() });
    let event = Event::about_job(id, JOB_LEVEL, "/producers/test", Clock::system().now(), data);
    for _ in 0..messages {
        submit::publish_event(broker, &event).await.unwrap();
    }
    id
}

async fn ready(host: &SimHost, id: JobId) -> (Time, Time) {
    host.until("the job is ready", PATIENCE, |host| host.state(id).phase() == Phase::Ready).await;
    let state = host.state(id);
    assert_eq!(state.attempts.len(), 1, "{state:#?}");
    let attempt = state.attempts.values().next().unwrap();
    (attempt.started.as_ref().unwrap().at, attempt.ready.as_ref().unwrap().at)
}

/// A node, a host that it feeds, and a producer.
struct Place {
    node: Node,
    host: SimHost,
    producer: AmqpBroker,
    _dir: tempfile::TempDir,
}

impl Place {
    /// `None`, and said so, where no node can be made. The broker's limits are as usual but for what is changed.
    async fn open(test: &str, limits: impl Fn(&mut AmqpConfig)) -> Option<Self> {
        let node = Node::start(test).await?;
        let dir = tempfile::tempdir().unwrap();
        let config = harness::config(dir.path(), |config| config.max_booting = AT_ONCE);
        let host = SimHost::start_with(&config, &node.url, &limits).await;
        let mut amqp = AmqpConfig { pools: config.pools.clone(), ..AmqpConfig::new(node.url.as_str()) };
        limits(&mut amqp);
        let producer = AmqpBroker::connect(amqp).await.unwrap();
        Some(Self { node, host, producer, _dir: dir })
    }

    async fn end(self) {
        self.producer.close().await;
        self.host.end(PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_a_job_that_boots_keep_no_place() {
    let test = "messages_of_a_job_that_boots_keep_no_place";
    let Some(place) = Place::open(test, |_| {}).await else { return };
    let Place { host, producer, .. } = &place;
    for _ in 0..4 {
        let id = enqueue(producer, Duration::from_millis(200), AT_ONCE).await;
        ready(host, id).await;
    }
    assert_eq!(host.world.running(), 4, "one VM for each job");
    // As many as before boot at once: each has started before the first of them is ready.
    let mut ids = Vec::new();
    for _ in 0..AT_ONCE {
        ids.push(enqueue(producer, Duration::from_secs(2), 1).await);
    }
    let mut times = Vec::new();
    for id in ids {
        times.push(ready(host, id).await);
    }
    let last_started = times.iter().map(|(started, _)| *started).max();
    let first_ready = times.iter().map(|(_, ready)| *ready).min();
    assert!(last_started < first_ready, "deliveries are held for ever: {times:?}");
    place.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_jobs_stop_nothing() {
    // A hundred thousand in earnest; what is full at two is full at any number.
    let place = Place::open("dead_jobs_stop_nothing", |amqp| amqp.dead_max_length = 2).await;
    let Some(place) = place else { return };
    let Place { host, producer, .. } = &place;
    let mut hopeless = Vec::new();
    for _ in 0..5 * AT_ONCE {
        hopeless.push(publish(producer, "sim.boot=refused", 1).await);
    }
    for id in hopeless {
        host.until("the job is dead", PATIENCE, |host| host.state(id).phase() == Phase::Dead).await;
    }
    // More than are handed out at once: their messages come when those of the dead were acknowledged.
    for _ in 0..2 * AT_ONCE {
        let id = enqueue(producer, Duration::from_millis(10), 1).await;
        ready(host, id).await;
    }
    place.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_too_large_to_be_parked_goes_once() {
    let test = "a_message_too_large_to_be_parked_goes_once";
    let Some(place) = Place::open(test, |_| {}).await else { return };
    let Place { node, host, producer, .. } = &place;
    let connection = Connection::connect(&node.url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let names = Names::default();
    let queue = names.jobs_queue(&AmqpConfig::new(node.url.as_str()).pools[0], Priority::Normal);
    let body = vec![b'x'; MAX_BODY_BYTES + 1];
    let published = channel.basic_publish(
        "".into(),
        queue.as_str().into(),
        BasicPublishOptions::default(),
        &body,
        BasicProperties::default(),
    );
    published.await.unwrap().await.unwrap();
    let dead = within("it is among the dead letters", async {
        loop {
            let options = BasicGetOptions { no_ack: true };
            if let Some(found) = channel.basic_get(names.dead_queue().into(), options).await.unwrap() {
                return found.delivery;
            }
            // RabbitMQ does not say when it has moved a message.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(dead.data.len(), body.len(), "as it was");
    let headers = dead.properties.headers().clone().unwrap_or_default();
    let Some(AMQPValue::LongString(why)) = headers.inner().get("x-first-death-reason") else { panic!("{headers:?}") };
    assert_eq!(why.to_string(), "rejected", "at once, and not when it had been delivered fifty times");
    // And the lane delivers.
    let id = enqueue(producer, Duration::from_millis(10), 1).await;
    ready(host, id).await;
    place.end().await;
}
