//! Jobs while the RabbitMQ node is killed (-9): under load, again and again, what was confirmed is
//! booted, once; a node that lost its history by it stops no work; and who enqueues over HTTP meanwhile
//! gets a clear answer.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a failed expectation is a failed test")]

#[path = "chaos/creeping.rs"]
mod creeping;
#[path = "chaos/host.rs"]
mod host;
#[path = "chaos/lost_history.rs"]
mod lost_history;
#[path = "chaos/node.rs"]
mod node;
#[path = "chaos/outages.rs"]
mod outages;
#[path = "chaos/unusable.rs"]
mod unusable;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use host::SimHost;
use node::Node;
use serde_json::json;
use stoker_producer::submit;
use stoker_schemas::{
    JobId, JobSpec, Phase,
    event::{Event, EventData, JOB_LEVEL, JobEnqueued},
};
use stoker_tests::harness;
use stoker_worker::{
    broker::amqp::{AmqpBroker, AmqpConfig},
    clock::Clock,
    ports::broker::Broker,
    supervisor::Capacity,
};
use tokio::{sync::watch, task::JoinSet};

/// Times the node is killed.
const KILLS: usize = 10;
/// Jobs confirmed between two kills: each kill then falls into publishing and booting.
const JOBS_BETWEEN_KILLS: usize = 100;
/// Producers at once.
const PRODUCERS: usize = 8;
/// A node needs about five seconds to start, on a busy machine several times that; clients wait
/// before they connect again.
const PATIENCE: Duration = Duration::from_secs(120);

/// What producers have to say.
struct Confirmed {
    jobs: Mutex<BTreeSet<JobId>>,
    count: watch::Sender<usize>,
    failures: watch::Sender<usize>,
}

/// Enqueues jobs until told to stop. A publish that failed may have arrived or not: it is made
/// again, and counts when it is confirmed.
async fn produce(broker: Arc<AmqpBroker>, told: Arc<Confirmed>, stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        let id = JobId(uuid::Uuid::now_v7());
        let spec = JobSpec::from_value(&json!({"image": "simulated", "kernel_args": "sim.healthy-ms=20"})).unwrap();
        let data = EventData::JobEnqueued(JobEnqueued { spec, by: "test".to_owned() });
        let event = Event::about_job(id, JOB_LEVEL, "/producers/test", Clock::system().now(), data);
        while submit::publish_event(broker.as_ref(), &event).await.is_err() {
            told.failures.send_modify(|n| *n += 1);
        }
        told.jobs.lock().unwrap().insert(id);
        told.count.send_modify(|n| *n += 1);
    }
}

async fn confirmed(told: &Confirmed, wanted: usize) {
    let mut count = told.count.subscribe();
    let reached = tokio::time::timeout(PATIENCE, count.wait_for(|n| *n >= wanted)).await.is_ok();
    assert!(reached, "stuck at {} of {wanted} jobs", *told.count.borrow());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dying_broker_confirmed_boots_once() {
    let Some(node) = Node::start("what_a_dying_broker_confirmed_boots_once").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let config = harness::config(dir.path(), |config| {
        // Room for all: nothing is put back for want of it.
        config.capacity = Capacity { slots: 60_000, vcpus: 60_000, memory_mib: 60_000 * 256 };
        config.max_booting = 256;
    });
    let host = SimHost::start(&config, &node.url).await;
    let producer = AmqpConfig { pools: config.pools.clone(), ..AmqpConfig::new(node.url.as_str()) };
    let producer = Arc::new(AmqpBroker::connect(producer).await.unwrap());
    let told =
        Arc::new(Confirmed { jobs: Mutex::default(), count: watch::Sender::new(0), failures: watch::Sender::new(0) });
    let (stop, stopped) = watch::channel(false);
    let mut producers = JoinSet::new();
    for _ in 0..PRODUCERS {
        producers.spawn(produce(producer.clone(), told.clone(), stopped.clone()));
    }

    node.knows_its_streams().await;
    let mut wanted = 0;
    for _ in 0..KILLS {
        wanted = *told.count.borrow() + JOBS_BETWEEN_KILLS;
        confirmed(&told, wanted).await;
        node.kill_9().await;
        node.start_again().await;
    }
    confirmed(&told, wanted + JOBS_BETWEEN_KILLS).await;
    stop.send_replace(true);
    tokio::time::timeout(PATIENCE, producers.join_all()).await.expect("a producer hangs");

    let jobs = told.jobs.lock().unwrap().clone();
    let ready = |host: &SimHost, id: &JobId| host.state(*id).phase() == Phase::Ready;
    let mut open = jobs.clone();
    host.until("every confirmed job is ready", PATIENCE, |host| {
        open.retain(|id| !ready(host, id));
        open.is_empty()
    })
    .await;
    for id in &jobs {
        let state = host.state(*id);
        let proofs = state.attempts.values().filter(|a| a.ready.is_some()).count();
        assert_eq!((state.attempts.len(), proofs), (1, 1), "{state:#?}");
    }
    let stats = host.world.stats();
    assert_eq!((stats.boots, host.world.running(), stats.address_conflicts), (jobs.len() as u64, jobs.len(), 0));
    eprintln!(
        "{} jobs over {KILLS} kills, {} publishes failed and were made again",
        jobs.len(),
        *told.failures.borrow()
    );
    producer.close().await;
    host.end(PATIENCE).await;
}
