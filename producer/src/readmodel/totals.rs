//! What was counted since the rows began, for metrics. Added up with the events and written in one batch with them, so that
//! each event counts once: over restarts, and where the history tells it again. Rows that are filled again count
//! again what the history still has, which Prometheus takes for a restart. Two control planes count the same.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stoker_schemas::{Event, EventData, JobState};
use stoker_worker::metrics::{AttemptTotals, Metric, label};

/// Pools counted; those beyond are not watched one by one.
const MAX_POOLS: usize = super::MAX_POOLS;

/// The numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    enqueued: u64,
    /// By this product on its own, and because an operator asked.
    republished: u64,
    republished_by_hand: u64,
    attempts: AttemptTotals,
    /// By pool: jobs that a host took or put back with a reason. Where this grows, hosts look at what is queued.
    answered: BTreeMap<String, u64>,
}

impl Totals {
    /// Adds an event that was not heard before; `state` is its job's, with the event in it.
    pub(super) fn add(&mut self, event: &Event, state: &JobState) {
        self.attempts.add(&event.data, event.epoch, state);
        match &event.data {
            EventData::JobEnqueued(_) => self.enqueued += 1,
            EventData::JobRepublished(e) if e.by.is_none() => self.republished += 1,
            EventData::JobRepublished(_) => self.republished_by_hand += 1,
            EventData::AttemptStarted(_) | EventData::JobDeferred(_) => {
                let Some(pool) = state.spec().map(|spec| spec.pool.as_str()) else { return };
                if let Some(n) = self.answered.get_mut(pool) {
                    *n += 1;
                } else if self.answered.len() < MAX_POOLS {
                    self.answered.insert(pool.to_owned(), 1);
                }
            }
            _ => {}
        }
    }

    /// How many of a pool's jobs hosts took or put back.
    pub(super) fn answered(&self, pool: &str) -> u64 {
        self.answered.get(pool).copied().unwrap_or(0)
    }

    /// As metrics.
    pub fn metrics(&self) -> Vec<Metric> {
        let republished = [("reconciler", self.republished), ("operator", self.republished_by_hand)];
        let mut metrics = vec![
            Metric::total("stoker_jobs_enqueued_total", "Jobs enqueued.", self.enqueued),
            Metric::counter(
                "stoker_jobs_republished_total",
                "Messages of jobs published again, because they may be lost or an operator asked.",
                republished.map(|(by, n)| (label("by", by), n)),
            ),
        ];
        metrics.extend(self.attempts.metrics());
        metrics
    }
}
