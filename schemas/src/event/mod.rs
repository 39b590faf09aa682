//! What happened: the facts that Stoker stores, publishes and shows. On the wire they are
//! CloudEvents 1.0 (`codec`); here they are values.
//!
//! An event's id follows from (subject, epoch, step), so that the same fact told twice is the
//! same event, whoever tells it and however often the broker delivers it.

mod codec;
mod data;
mod payload;
mod samples;

pub use codec::{DecodeError, SPEC_VERSION, TYPE_PREFIX};
pub use data::EventData;
pub use payload::*;
pub use samples::{sample, samples};

use crate::id::{Epoch, HostName, JobId, LetterId};
use crate::time::Time;

/// One fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Who says so: `/hosts/<name>` or `/producers/<name>`.
    pub source: String,
    /// The job (its UUID) or host it is about.
    pub subject: String,
    /// When.
    pub time: Time,
    /// Which try at the job; attempt 0 for the job as a whole.
    pub epoch: Epoch,
    /// W3C trace context of whoever enqueued the job.
    pub traceparent: Option<String>,
    /// What.
    pub data: EventData,
}

/// Beginning of the `source` of what hosts say; then the host's name.
pub const HOST_SOURCE: &str = "/hosts/";

/// Epoch of events about the job as a whole.
pub const JOB_LEVEL: Epoch = Epoch { attempt: 0, delivery: 0 };

impl Event {
    /// A fact about a job.
    pub fn about_job(job: JobId, epoch: Epoch, source: &str, time: Time, data: EventData) -> Self {
        Self { source: source.to_owned(), subject: job.to_string(), time, epoch, traceparent: None, data }
    }

    /// Deterministic id: the same fact has the same.
    pub fn id(&self) -> String {
        format!("{}/{}/{}", self.subject, self.epoch, self.step())
    }

    /// What tells this fact from others of the same subject and epoch. Facts about a try name its
    /// host: a message that was published twice can start the same epoch on two.
    pub fn step(&self) -> String {
        let step = self.data.step(self.time);
        match self.host().filter(|_| self.data.is_about_try()) {
            Some(host) => format!("{step}@{host}"),
            None => step,
        }
    }

    /// The host whose try this is about, or that says so; `None` for what producers say.
    pub fn host(&self) -> Option<HostName> {
        match &self.data {
            EventData::AttemptStarted(e) => Some(e.host.clone()),
            EventData::AttemptSuperseded(e) => Some(e.host.clone()),
            _ => self.source.strip_prefix(HOST_SOURCE)?.parse().ok(),
        }
    }

    /// The job this is about; `None` for events about hosts, pools and dead letters.
    pub fn job(&self) -> Option<JobId> {
        if self.data.is_about_job() { self.subject.parse().ok() } else { None }
    }

    /// The dead letter this is about.
    pub fn letter(&self) -> Option<LetterId> {
        if self.data.is_about_letter() { self.subject.parse().ok() } else { None }
    }
}

#[cfg(test)]
mod tests;
