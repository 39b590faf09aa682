//! What a callback says. It follows from the event alone, so that every control plane that reads
//! the history says the same under the same id, and a receiver can drop what it has had.

use serde::Serialize;
use stoker_schemas::diagnosis::{Cause, Diagnosis};
use stoker_schemas::event::GoneWhy;
use stoker_schemas::{Event, EventData, JobId, Phase, Time};
use uuid::Uuid;

/// Kinds of events that callbacks tell of.
const NOTABLE: [&str; 4] = ["attempt.ready", "attempt.failed", "job.dead", "vm.gone"];

/// Body of a callback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Payload {
    /// Kind (`job.ready`).
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// When it happened.
    pub timestamp: Time,
    /// What happened.
    pub data: Data,
}

/// What happened to a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Data {
    /// The job.
    pub id: JobId,
    /// Where it then stood.
    pub phase: Phase,
    /// Which attempt.
    pub attempt: u32,
    /// Where its agent answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Cause of a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// In a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// The event that says so.
    pub event: String,
}

/// Whether callbacks may tell of such an event.
pub fn is_notable(kind: &str) -> bool {
    NOTABLE.contains(&kind)
}

impl Payload {
    /// What there is to tell of an event, if anything.
    pub fn of(event: &Event) -> Option<Self> {
        let failure = |d: &Diagnosis| (Some(d.cause), Some(d.summary.clone()));
        let (kind, phase, attempt, agent, (cause, summary)) = match &event.data {
            EventData::AttemptReady(ready) => {
                ("job.ready", Phase::Ready, event.epoch.attempt, Some(ready.agent.to_string()), (None, None))
            }
            EventData::AttemptFailed(failed) => {
                ("job.failed", Phase::Failing, event.epoch.attempt, None, failure(&failed.diagnosis))
            }
            EventData::JobDead(dead) => {
                let detail = Some(dead.detail.clone()).filter(|detail| !detail.is_empty());
                let why = dead.diagnosis.as_ref().map_or((None, detail), failure);
                ("job.dead", Phase::Dead, dead.attempt, None, why)
            }
            EventData::VmGone(gone) => {
                let summary = match gone.why {
                    GoneWhy::Stopped => "somebody asked for it",
                    GoneWhy::Exited => "the VM ended by itself",
                    GoneWhy::Failed | GoneWhy::Cancelled | GoneWhy::Duplicate => return None,
                };
                ("job.stopped", Phase::Stopped, event.epoch.attempt, None, (None, Some(summary.to_owned())))
            }
            _ => return None,
        };
        let data = Data { id: event.job()?, phase, attempt, agent, cause, summary, event: event.id() };
        Some(Self { kind, timestamp: event.time, data })
    }

    /// The message's id: that of the event, in a form without the full stop that signatures separate
    /// their parts with.
    pub fn message_id(&self) -> String {
        format!("msg_{}", Uuid::new_v5(&Uuid::NAMESPACE_OID, self.data.event.as_bytes()).simple())
    }
}
