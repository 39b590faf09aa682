//! What cases publish: real events, since a broker may look inside. Each carries a short text that
//! tells it from the others.

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use stoker_schemas::{
    Epoch, JobId, JobSpec, PoolName, Time,
    event::{
        DeadReason, Event, EventData, GoneWhy, JOB_LEVEL, JobDead, JobDeferred, JobEnqueued, JobRetryScheduled,
        Request, VmGone,
    },
    spec::Priority,
    topology,
};
use stoker_worker::{
    clock::Clock,
    ports::broker::{CONTENT_EVENT, Delivery, Outgoing},
};

/// Label that holds the text.
const TEXT: &str = "text";

/// A message with any key and body.
pub fn raw(routing_key: impl Into<String>, body: impl Into<String>) -> Outgoing {
    Outgoing {
        routing_key: routing_key.into(),
        message_id: uuid::Uuid::now_v7().to_string(),
        content_type: CONTENT_EVENT,
        delay: None,
        body: Bytes::from(body.into()),
    }
}

fn now() -> Time {
    Clock::system().now()
}

fn message(epoch: Epoch, data: EventData) -> Outgoing {
    let job = JobId(uuid::Uuid::now_v7());
    outgoing(&Event::about_job(job, epoch, "/producers/test", now(), data))
}

fn outgoing(event: &Event) -> Outgoing {
    let (routing_key, delay) = topology::route(event);
    let body = Bytes::from(event.encode().unwrap());
    Outgoing { routing_key, message_id: event.id(), content_type: CONTENT_EVENT, delay, body }
}

fn spec(pool: &str, lane: Priority, text: &str) -> JobSpec {
    let spec = json!({"image": "simulated", "pool": pool, "priority": lane.as_str(), "labels": {TEXT: text}});
    JobSpec::from_value(&spec).unwrap()
}

/// A job for a pool and lane.
pub fn job(pool: &str, lane: Priority, text: impl AsRef<str>) -> Outgoing {
    let spec = spec(pool, lane, text.as_ref());
    message(JOB_LEVEL, EventData::JobEnqueued(JobEnqueued { spec, by: "test".to_owned() }))
}

/// A job put back for a while, as workers of earlier releases did it: the event was the message.
pub fn deferred(pool: &str, lane: Priority, delay: Duration, text: &str) -> Outgoing {
    let data = JobDeferred {
        attempt: 1,
        delay_ms: u64::try_from(delay.as_millis()).unwrap(),
        reason: "full".to_owned(),
        why: None,
        spec: spec(pool, lane, text),
        enqueued_at: now(),
        asked_at: None,
        asked_attempt: 0,
    };
    let event = message(JOB_LEVEL, EventData::JobDeferred(data));
    let routing_key = topology::deferred_key(&pool.parse().unwrap(), lane, delay);
    Outgoing { routing_key, delay: Some(delay), ..event }
}

/// A job whose next attempt waits.
pub fn retrying(pool: &str, lane: Priority, delay: Duration, text: &str) -> Outgoing {
    let data = JobRetryScheduled {
        attempt: 2,
        not_before: now().plus(delay),
        delay_ms: u64::try_from(delay.as_millis()).unwrap(),
        cause: None,
        by: None,
        spec: spec(pool, lane, text),
        enqueued_at: now(),
        asked_at: None,
        asked_attempt: 0,
    };
    message(Epoch::first(2), EventData::JobRetryScheduled(data))
}

/// A dead job.
pub fn dead(pool: &str, text: &str) -> Outgoing {
    let (reason, spec) = (DeadReason::AttemptsExhausted, spec(pool, Priority::Normal, text));
    message(
        Epoch::first(1),
        EventData::JobDead(JobDead { attempt: 1, reason, diagnosis: None, detail: String::new(), spec }),
    )
}

/// A fact that only readers of the history want.
pub fn told(text: &str) -> Outgoing {
    message(Epoch::first(1), EventData::VmGone(VmGone { why: GoneWhy::Stopped, detail: text.to_owned() }))
}

fn request(text: &str) -> Request {
    Request { by: text.to_owned(), reason: String::new() }
}

/// A command to every host.
pub fn command_to_all(text: &str) -> Outgoing {
    message(JOB_LEVEL, EventData::StopRequested(request(text).into()))
}

/// A command to one host.
pub fn command_to(host: &str, text: &str) -> Outgoing {
    outgoing(&Event {
        source: "/producers/test".to_owned(),
        subject: host.to_owned(),
        time: now(),
        epoch: JOB_LEVEL,
        traceparent: None,
        data: EventData::HostDrainRequested(request(text)),
    })
}

/// The text of a delivery.
pub fn text(delivery: &Delivery) -> String {
    text_of(&delivery.body)
}

/// The text of an event of ours; the body itself where it is none.
pub fn text_of(body: &[u8]) -> String {
    let label = |spec: &JobSpec| spec.labels.get(TEXT).cloned().unwrap_or_default();
    match Event::decode(body, now()).map(|event| event.data) {
        Ok(EventData::JobEnqueued(e)) => label(&e.spec),
        Ok(EventData::JobDeferred(e)) => label(&e.spec),
        Ok(EventData::JobRetryScheduled(e)) => label(&e.spec),
        Ok(EventData::JobDead(e)) => label(&e.spec),
        Ok(EventData::VmGone(e)) => e.detail,
        Ok(EventData::StopRequested(e)) => e.by,
        Ok(EventData::HostDrainRequested(e)) => e.by,
        _ => String::from_utf8_lossy(body).into_owned(),
    }
}

/// The pool of a name that is one.
pub(super) fn pool(name: &str) -> PoolName {
    name.parse().unwrap()
}
