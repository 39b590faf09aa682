//! Users: what they ask for, through the rules that the API applies, and what they were promised.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use stoker_producer::pools;
use stoker_producer::readmodel::{PoolView, ReadModel};
use stoker_producer::reconcile::publish_again;
use stoker_producer::submit::{Asker, Prepared, Submitter, publish_event};
use stoker_schemas::command::{Command, Context};
use stoker_schemas::decide::decide;
use stoker_schemas::event::{JOB_LEVEL, PoolConfigured, Request};
use stoker_schemas::retry::Jitter;
use stoker_schemas::{Event, EventData, JobId, JobSpec};

use super::plan::{JobKind, LATEST};
use super::trace::Trace;
use crate::say;

/// Wait before what must be said is said again.
const AGAIN: Duration = Duration::from_secs(1);

/// What one user wants now.
#[derive(Debug, Clone)]
pub enum Wish {
    /// A job under this id.
    Enqueue(JobId, JobKind),
    /// Something of a job.
    Of(JobId, What),
    /// A pool paused, or not.
    Pool(String, bool),
}

/// What may be wanted of a job.
#[derive(Debug, Clone, Copy)]
pub enum What {
    /// Not to run.
    Cancel,
    /// To stop.
    Stop,
    /// To be tried again.
    Retry,
    /// To wait longer.
    Snooze,
}

/// What users were told. Clones are the same book.
#[derive(Debug, Clone, Default)]
pub struct Book {
    jobs: Arc<Mutex<BTreeMap<JobId, Promise>>>,
    latest: Arc<Mutex<Option<JobId>>>,
}

/// What was promised of a job.
#[derive(Debug, Clone, Default)]
pub struct Promise {
    /// The broker has it: it will come to an end.
    pub is_confirmed: bool,
}

impl Book {
    /// Everything.
    pub fn lock(&self) -> MutexGuard<'_, BTreeMap<JobId, Promise>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody asks for this job.
    pub fn add(&self, id: JobId) {
        self.lock().entry(id).or_default();
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
    }

    /// A job that somebody asked for.
    pub fn pick(&self, pick: u64) -> Option<JobId> {
        if pick == LATEST {
            return *self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        }
        let book = self.lock();
        let len = u64::try_from(book.len()).unwrap_or(1).max(1);
        book.keys().nth(usize::try_from(pick % len).unwrap_or(0)).copied()
    }
}

/// The spec of a kind of job.
///
/// # Panics
/// When the kind is wrong: a mistake of the generator.
pub fn spec(kind: &JobKind) -> JobSpec {
    let mut raw = json!({
        "image": "simulated",
        "memory_mib": kind.memory_mib,
        "kernel_args": kind.guest,
        "pool": kind.pool,
        "priority": if kind.high { "high" } else { "normal" },
        "readiness": {"deadline_ms": kind.deadline_ms},
        "retry": {"max_attempts": kind.max_attempts, "base_ms": 200, "cap_ms": 2_000},
    });
    if let Some(ttl) = kind.ttl_s {
        raw["ttl_s"] = ttl.into();
    }
    JobSpec::from_value(&raw).expect("a spec of the generator")
}

/// Does what the API does for it.
pub async fn carry_out(wish: Wish, model: ReadModel, submitter: Submitter, book: Book, trace: Trace) {
    match wish {
        Wish::Enqueue(id, kind) => {
            book.add(id);
            let job = Prepared { id, spec: spec(&kind) };
            let answer = submitter.submit(job, &Asker { by: "user".to_owned(), traceparent: None }).await;
            say!(trace, "user: job {id} {}", if answer.is_ok() { "confirmed" } else { "not confirmed" });
            if answer.is_ok() {
                book.lock().entry(id).or_default().is_confirmed = true;
            }
        }
        Wish::Of(id, what) => ask(id, what, &model, &submitter, &trace).await,
        Wish::Pool(pool, paused) => {
            // Whoever lets a pool go on sees to it that it does.
            while !configure(&pool, paused, &model, &submitter).await && !paused {
                say!(trace, "user: pool {pool} does not go on yet");
                tokio::time::sleep(AGAIN).await;
            }
            say!(trace, "user: pool {pool} paused {paused}");
        }
    }
}

/// Whether the pool's row says so now.
async fn configure(pool: &str, paused: bool, model: &ReadModel, submitter: &Submitter) -> bool {
    let known = |pools: Vec<PoolView>| pools.into_iter().find(|known| known.name == pool);
    let before = model.pools().ok().and_then(known);
    let rule = PoolConfigured { paused, max_per_host: None, host: None, by: "user".to_owned(), reason: String::new() };
    let event = Event {
        source: submitter.source().to_owned(),
        subject: pool.to_owned(),
        time: pools::later_than(before.and_then(|known| known.since), submitter.now()),
        epoch: JOB_LEVEL,
        traceparent: None,
        data: EventData::PoolConfigured(rule),
    };
    if publish_event(submitter.broker().as_ref(), &event).await.is_err() {
        return false;
    }
    tokio::time::sleep(AGAIN).await;
    model.pools().ok().and_then(known).is_some_and(|known| known.paused == paused)
}

async fn ask(id: JobId, what: What, model: &ReadModel, submitter: &Submitter, trace: &Trace) {
    let Ok(Some(state)) = model.job(id) else { return };
    let now = submitter.now();
    let request = Request { by: "user".to_owned(), reason: String::new() };
    let command = match what {
        What::Cancel => Command::Cancel(request),
        What::Stop => Command::Stop(request),
        What::Retry => Command::Retry { by: request.by, spec: None },
        What::Snooze => Command::Snooze { until: now.plus(Duration::from_secs(20)), request },
    };
    let facts = match decide(&state, command, Context { now, jitter: Jitter::from_random(0) }) {
        Ok(facts) => facts,
        Err(refused) => {
            say!(trace, "user: {what:?} of {id} refused: {refused}");
            return;
        }
    };
    for (epoch, data) in facts {
        if let EventData::JobRepublished(republished) = data {
            let answer = publish_again(model, submitter, id, republished).await;
            say!(trace, "user: {what:?} of {id} {}", if answer.is_ok() { "accepted" } else { "not accepted" });
            continue;
        }
        let event = Event::about_job(id, epoch, submitter.source(), now, data);
        let answer = publish_event(submitter.broker().as_ref(), &event).await;
        say!(trace, "user: {what:?} of {id} {}", if answer.is_ok() { "accepted" } else { "not accepted" });
    }
}
