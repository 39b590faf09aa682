//! A host that is asked to end says the last word on what it did: no other host boots it again.

use std::time::Duration;

use serde_json::json;
use stoker_producer::submit;
use stoker_schemas::{
    JobId, JobSpec, Phase,
    event::{Event, EventData, JOB_LEVEL, JobEnqueued},
    spec::Priority,
};
use stoker_tests::{
    conformance::broker::{quiet, subscribe},
    harness,
};
use stoker_worker::{
    broker::amqp::{AmqpBroker, AmqpConfig},
    clock::Clock,
    ports::broker::{Broker, Source},
};

use crate::{PATIENCE, host::SimHost, node::Node};

const TEST: &str = "what_boots_while_a_host_drains_is_acknowledged";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_boots_while_a_host_drains_is_acknowledged() {
    let Some(node) = Node::start(TEST).await else { return };
    let dir = tempfile::tempdir().unwrap();
    let config = harness::config(dir.path(), |_| {});
    let producer = AmqpBroker::connect(AmqpConfig::new(node.url.as_str())).await.unwrap();
    let host = SimHost::start(&config, &node.url).await;
    let id = JobId(uuid::Uuid::now_v7());
    let life = format!("sim.healthy-ms={}", Duration::from_secs(1).as_millis());
    let spec = JobSpec::from_value(&json!({"image": "simulated", "kernel_args": life})).unwrap();
    let data = EventData::JobEnqueued(JobEnqueued { spec, by: "test".to_owned() });
    let event = Event::about_job(id, JOB_LEVEL, "/producers/test", Clock::system().now(), data);
    submit::publish_event(&producer, &event).await.unwrap();
    host.until("it boots", PATIENCE, |host| host.state(id).phase() == Phase::Booting).await;
    host.end(PATIENCE).await;
    // Another host would get it, and boot it again.
    let lane = Source::Jobs(config.pools[0].clone(), Priority::Normal);
    let mut other = subscribe(&producer, lane, 1).await;
    quiet(&mut other).await;
    producer.close().await;
}
