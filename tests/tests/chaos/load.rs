//! Producers that enqueue all the time, a host that boots what they enqueue, and the books of both.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

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
use tokio::{sync::watch, task::JoinSet, time::MissedTickBehavior};

use crate::{PATIENCE, host::SimHost};

/// Producers at once.
const PRODUCERS: usize = 8;
/// Between two jobs of a producer: less than a busy machine boots, so that a new job waits for no others.
const PACE: Duration = Duration::from_millis(50);

/// What producers have to say.
struct Confirmed {
    jobs: Mutex<BTreeSet<JobId>>,
    count: watch::Sender<usize>,
    failures: watch::Sender<usize>,
}

/// Jobs that come all the time, and the host that takes them.
pub struct Load {
    pub host: SimHost,
    producer: Arc<AmqpBroker>,
    confirmed: Arc<Confirmed>,
    stop: watch::Sender<bool>,
    producers: JoinSet<()>,
    _data: tempfile::TempDir,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// Jobs that were confirmed.
    pub jobs: usize,
    /// Of these, those that are not ready.
    pub lost: usize,
    /// VMs booted beyond one for each job.
    pub doubled: usize,
    /// VMs that no job owns, and addresses in use twice.
    pub leaked: usize,
    /// Publishes that failed and were made again.
    pub failures: usize,
}

impl Load {
    pub async fn start(url: &str) -> Self {
        let data = tempfile::tempdir().unwrap();
        let config = harness::config(data.path(), |config| {
            // Room for all: nothing is put back for want of it.
            config.capacity = Capacity { slots: 60_000, vcpus: 60_000, memory_mib: 60_000 * 256 };
            config.max_booting = 256;
        });
        let host = SimHost::start(&config, url).await;
        let producer = AmqpConfig { pools: config.pools.clone(), ..AmqpConfig::new(url) };
        let producer = Arc::new(AmqpBroker::connect(producer).await.unwrap());
        let confirmed = Arc::new(Confirmed {
            jobs: Mutex::default(),
            count: watch::Sender::new(0),
            failures: watch::Sender::new(0),
        });
        let (stop, stopped) = watch::channel(false);
        let mut producers = JoinSet::new();
        for _ in 0..PRODUCERS {
            producers.spawn(produce(producer.clone(), confirmed.clone(), stopped.clone()));
        }
        Self { host, producer, confirmed, stop, producers, _data: data }
    }

    /// Waits until so many more jobs are confirmed.
    pub async fn goes_on(&self, more: usize) {
        let mut count = self.confirmed.count.subscribe();
        let wanted = *count.borrow_and_update() + more;
        let reached = tokio::time::timeout(PATIENCE, count.wait_for(|n| *n >= wanted)).await.is_ok();
        assert!(reached, "stuck at {} of {wanted} jobs", *self.confirmed.count.borrow());
    }

    /// Waits until a job that is enqueued now is ready: the way through broker and host is free again.
    pub async fn works_again(&self) {
        let id = JobId(uuid::Uuid::now_v7());
        let enqueued = tokio::time::timeout(PATIENCE, enqueue(&self.producer, &self.confirmed, id)).await;
        enqueued.expect("the broker takes no job");
        self.host.until("a new job is ready", PATIENCE, |host| is_ready(host, &id)).await;
    }

    /// Ends the producers, waits for what they enqueued, and ends the host.
    pub async fn end(self) -> Outcome {
        self.stop.send_replace(true);
        tokio::time::timeout(PATIENCE, self.producers.join_all()).await.expect("a producer hangs");
        let jobs = std::mem::take(&mut *self.confirmed.jobs.lock().unwrap());
        let mut open = jobs.clone();
        // What is not ready in time is counted below.
        self.host
            .holds(PATIENCE, |host| {
                open.retain(|id| !is_ready(host, id));
                open.is_empty()
            })
            .await;
        let tries: usize = jobs.iter().map(|id| self.host.state(*id).attempts.len()).sum();
        let (stats, running) = (self.host.world.stats(), self.host.world.running());
        let ready = jobs.len() - open.len();
        let outcome = Outcome {
            jobs: jobs.len(),
            lost: open.len(),
            doubled: tries.max(stats.boots as usize).saturating_sub(jobs.len()),
            leaked: running.saturating_sub(ready) + stats.address_conflicts as usize,
            failures: *self.confirmed.failures.borrow(),
        };
        self.producer.close().await;
        self.host.end(PATIENCE).await;
        outcome
    }
}

fn is_ready(host: &SimHost, id: &JobId) -> bool {
    host.state(*id).phase() == Phase::Ready
}

/// Enqueues jobs until it is to stop.
async fn produce(broker: Arc<AmqpBroker>, confirmed: Arc<Confirmed>, stop: watch::Receiver<bool>) {
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !*stop.borrow() {
        pace.tick().await;
        enqueue(&broker, &confirmed, JobId(uuid::Uuid::now_v7())).await;
    }
}

/// A publish that failed may have arrived or not: it is made again, and counts when it is confirmed.
async fn enqueue(broker: &AmqpBroker, confirmed: &Confirmed, id: JobId) {
    let spec = JobSpec::from_value(&json!({"image": "simulated", "kernel_args": "sim.healthy-ms=20"})).unwrap();
    let data = EventData::JobEnqueued(JobEnqueued { spec, by: "test".to_owned() });
    let event = Event::about_job(id, JOB_LEVEL, "/producers/test", Clock::system().now(), data);
    while let Err(error) = submit::publish_event(broker, &event).await {
        tracing::warn!(%error, "job not confirmed");
        confirmed.failures.send_modify(|n| *n += 1);
    }
    confirmed.jobs.lock().unwrap().insert(id);
    confirmed.count.send_modify(|n| *n += 1);
}
