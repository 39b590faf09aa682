//! A job whose events on this host cannot be read any more, told as a dead letter: whoever looks after the
//! control plane sees it with its reason, the job is called dead unless it had come up, and everything else goes on.

use stoker_schemas::event::{Event, EventData, GoneWhy, JOB_LEVEL, LetterWork, VmGone};
use stoker_schemas::letter::{Death, GivenUpBy, Letter, dead_lettered};
use stoker_schemas::{Epoch, JobId, Time};

use crate::log::{EventLog, LogError};

/// What the letter says of the work that it was: which message of the job it was cannot be read.
const KIND: &str = "job.enqueued";

/// Why a job cannot go on, in words.
pub fn words(error: &LogError) -> String {
    format!("the job's events in its host's log cannot be read: {error}")
}

/// A job of which not everything can be read.
pub struct Damaged {
    pub job: JobId,
    error: LogError,
    /// The latest attempt that the last events speak of.
    attempt: u32,
    /// The try that had a VM, as far as they say.
    with_vm: Option<Epoch>,
}

impl Damaged {
    /// Reads what can be read behind the damage.
    pub fn new(log: &EventLog, job: JobId, error: LogError, now: Time) -> Self {
        let mut damaged = Self { job, error, attempt: 1, with_vm: None };
        for record in log.read_stream_tail(job.0).unwrap_or_default() {
            // What cannot be decoded either says nothing more.
            let Ok(event) = Event::decode(&record.payload, now) else { continue };
            damaged.learn(&event);
        }
        damaged
    }

    fn learn(&mut self, event: &Event) {
        let attempt = match &event.data {
            EventData::JobRetryScheduled(retry) => retry.attempt,
            EventData::JobDeferred(deferred) => deferred.attempt,
            _ => event.epoch.attempt,
        };
        self.attempt = self.attempt.max(attempt);
        if matches!(event.data, EventData::VmGone(_)) {
            self.with_vm = self.with_vm.filter(|epoch| *epoch != event.epoch);
        } else if event.epoch != JOB_LEVEL {
            self.with_vm = Some(event.epoch);
        }
    }

    /// The event that tells of it.
    pub fn letter(&self, source: &str, now: Time) -> Event {
        let death = Death {
            by: GivenUpBy::Worker(words(&self.error)),
            queue: String::new(),
            exchange: String::new(),
            routing_key: String::new(),
            count: 1,
            at: None,
        };
        let id = self.job.to_string();
        let letter = Letter { death: &death, message_id: Some(&id), content_type: None, body: &[] };
        let mut event = dead_lettered(letter, source, now);
        if let EventData::MessageDeadLettered(letter) = &mut event.data {
            letter.work = Some(LetterWork { job: self.job, attempt: self.attempt, kind: KIND.to_owned() });
        }
        event
    }

    /// The event that says that its VM is gone, if it had one: none of a job's own is removed with what no job owns.
    pub fn gone(&self, source: &str, now: Time) -> Option<Event> {
        let gone = VmGone { why: GoneWhy::Exited, detail: words(&self.error) };
        Some(Event::about_job(self.job, self.with_vm?, source, now, EventData::VmGone(gone)))
    }

    /// Can its place in the log's index be changed? Not where that is what is damaged.
    pub fn can_be_closed(&self) -> bool {
        !matches!(self.error, LogError::Corrupt { what: crate::log::Damage::Index, .. })
    }
}
