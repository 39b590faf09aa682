//! What became of attempts, and where their time went: added up from events, by a worker from those that it writes and by
//! a control plane from those of all hosts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stoker_schemas::diagnosis::Cause;
use stoker_schemas::event::EventData;
use stoker_schemas::{Epoch, JobState};

use super::{Histogram, Labels, Metric, label};

/// The cause that stands with an outcome which has none.
const NO_CAUSE: &str = "none";

/// Attempts added up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AttemptTotals {
    ready: u64,
    failed: BTreeMap<Cause, u64>,
    waits: Histogram,
    boots: Histogram,
    stages: BTreeMap<String, Histogram>,
}

impl AttemptTotals {
    /// None yet.
    pub const fn new() -> Self {
        Self {
            ready: 0,
            failed: BTreeMap::new(),
            waits: Histogram::new(),
            boots: Histogram::new(),
            stages: BTreeMap::new(),
        }
    }

    /// Adds a fact that was not known before; `state` is its job's, with the fact in it.
    pub fn add(&mut self, data: &EventData, epoch: Epoch, state: &JobState) {
        match data {
            EventData::AttemptStarted(_) => {
                if let Some(wait) = state.queue_wait(epoch) {
                    self.waits.add(wait);
                }
            }
            EventData::AttemptFailed(e) => *self.failed.entry(e.diagnosis.cause).or_default() += 1,
            EventData::AttemptReady(_) => {
                self.ready += 1;
                let Some(attempt) = state.attempts.get(&epoch) else { return };
                // Heard before its start: it counts, how long it took is not known.
                let Some(took) = attempt.boot_length() else { return };
                self.boots.add(took);
                for (stage, took) in attempt.stage_lengths() {
                    self.stages.entry(stage.as_str().to_owned()).or_default().add(took);
                }
            }
            _ => {}
        }
    }

    /// As metrics.
    pub fn metrics(&self) -> Vec<Metric> {
        let outcome = |outcome: &str, cause: &str| vec![("outcome", outcome.to_owned()), ("cause", cause.to_owned())];
        let failed = self.failed.iter().map(|(cause, n)| (outcome("failed", cause.as_str()), *n));
        let attempts = [(outcome("ready", NO_CAUSE), self.ready)].into_iter().chain(failed);
        let stages = self.stages.iter().map(|(stage, took)| (label("stage", stage), took.clone()));
        let alone = |histogram: &Histogram| [(Labels::new(), histogram.clone())];
        vec![
            Metric::counter("stoker_attempts_total", "Attempts that became ready or failed, and why.", attempts),
            Metric::histogram(
                "stoker_queue_wait_seconds",
                "Time from enqueued (a retry: due) to taken by a host.",
                alone(&self.waits),
            ),
            Metric::histogram(
                "stoker_boot_duration_seconds",
                "Time from taken by a host to ready, of attempts that became ready.",
                alone(&self.boots),
            ),
            Metric::histogram(
                "stoker_boot_stage_duration_seconds",
                "Time that attempts which became ready spent until each stage was reached, from the one before.",
                stages,
            ),
        ]
    }
}
