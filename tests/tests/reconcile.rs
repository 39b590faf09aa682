//! Jobs of which nothing is heard, on real hosts and brokers: what the control plane makes of them.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a failed expectation is a failed test")]

#[path = "chaos/host.rs"]
mod host;

use std::sync::Arc;
use std::time::Duration;

use host::SimHost;
use lapin::{
    Connection, ConnectionProperties,
    options::{QueueDeleteOptions, QueuePurgeOptions},
};
use serde_json::{Value, json};
use stoker_producer::{
    clock,
    http::CancellationToken,
    readmodel::ReadModel,
    reconcile::{self, Patience},
    submit::{self, Asker, Submitter},
    supersede,
};
use stoker_schemas::{
    Event, JobId, JobState, Phase,
    command::{Command, Context},
    decide::decide,
    event::{DeadReason, JobRepublished, PoolConfigured, Request},
    retry::Jitter,
    spec::Priority,
    topology::Names,
};
use stoker_tests::{
    DEADLINE,
    harness::{Life, config},
    setting, within,
};
use stoker_worker::{
    broker::amqp::{AmqpBroker, AmqpConfig},
    config::Config,
    ports::broker::Broker,
    vm::simulated::SimWorld,
};
use tokio::task::JoinHandle;

/// A front that follows the history and looks after jobs, with little patience.
struct Plane {
    model: ReadModel,
    submitter: Submitter,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Plane {
    fn start(broker: &Arc<dyn Broker>) -> Self {
        Self::patient(broker, Duration::from_secs(2))
    }

    fn patient(broker: &Arc<dyn Broker>, after: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = ReadModel::open(dir.path(), clock::system()).unwrap();
        let submitter = Submitter::new(broker.clone(), "test", clock::system());
        let stop = CancellationToken::new();
        let follow = {
            let (model, broker, stop) = (model.clone(), broker.clone(), stop.clone());
            async move { model.follow(broker, stop).await.unwrap() }
        };
        let supersede = supersede::run(model.clone(), submitter.clone(), stop.clone());
        let patience = Patience { after, grace: Duration::from_secs(1) };
        let reconcile = reconcile::run(model.clone(), submitter.clone(), patience, stop.clone());
        let tasks = vec![tokio::spawn(follow), tokio::spawn(supersede), tokio::spawn(reconcile)];
        Self { model, submitter, stop, tasks, _dir: dir }
    }

    /// Waits until its rows say so.
    async fn until(&self, id: JobId, what: &str, holds: impl Fn(&JobState) -> bool) -> JobState {
        let mut news = self.model.changes();
        let seen = async {
            loop {
                if let Some(state) = self.model.job(id).unwrap().filter(&holds) {
                    return state;
                }
                let _ = news.recv().await;
            }
        };
        let seen = tokio::time::timeout(DEADLINE, seen).await;
        seen.unwrap_or_else(|_| panic!("{what} did not happen; the rows say {:#?}", self.model.job(id).unwrap()))
    }

    async fn reaches(&self, id: JobId, phase: Phase) -> JobState {
        self.until(id, phase.as_str(), |state| state.phase() == phase).await
    }

    async fn enqueue(&self, spec: &Value) -> JobId {
        let prepared = submit::prepare(spec, None).unwrap().remove(0);
        let id = self.submitter.submit(prepared, &Asker::default()).await.unwrap();
        self.until(id, "known", |_| true).await;
        id
    }

    async fn ask(&self, id: JobId, command: Command) {
        let state = self.model.job(id).unwrap().unwrap();
        let context = Context { now: self.submitter.now(), jitter: Jitter::from_random(0) };
        for (epoch, data) in decide(&state, command, context).unwrap() {
            let event = Event::about_job(id, epoch, self.submitter.source(), self.submitter.now(), data);
            submit::publish_event(self.submitter.broker().as_ref(), &event).await.unwrap();
        }
    }

    async fn end(self) {
        self.stop.cancel();
        for task in self.tasks {
            within("the control plane ended", task).await.unwrap();
        }
    }
}

fn cancel() -> Command {
    Command::Cancel(Request { by: "ada".to_owned(), reason: String::new() })
}

/// A pool of its own on a broker that other tests use too, whose queues a host declared that is gone.
struct Place {
    name: String,
    url: String,
    broker: Arc<dyn Broker>,
    dir: tempfile::TempDir,
}

impl Place {
    async fn new(test: &str) -> Option<Self> {
        let url = setting(test, "STOKER_TEST_AMQP_URL")?.to_str().unwrap().to_owned();
        let name = format!("quiet-{}", &uuid::Uuid::now_v7().simple().to_string()[20..]);
        let pools = vec![name.parse().unwrap()];
        let amqp = AmqpConfig { pools, ..AmqpConfig::new(url.as_str()) };
        let broker: Arc<dyn Broker> = Arc::new(AmqpBroker::connect(amqp).await.unwrap());
        Some(Self { name, url, broker, dir: tempfile::tempdir().unwrap() })
    }

    fn job(&self, more: Value) -> Value {
        let mut job = json!({"image": "sim", "pool": self.name, "kernel_args": "sim.healthy-ms=1"});
        job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        job
    }

    fn config(&self, change: impl FnOnce(&mut Config)) -> Config {
        config(self.dir.path(), |config| {
            config.host = self.name.parse().unwrap();
            config.pools = vec![self.name.parse().unwrap()];
            change(config);
        })
    }

    async fn host(&self) -> SimHost {
        SimHost::start(&self.config(|_| {}), &self.url).await
    }

    fn queue(&self) -> String {
        Names::default().jobs_queue(&self.name.parse().unwrap(), Priority::Normal)
    }

    async fn connection(&self) -> Connection {
        Connection::connect(&self.url, ConnectionProperties::default()).await.unwrap()
    }

    /// As `rabbitmqctl purge_queue` does.
    async fn purge(&self) {
        let connection = self.connection().await;
        let channel = connection.create_channel().await.unwrap();
        channel.queue_purge(self.queue().into(), QueuePurgeOptions::default()).await.unwrap();
        let _ = connection.close(200, "bye".into()).await;
    }

    async fn delete(&self) {
        let connection = self.connection().await;
        let channel = connection.create_channel().await.unwrap();
        channel.queue_delete(self.queue().into(), QueueDeleteOptions::default()).await.unwrap();
        let _ = connection.close(200, "bye".into()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_of_a_purged_queue_are_driven_again_and_boot_once() {
    let Some(place) = Place::new("jobs_of_a_purged_queue_are_driven_again_and_boot_once").await else { return };
    // Several control planes do what one does.
    let (plane, other) = (Plane::start(&place.broker), Plane::start(&place.broker));
    let ids = [plane.enqueue(&place.job(json!({}))).await, plane.enqueue(&place.job(json!({}))).await];
    place.purge().await;
    for id in ids {
        let state = plane.until(id, "published again", |state| !state.republished.is_empty()).await;
        let why = &state.republished.first().unwrap().value.reason;
        assert!(why.starts_with("no host has taken it for ") && why.ends_with("its queue is empty"), "{why}");
    }
    let host = place.host().await;
    for id in ids {
        let state = plane.reaches(id, Phase::Ready).await;
        assert_eq!((state.last_attempt(), state.tries().count()), (1, 1));
    }
    assert_eq!(host.world.stats().boots, 2);
    other.end().await;
    plane.end().await;
    host.end(DEADLINE).await;
    place.broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_message_a_job_is_cancelled_expires_and_is_retried() {
    let Some(place) = Place::new("without_a_message_a_job_is_cancelled_expires_and_is_retried").await else { return };
    // So patient that only what is asked for happens.
    let plane = Plane::patient(&place.broker, Duration::from_secs(3_600));
    let cancelled = plane.enqueue(&place.job(json!({}))).await;
    let mortal = plane.enqueue(&place.job(json!({"ttl_s": 1}))).await;
    let retried = plane.enqueue(&place.job(json!({}))).await;
    place.purge().await;
    plane.ask(cancelled, cancel()).await;
    plane.reaches(cancelled, Phase::Cancelled).await;
    let state = plane.reaches(mortal, Phase::Dead).await;
    assert_eq!(state.dead.values().next().unwrap().value.reason, DeadReason::Expired);
    let said = JobRepublished { attempt: 1, by: Some("ada".to_owned()), reason: "ada asked".to_owned() };
    reconcile::publish_again(&plane.model, &plane.submitter, retried, said).await.unwrap();
    let host = place.host().await;
    plane.reaches(retried, Phase::Ready).await;
    assert_eq!(host.world.stats().boots, 1);
    plane.end().await;
    host.end(DEADLINE).await;
    place.broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_queue_was_deleted_is_driven_again_once_there_is_one() {
    let test = "a_job_whose_queue_was_deleted_is_driven_again_once_there_is_one";
    let Some(place) = Place::new(test).await else { return };
    let plane = Plane::start(&place.broker);
    let id = plane.enqueue(&place.job(json!({}))).await;
    place.delete().await;
    let host = place.host().await;
    let state = plane.reaches(id, Phase::Ready).await;
    assert!(!state.republished.is_empty());
    host.until("its host says so", DEADLINE, |host| host.state(id).phase() == Phase::Ready).await;
    assert_eq!(host.world.stats().boots, 1);
    plane.end().await;
    host.end(DEADLINE).await;
    place.broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_never_heard_of_a_cancellation_keeps_no_vm_of_the_job() {
    let test = "a_host_that_never_heard_of_a_cancellation_keeps_no_vm_of_the_job";
    let Some(place) = Place::new(test).await else { return };
    let plane = Plane::start(&place.broker);
    let id = plane.enqueue(&place.job(json!({}))).await;
    plane.ask(id, cancel()).await;
    plane.reaches(id, Phase::Cancelled).await;
    let host = place.host().await;
    let gone = |state: &JobState| state.tries().any(|(_, a)| a.started.is_some() && a.gone.is_some());
    let state = plane.until(id, "the late VM was removed", gone).await;
    assert_eq!((state.phase(), host.world.running()), (Phase::Cancelled, 0));
    plane.end().await;
    host.end(DEADLINE).await;
    place.broker.close().await;
}

#[tokio::test]
async fn in_one_process_nothing_is_published_again_and_requests_are_carried_out() {
    let dir = tempfile::tempdir().unwrap();
    let world = SimWorld::new();
    let life = Life::begin(&config(dir.path(), |_| {}), &world);
    let pause =
        PoolConfigured { paused: true, max_per_host: None, host: None, by: "ada".into(), reason: String::new() };
    life.configure_pool("default", pause.clone()).await;
    let plane = Plane::patient(&life.broker, Duration::from_millis(1));
    let job = json!({"image": "sim", "kernel_args": "sim.healthy-ms=1"});
    let mut mortal = job.clone();
    mortal["ttl_s"] = json!(1);
    let (waits, cancelled, mortal) =
        (plane.enqueue(&job).await, plane.enqueue(&job).await, plane.enqueue(&mortal).await);
    plane.ask(cancelled, cancel()).await;
    plane.reaches(cancelled, Phase::Cancelled).await;
    plane.reaches(mortal, Phase::Dead).await;
    // By now it has waited a thousand times as long as its patience.
    let state = plane.reaches(waits, Phase::Queued).await;
    assert!(state.republished.is_empty());
    life.configure_pool("default", PoolConfigured { paused: false, ..pause }).await;
    plane.reaches(waits, Phase::Ready).await;
    assert_eq!(world.stats().boots, 1);
    plane.end().await;
    drop(life.drain().await);
}
