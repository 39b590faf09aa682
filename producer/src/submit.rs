//! A request becomes a job: validate, name it, publish `job.enqueued`, wait for the confirm. There
//! is no success before the broker has it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::Value;
use stoker_schemas::event::{DecodeError, JOB_LEVEL, JobEnqueued};
use stoker_schemas::spec::{FieldError, SpecErrors};
use stoker_schemas::{Event, EventData, JobId, JobSpec, limits, topology};
use stoker_worker::ports::broker::{Broker, BrokerError, CONTENT_EVENT, Outgoing};
use uuid::Uuid;

use crate::clock::Clock;

/// Jobs in one request: enough for a fleet, few enough that one answer lists them all.
pub const MAX_JOBS_PER_REQUEST: usize = 1_000;
/// Publishes of one request under way at once; confirms come in batches, so more gains nothing.
const PUBLISHES_IN_FLIGHT: usize = 64;
/// Errors listed in one refusal; the first ones are enough to see what is wrong with the rest.
const MAX_ERRORS: usize = 100;

/// A validated job with its name, not published yet.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Its id: new, or that of its idempotency key.
    pub id: JobId,
    /// What to boot.
    pub spec: JobSpec,
}

/// Who asks, and for what trace.
#[derive(Debug, Clone, Default)]
pub struct Asker {
    /// For people (`cli/ada`, `webhook/github`).
    pub by: String,
    /// W3C trace context to go with the job.
    pub traceparent: Option<String>,
}

/// Why an event could not be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// It cannot be written as a message.
    #[error("the event cannot be written: {0}")]
    Encode(#[from] DecodeError),
    /// The broker did not confirm it.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// Why not all jobs of a request were submitted.
#[derive(Debug)]
pub struct Interrupted {
    /// Ids that were confirmed.
    pub confirmed: Vec<JobId>,
    /// The first failure.
    pub cause: PublishError,
}

/// Publishes one event where it belongs; returns when the broker has confirmed it.
pub async fn publish_event(broker: &dyn Broker, event: &Event) -> Result<(), PublishError> {
    let (routing_key, delay) = topology::route(event);
    let body = Bytes::from(event.encode()?);
    let message = Outgoing { routing_key, message_id: event.id(), content_type: CONTENT_EVENT, delay, body };
    Ok(broker.publish(message).await?)
}

/// Validates one job or a list of them; all errors of all jobs at once. `key` is the request's
/// idempotency key: it names a single job itself, and the jobs of a list with their position.
pub fn prepare(request: &Value, key: Option<&str>) -> Result<Vec<Prepared>, SpecErrors> {
    let single = std::slice::from_ref(request);
    let (items, listed) = request.as_array().map_or((single, false), |list| (list.as_slice(), true));
    let wrong = |message: String, hint: &str| {
        SpecErrors(vec![FieldError { field: "(jobs)".to_owned(), message, hint: hint.to_owned() }])
    };
    if items.is_empty() {
        return Err(wrong("the list is empty".to_owned(), "send at least one job"));
    }
    if items.len() > MAX_JOBS_PER_REQUEST {
        let message = format!("{} jobs in one request, at most {MAX_JOBS_PER_REQUEST} are taken", items.len());
        return Err(wrong(message, "split the list"));
    }
    let mut errors = Vec::new();
    let mut prepared = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let key = key.map(|key| if listed { format!("{key}#{index}") } else { key.to_owned() });
        match prepare_one(item, key) {
            Ok(job) => prepared.push(job),
            Err(SpecErrors(found)) => errors.extend(found.into_iter().map(|mut error| {
                if listed {
                    error.field = format!("[{index}].{}", error.field);
                }
                error
            })),
        }
        if errors.len() >= MAX_ERRORS {
            break;
        }
    }
    if errors.is_empty() { Ok(prepared) } else { Err(SpecErrors(errors)) }
}

fn prepare_one(item: &Value, key: Option<String>) -> Result<Prepared, SpecErrors> {
    let mut spec = JobSpec::from_value(item)?;
    if let Some(key) = key {
        check_key(&key)?;
        spec.idempotency_key.get_or_insert(key);
    }
    let id = match &spec.idempotency_key {
        Some(key) => JobId::from_key(spec.pool.as_str(), key),
        None => JobId(Uuid::now_v7()),
    };
    Ok(Prepared { id, spec })
}

/// The key comes from a header, past the spec's own validation.
fn check_key(key: &str) -> Result<(), SpecErrors> {
    let good =
        !key.is_empty() && key.len() <= limits::MAX_IDEMPOTENCY_KEY_BYTES && key.chars().all(|c| !c.is_control());
    if good {
        return Ok(());
    }
    Err(SpecErrors(vec![FieldError {
        field: "idempotency_key".to_owned(),
        message: "is empty, too long or contains control characters".to_owned(),
        hint: format!("1 to {} printable bytes", limits::MAX_IDEMPOTENCY_KEY_BYTES),
    }]))
}

/// Publishes jobs under a producer's name.
#[derive(Clone)]
pub struct Submitter {
    broker: Arc<dyn Broker>,
    source: String,
    clock: Clock,
}

impl Submitter {
    /// `name` is this producer's; events say `/producers/<name>`.
    pub fn new(broker: Arc<dyn Broker>, name: &str, clock: Clock) -> Self {
        Self { broker, source: format!("/producers/{name}"), clock }
    }

    /// Who our events say they are from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The time that our events carry.
    pub fn now(&self) -> stoker_schemas::Time {
        (self.clock)()
    }

    /// The broker that is published to.
    pub fn broker(&self) -> &Arc<dyn Broker> {
        &self.broker
    }

    /// Publishes one job; its id once the broker has confirmed it.
    pub async fn submit(&self, job: Prepared, asker: &Asker) -> Result<JobId, PublishError> {
        let Prepared { id, spec } = job;
        let enqueued = EventData::JobEnqueued(JobEnqueued { spec, by: asker.by.clone() });
        let mut event = Event::about_job(id, JOB_LEVEL, &self.source, self.now(), enqueued);
        event.traceparent.clone_from(&asker.traceparent);
        publish_event(self.broker.as_ref(), &event).await?;
        Ok(id)
    }

    /// Publishes many jobs, several at a time. When one fails, those under way are still awaited
    /// and told, the others are not begun.
    pub async fn submit_all(&self, jobs: Vec<Prepared>, asker: &Asker) -> Result<(), Interrupted> {
        let failed = AtomicBool::new(false);
        let wanted = stream::iter(jobs).take_while(|_| std::future::ready(!failed.load(Ordering::Relaxed)));
        let mut results = wanted.map(|job| self.submit(job, asker)).buffer_unordered(PUBLISHES_IN_FLIGHT);
        let mut confirmed = Vec::new();
        let mut first_failure = None;
        while let Some(result) = results.next().await {
            match result {
                Ok(id) => confirmed.push(id),
                Err(cause) => {
                    failed.store(true, Ordering::Relaxed);
                    first_failure.get_or_insert(cause);
                }
            }
        }
        if let Some(cause) = first_failure {
            return Err(Interrupted { confirmed, cause });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_error_of_every_job_comes_at_once() {
        let jobs = json!([{"image": "golden"}, {"image": "../etc", "vcpus": 0}, {"memory": 1}]);
        let SpecErrors(errors) = prepare(&jobs, None).unwrap_err();
        let fields: Vec<_> = errors.iter().map(|e| e.field.as_str()).collect();
        assert!(fields.contains(&"[1].image") && fields.contains(&"[1].vcpus"), "{fields:?}");
        assert!(fields.contains(&"[2].image") && fields.contains(&"[2].memory"), "{fields:?}");
    }

    #[test]
    fn a_key_names_the_same_jobs_every_time() {
        let jobs = json!([{"image": "golden"}, {"image": "golden"}]);
        let ids = || prepare(&jobs, Some("deploy-7")).unwrap().into_iter().map(|p| p.id).collect::<Vec<_>>();
        assert_eq!(ids(), ids());
        assert_ne!(ids()[0], ids()[1]);
        let single = prepare(&jobs[0], Some("deploy-7")).unwrap()[0].id;
        assert_eq!(single, JobId::from_key("default", "deploy-7"));
    }

    #[test]
    fn without_a_key_every_request_is_a_new_job() {
        let job = json!({"image": "golden"});
        assert_ne!(prepare(&job, None).unwrap()[0].id, prepare(&job, None).unwrap()[0].id);
    }

    #[test]
    fn empty_oversized_and_badly_keyed_requests_are_refused() {
        assert!(prepare(&json!([]), None).is_err());
        assert!(prepare(&Value::Array(vec![json!({"image": "a"}); MAX_JOBS_PER_REQUEST + 1]), None).is_err());
        assert!(prepare(&json!({"image": "a"}), Some("")).is_err());
        assert!(prepare(&json!({"image": "a"}), Some("a\nb")).is_err());
    }
}
