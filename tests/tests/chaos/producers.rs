//! Producers that enqueue all the time, and what they were promised.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::json;
use stoker_producer::submit;
use stoker_schemas::{
    JobId, JobSpec,
    event::{Event, EventData, JOB_LEVEL, JobEnqueued},
};
use stoker_worker::{
    broker::amqp::{AmqpBroker, AmqpConfig},
    clock::Clock,
    ports::broker::Broker,
};
use tokio::{sync::watch, task::JoinSet, time::MissedTickBehavior};

use crate::{PATIENCE, record};

/// Attempts that a job has: each crash of its worker may cost one.
const ATTEMPTS: u32 = 30;

/// What they have to say.
struct Confirmed {
    /// What they take for the time.
    clock: Mutex<Clock>,
    jobs: Mutex<BTreeSet<JobId>>,
    count: watch::Sender<usize>,
    failures: watch::Sender<usize>,
}

/// So many, over one connection.
pub struct Producers {
    broker: Arc<AmqpBroker>,
    confirmed: Arc<Confirmed>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Producers {
    /// Each enqueues a job, waits for its confirm, and enqueues the next at this pace at most.
    pub async fn start(url: &str, number: usize, pace: Duration) -> Self {
        record();
        let broker = Arc::new(AmqpBroker::connect(AmqpConfig::new(url)).await.unwrap());
        let confirmed = Arc::new(Confirmed {
            clock: Mutex::new(Clock::system()),
            jobs: Mutex::default(),
            count: watch::Sender::new(0),
            failures: watch::Sender::new(0),
        });
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for _ in 0..number {
            tasks.spawn(produce(broker.clone(), confirmed.clone(), pace, stopped.clone()));
        }
        Self { broker, confirmed, stop, tasks }
    }

    /// Waits until so many more jobs are confirmed.
    pub async fn goes_on(&self, more: usize) {
        let mut count = self.confirmed.count.subscribe();
        let wanted = *count.borrow_and_update() + more;
        let reached = tokio::time::timeout(PATIENCE, count.wait_for(|n| *n >= wanted)).await.is_ok();
        assert!(reached, "stuck at {} of {wanted} jobs", *self.confirmed.count.borrow());
    }

    /// One more job, now; `None` when it is not confirmed in time.
    pub async fn one(&self) -> Option<JobId> {
        let id = JobId(uuid::Uuid::now_v7());
        let enqueued = tokio::time::timeout(PATIENCE, enqueue(&self.broker, &self.confirmed, id)).await;
        enqueued.ok().map(|()| id)
    }

    /// From now on their events bear another time.
    pub fn set_clock(&self, clock: Clock) {
        *self.confirmed.clock.lock().unwrap() = clock;
    }

    /// Ends them: the jobs that were confirmed, and how many publishes failed and were made again.
    pub async fn end(self) -> (BTreeSet<JobId>, usize) {
        self.stop.send_replace(true);
        tokio::time::timeout(PATIENCE, self.tasks.join_all()).await.expect("a producer hangs");
        self.broker.close().await;
        let jobs = std::mem::take(&mut *self.confirmed.jobs.lock().unwrap());
        (jobs, *self.confirmed.failures.borrow())
    }
}

/// Enqueues jobs until it is to stop.
async fn produce(broker: Arc<AmqpBroker>, confirmed: Arc<Confirmed>, pace: Duration, stop: watch::Receiver<bool>) {
    let mut pace = tokio::time::interval(pace);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !*stop.borrow() {
        pace.tick().await;
        enqueue(&broker, &confirmed, JobId(uuid::Uuid::now_v7())).await;
    }
}

/// A publish that failed may have arrived or not: it is made again, and counts when it is confirmed.
async fn enqueue(broker: &AmqpBroker, confirmed: &Confirmed, id: JobId) {
    let spec = json!({
        "image": "simulated", "kernel_args": "sim.healthy-ms=20",
        "retry": {"max_attempts": ATTEMPTS, "base_ms": 100, "cap_ms": 1_000}
    });
    let spec = JobSpec::from_value(&spec).unwrap();
    let now = confirmed.clock.lock().unwrap().now();
    let data = EventData::JobEnqueued(JobEnqueued { spec, by: "test".to_owned() });
    let event = Event::about_job(id, JOB_LEVEL, "/producers/test", now, data);
    while let Err(error) = submit::publish_event(broker, &event).await {
        tracing::warn!(%error, "job not confirmed");
        confirmed.failures.send_modify(|n| *n += 1);
    }
    confirmed.jobs.lock().unwrap().insert(id);
    confirmed.count.send_modify(|n| *n += 1);
}
