//! Jobs of which nothing is heard: the broker may have forgotten their messages (a purge, an expiry, a
//! deleted queue, a confirm that was not true), the host that had them may be gone for good, and nobody
//! may be there to carry out a cancellation or a time-to-live. Here they are driven again or ended.
//!
//! What is looked at are rows, some in each pass, those of which nothing was heard longest first. How long that is, is
//! measured here (`Waited`), and only while broker and history are there. A message is published again only where its
//! lane has moved past it, so that a long queue is not doubled; and under the identity that it had, so that hosts
//! know it where the first one comes after all. Several control planes may do this: each hears of the others' work.

mod step;
mod waited;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use stoker_schemas::command::{Command, Context};
use stoker_schemas::decide::decide;
use stoker_schemas::event::{Event, EventData, JOB_LEVEL, JobRepublished};
use stoker_schemas::retry::Jitter;
use stoker_schemas::seeded::{self, Bug};
use stoker_schemas::spec::Priority;
use stoker_schemas::{JobId, JobState, PoolName, topology};
use stoker_worker::ports::broker::{BrokerStatus, CONTENT_EVENT, HistoryStatus, Outgoing};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use step::Patience;
use step::{Heard, Step, step};
pub(crate) use waited::Waited;

use crate::readmodel::{AwaitedJob, ReadModel, ReadModelError};
use crate::submit::{PublishError, Submitter, publish_event};
use crate::supersede::is_about_all;
use crate::view::duration;

/// Wait for a job's message to be taken before it is published again, seconds, unless set otherwise.
pub const DEFAULT_AFTER_S: u64 = 300;
/// The least that may be set: longer than hosts hold a job that does not fit.
pub const MIN_AFTER_S: u64 = 30;
/// The most that may be set.
pub const MAX_AFTER_S: u64 = 86_400;
/// What a host carries out at once, it has carried out and told by then.
const GRACE: Duration = Duration::from_secs(10);
/// Passes in the time that is waited.
const PASSES: u32 = 4;
/// Rows of each sort looked at in one pass; the next pass goes on behind them.
const MAX_LOOKED_AT: usize = 512;
/// Jobs acted on in one pass: of many lost messages, the next are for the next pass.
const MAX_ACTS: usize = 128;

impl Patience {
    /// From the setting.
    pub fn new(after: Duration) -> Self {
        Self { after, grace: GRACE.min(after) }
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self::new(Duration::from_secs(DEFAULT_AFTER_S))
    }
}

/// Drives or ends what is silent, until told to stop.
pub async fn run(model: ReadModel, submitter: Submitter, patience: Patience, stop: CancellationToken) {
    let mut pace = tokio::time::interval((patience.grace / PASSES).max(Duration::from_millis(1)));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut reconciler = Reconciler::new(model, submitter, patience);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = pace.tick() => {}
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            passed = reconciler.pass(Instant::now()) => if let Err(error) = passed {
                tracing::warn!(%error, "jobs that are not heard of are not looked after; trying again");
            },
        }
    }
}

/// Why a pass ended early, or something about a job was not done.
#[derive(Debug, thiserror::Error)]
enum PassError {
    #[error(transparent)]
    Model(#[from] ReadModelError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error(transparent)]
    Republish(#[from] RepublishError),
}

impl PassError {
    /// The next job may be another matter.
    fn is_about_one(&self) -> bool {
        match self {
            Self::Model(_) | Self::Republish(RepublishError::Model(_)) => false,
            Self::Publish(error) | Self::Republish(RepublishError::Publish(error)) => match error {
                PublishError::Encode(_) => true,
                PublishError::Broker(error) => !is_about_all(error),
            },
            Self::Republish(RepublishError::Unknown(_)) => true,
        }
    }
}

type Lane = (PoolName, Priority);

struct Reconciler {
    model: ReadModel,
    submitter: Submitter,
    patience: Patience,
    waited: Waited,
    /// Where the last pass ended, of the urgent ones and the others.
    places: [Vec<u8>; 2],
    /// Jobs about which something was refused, and when: tried again when the patience has passed again.
    refused: BTreeMap<JobId, Instant>,
}

impl Reconciler {
    fn new(model: ReadModel, submitter: Submitter, patience: Patience) -> Self {
        let (waited, places, refused) = (Waited::default(), [Vec::new(), Vec::new()], BTreeMap::new());
        Self { model, submitter, patience, waited, places, refused }
    }

    /// Whether what happens would be heard.
    fn hears(&self) -> bool {
        let broker = self.submitter.broker();
        let is_linked = *broker.status().borrow() == BrokerStatus::Connected;
        is_linked && *broker.history_status().borrow() == HistoryStatus::Available && self.model.is_caught_up()
    }

    async fn pass(&mut self, now: Instant) -> Result<(), PassError> {
        if !self.hears() || seeded::is_on(Bug::NotReconciled) {
            self.waited.forget();
            return Ok(());
        }
        self.waited.note(now, self.model.next_seq());
        let patience = self.patience.after;
        self.refused.retain(|_, at| now.saturating_duration_since(*at) < patience);
        let mut depths = BTreeMap::new();
        let mut acts = 0;
        for (sort, is_urgent) in [true, false].into_iter().enumerate() {
            let found = self.model.awaited(is_urgent, &self.places[sort], MAX_LOOKED_AT)?;
            let is_last = found.len() < MAX_LOOKED_AT;
            let mut place = self.places[sort].clone();
            let mut is_whole = true;
            for (key, job) in found {
                if acts >= MAX_ACTS {
                    is_whole = false;
                    break;
                }
                place = key;
                match self.look(&job, now, &mut depths).await {
                    Ok(has_acted) => acts += usize::from(has_acted),
                    Err(error) if error.is_about_one() => {
                        tracing::warn!(job = %job.id, %error, "nothing is heard of the job, and it cannot be driven again; trying again");
                        self.refused.insert(job.id, now);
                        acts += 1;
                    }
                    Err(error) => return Err(error),
                }
            }
            self.places[sort] = if is_whole && is_last { Vec::new() } else { place };
        }
        Ok(())
    }

    /// Does what is to be done about a job; whether that was something.
    async fn look(&self, job: &AwaitedJob, now: Instant, depths: &mut BTreeMap<Lane, bool>) -> Result<bool, PassError> {
        if self.refused.contains_key(&job.id) {
            return Ok(false);
        }
        let heard = Heard { last: self.waited.since(job.seq, now), first: self.waited.since(job.first_seq, now) };
        let next = step(job, heard, self.patience, self.submitter.broker().may_lose());
        let why = match next {
            Step::Wait => return Ok(false),
            Step::Cancel | Step::Expire => "",
            Step::Republish | Step::Abandon => match self.passed_by(job, depths).await {
                Some(why) => why,
                None => return Ok(false),
            },
        };
        // The row is of an earlier moment than now.
        let Some(state) = self.model.job(job.id)?.filter(|state| state.awaited().as_ref() == Some(&job.awaited)) else {
            return Ok(false);
        };
        match next {
            Step::Wait => {}
            Step::Cancel => self.cancel(&state, job).await?,
            Step::Expire => {
                let Some(spec) = state.spec().cloned() else { return Ok(false) };
                self.settle(&state, Command::Expire { spec, attempt: job.awaited.attempt }).await?;
            }
            Step::Abandon => self.settle(&state, Command::Abandon).await?,
            Step::Republish => {
                let waited = duration(u64::try_from(heard.last.as_millis()).unwrap_or(u64::MAX));
                self.republish(&state, job, format!("no host has taken it for {waited}, and {why}")).await?;
            }
        }
        Ok(true)
    }

    /// Why its message would have been taken by now, if there were one: its lane is empty, or a job
    /// whose message came later was taken. A broker that does not say in time has not said that it is empty.
    async fn passed_by(&self, job: &AwaitedJob, depths: &mut BTreeMap<Lane, bool>) -> Option<&'static str> {
        let (pool, lane) = job.lane.as_ref()?;
        let usual = Duration::from_millis(job.awaited.usual_ms);
        // Where it waited before it was due, what counts is what came after that.
        let due = if usual.is_zero() { Some(job.seq) } else { self.waited.number_after(job.seq, usual) };
        if due.is_some_and(|due| self.model.passed(pool, *lane).is_ok_and(|passed| passed > due)) {
            return Some("jobs behind it were taken");
        }
        let key = (pool.clone(), *lane);
        let is_empty = match depths.get(&key) {
            Some(known) => *known,
            None => {
                let is_empty = self.submitter.broker().depth(pool, *lane).await.is_ok_and(|depth| depth == 0);
                depths.insert(key, is_empty);
                is_empty
            }
        };
        is_empty.then_some("its queue is empty")
    }

    /// A job without a VM is settled as a host would; one whose host is silent, all the same.
    async fn cancel(&self, state: &JobState, job: &AwaitedJob) -> Result<(), PassError> {
        let has_vm = state.tries().any(|(_, a)| a.has_vm());
        let settle = Command::SettleCancel { attempt: job.awaited.attempt };
        self.settle(state, if has_vm { Command::Abandon } else { settle }).await
    }

    async fn settle(&self, state: &JobState, command: Command) -> Result<(), PassError> {
        let now = self.submitter.now();
        let context = Context { now, jitter: Jitter::from_random(0) };
        // Refused where it came to its end meanwhile.
        for (epoch, data) in decide(state, command, context).unwrap_or_default() {
            tracing::warn!(job = %state.id, fact = data.kind(), "no host says what became of the job, it is settled");
            let event = Event::about_job(state.id, epoch, self.submitter.source(), now, data);
            publish_event(self.submitter.broker().as_ref(), &event).await?;
        }
        Ok(())
    }

    async fn republish(&self, state: &JobState, job: &AwaitedJob, reason: String) -> Result<(), PassError> {
        let attempt = job.awaited.attempt;
        let said = JobRepublished { attempt, by: None, reason };
        publish_again(&self.model, &self.submitter, state.id, said).await?;
        tracing::warn!(job = %state.id, attempt, "the job's message may be lost, published again");
        Ok(())
    }
}

/// Why a message is not published again.
#[derive(Debug, thiserror::Error)]
pub enum RepublishError {
    /// The rows.
    #[error(transparent)]
    Model(#[from] ReadModelError),
    /// The broker.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// It was never heard of.
    #[error("the message of attempt {0} is not in the history; cancel the job, then retry it")]
    Unknown(u32),
}

/// Publishes a job's message again, as it was, and then says so.
pub async fn publish_again(
    model: &ReadModel,
    submitter: &Submitter,
    id: JobId,
    said: JobRepublished,
) -> Result<Event, RepublishError> {
    let message = message_of(model, id, said.attempt)?.ok_or(RepublishError::Unknown(said.attempt))?;
    let (routing_key, delay) = topology::route_again(&message);
    let body = Bytes::from(message.encode().map_err(PublishError::from)?);
    let message = Outgoing { routing_key, message_id: message.id(), content_type: CONTENT_EVENT, delay, body };
    submitter.broker().publish(message).await.map_err(PublishError::from)?;
    let event = Event::about_job(id, JOB_LEVEL, submitter.source(), submitter.now(), EventData::JobRepublished(said));
    publish_event(submitter.broker().as_ref(), &event).await?;
    Ok(event)
}

/// The event that an attempt's message is.
fn message_of(model: &ReadModel, id: JobId, attempt: u32) -> Result<Option<Event>, ReadModelError> {
    let events = model.events(id)?;
    let is_first = |data: &EventData| match data {
        EventData::JobEnqueued(_) => attempt == 1,
        EventData::JobRetryScheduled(e) => e.attempt == attempt,
        _ => false,
    };
    let is_put_back = |data: &EventData| matches!(data, EventData::JobDeferred(e) if e.attempt == attempt);
    let found =
        events.iter().find(|e| is_first(&e.data)).or_else(|| events.iter().rev().find(|e| is_put_back(&e.data)));
    Ok(found.cloned())
}

#[cfg(test)]
mod tests;
