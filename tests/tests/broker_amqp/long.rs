//! Attempts that take longer than a message may be held, and jobs that wait longer than that.

use std::time::Duration;

use serde_json::{Value, json};
use stoker_producer::submit;
use stoker_schemas::{
    JobId, JobSpec, Phase,
    event::{Event, EventData, JOB_LEVEL, JobEnqueued, Request},
    spec::Priority,
};
use stoker_tests::{
    conformance::broker::{DEADLINE, HOST, OTHER_HOST, POOL, QUIET, jobs, subscribe},
    harness,
};
use stoker_worker::{
    broker::amqp::{AmqpBroker, AmqpConfig},
    clock::Clock,
    config::Config,
    ports::broker::Broker,
};

use tokio::time::timeout;

use crate::{
    host::SimHost,
    rabbit::{Rabbit, on_rabbit},
};

/// How long an attempt keeps its message here.
const KEPT: Duration = Duration::from_millis(100);

fn settings(data: &std::path::Path, place: &Rabbit) -> (Config, impl Fn(&mut AmqpConfig)) {
    let config = harness::config(data, |config| {
        config.host = HOST.parse().unwrap();
        config.pools = vec![POOL.parse().unwrap()];
        config.settle_after = KEPT;
    });
    let names = place.names.clone();
    (config, move |amqp| amqp.names = names.clone())
}

async fn enqueue(broker: &dyn Broker, spec: Value) -> JobId {
    let mut spec = spec;
    (spec["image"], spec["pool"]) = (json!("sim"), json!(POOL));
    let spec = JobSpec::from_value(&spec).unwrap();
    let id = JobId(uuid::Uuid::now_v7());
    tell(broker, id, EventData::JobEnqueued(JobEnqueued { spec, by: "test".to_owned() })).await;
    id
}

async fn tell(broker: &dyn Broker, id: JobId, data: EventData) {
    let event = Event::about_job(id, JOB_LEVEL, "/producers/test", Clock::system().now(), data);
    submit::publish_event(broker, &event).await.unwrap();
}

async fn until_settled(host: &SimHost, id: JobId) {
    let settled = |host: &SimHost| host.state(id).attempts.values().any(|a| a.message_settled.is_some());
    host.until("the message settled", DEADLINE, settled).await;
    // Published, it is acknowledged; an acknowledgement is on its way when the next event is confirmed.
    let fence = enqueue(&*host.broker, json!({"kernel_args": "sim.healthy-ms=300"})).await;
    host.until("the fence", DEADLINE, |host| host.state(fence).phase() == Phase::Ready).await;
}

/// Its message is gone while it still boots: a worker that dies gives nothing back, and the next one goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_attempt_does_not_keep_its_message_and_outlives_its_worker() {
    on_rabbit("a_long_attempt_does_not_keep_its_message_and_outlives_its_worker", async |place| {
        let dir = tempfile::tempdir().unwrap();
        let (config, names) = settings(dir.path(), place);
        let host = SimHost::start_with(&config, &place.url, &names).await;
        let slow = json!({"kernel_args": "sim.healthy-ms=4000", "readiness": {"deadline_ms": 60_000}});
        let id = enqueue(&*host.broker, slow).await;
        until_settled(&host, id).await;
        let (world, log) = host.crash().await;

        let other = AmqpBroker::connect(place.config(OTHER_HOST)).await.unwrap();
        let mut lane = subscribe(&other, jobs(POOL, Priority::Normal), 10).await;
        // What the fence left may come.
        while let Ok(Some(delivery)) = timeout(QUIET, lane.deliveries.recv()).await {
            let event = Event::decode(&delivery.body, Clock::system().now()).unwrap();
            assert_ne!(event.job(), Some(id), "{delivery:?}");
            delivery.ack.ack().await.unwrap();
        }
        drop(lane);
        other.close().await;

        let host = SimHost::start_on(&config, &place.url, world, log, &names).await;
        host.until("ready", DEADLINE, |host| host.state(id).phase() == Phase::Ready).await;
        assert_eq!(host.state(id).attempts.len(), 1, "{:#?}", host.state(id));
        host.end(DEADLINE).await;
    })
    .await;
}

/// What follows a failure is decided by the host that settled the message, also after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_attempt_that_fails_after_a_restart_is_retried() {
    on_rabbit("a_long_attempt_that_fails_after_a_restart_is_retried", async |place| {
        let dir = tempfile::tempdir().unwrap();
        let (config, names) = settings(dir.path(), place);
        let host = SimHost::start_with(&config, &place.url, &names).await;
        let never = json!({
            "kernel_args": "sim.agent=refused", "readiness": {"deadline_ms": 2_000},
            "retry": {"max_attempts": 2, "base_ms": 1, "cap_ms": 5}
        });
        let id = enqueue(&*host.broker, never).await;
        until_settled(&host, id).await;
        let (world, log) = host.crash().await;
        let host = SimHost::start_on(&config, &place.url, world, log, &names).await;
        host.until("dead", DEADLINE, |host| host.state(id).phase() == Phase::Dead).await;
        assert_eq!(host.state(id).attempts.len(), 2, "{:#?}", host.state(id));
        host.end(DEADLINE).await;
    })
    .await;
}

/// However long a job finds no room, its message comes and goes, and the log does not grow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_without_room_is_kept_by_the_broker_and_recorded_once() {
    on_rabbit("a_job_without_room_is_kept_by_the_broker_and_recorded_once", async |place| {
        let dir = tempfile::tempdir().unwrap();
        let (mut config, names) = settings(dir.path(), place);
        config.hold = Duration::from_millis(20);
        config.capacity.memory_mib = 512;
        let host = SimHost::start_with(&config, &place.url, &names).await;
        let first = enqueue(&*host.broker, json!({"memory_mib": 480})).await;
        host.until("ready", DEADLINE, |host| host.state(first).phase() == Phase::Ready).await;
        let second = enqueue(&*host.broker, json!({"memory_mib": 256})).await;
        host.until("put back", DEADLINE, |host| host.state(second).deferred.is_some()).await;
        // A retry after four seconds is the clock: by then the message was here three times.
        let clock = json!({
            "kernel_args": "sim.agent=refused", "memory_mib": 16, "readiness": {"deadline_ms": 100},
            "retry": {"max_attempts": 2, "base_ms": 4_000, "cap_ms": 4_000, "jitter_percent": 0}
        });
        let clock = enqueue(&*host.broker, clock).await;
        host.until("four seconds", DEADLINE, |host| host.state(clock).phase() == Phase::Dead).await;
        assert_eq!(host.kinds(second), ["job.deferred"]);
        let stop = Request { by: "test".to_owned(), reason: String::new() };
        tell(&*host.broker, first, EventData::StopRequested(stop.into())).await;
        host.until("ready", DEADLINE, |host| host.state(second).phase() == Phase::Ready).await;
        assert_eq!(host.state(second).attempts.len(), 1);
        host.end(DEADLINE).await;
    })
    .await;
}
