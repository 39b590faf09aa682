//! What happened, minute by minute: how many, how long, and where the time went. Added up when an
//! event is first heard, so that no page counts events.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stoker_schemas::diagnosis::Cause;
use stoker_schemas::event::{Event, EventData};
use stoker_schemas::{JobState, Time};

use crate::view::{AttemptView, ms_between};

/// Minutes kept: a week.
pub const KEPT_MINUTES: u64 = 7 * 24 * 60;
/// Micros in a minute.
const MINUTE_MICROS: i64 = 60_000_000;

/// One minute, or several added up.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Minute {
    /// Jobs enqueued.
    pub enqueued: u64,
    /// Attempts that became ready.
    pub ready: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Failures by cause.
    pub causes: BTreeMap<Cause, u64>,
    /// Boots by how long they took from taken to ready.
    pub boots: Histogram,
    /// Milliseconds that ready attempts spent in each stage, added up.
    pub stages: BTreeMap<String, u64>,
}

impl Minute {
    /// Adds an event that was not heard before; `state` is its job's, with the event in it.
    pub fn add(&mut self, event: &Event, state: &JobState) {
        match &event.data {
            EventData::JobEnqueued(_) => self.enqueued += 1,
            EventData::AttemptFailed(e) => {
                self.failed += 1;
                *self.causes.entry(e.diagnosis.cause).or_default() += 1;
            }
            EventData::AttemptReady(_) => {
                self.ready += 1;
                let Some(attempt) = state.attempts.get(&event.epoch) else { return };
                // Heard before its start: the boot counts, how long it took is not known.
                let Some(started) = &attempt.started else { return };
                self.boots.add(ms_between(started.at, event.time));
                for stage in AttemptView::of(state, event.epoch, attempt).stages {
                    *self.stages.entry(stage.name).or_default() += stage.took_ms;
                }
            }
            _ => {}
        }
    }

    /// Adds another minute.
    pub fn merge(&mut self, other: &Self) {
        self.enqueued += other.enqueued;
        self.ready += other.ready;
        self.failed += other.failed;
        self.boots.merge(&other.boots);
        for (cause, n) in &other.causes {
            *self.causes.entry(*cause).or_default() += n;
        }
        for (stage, ms) in &other.stages {
            *self.stages.entry(stage.clone()).or_default() += ms;
        }
    }

    /// Share of attempts that became ready, of those decided; none when none was.
    pub fn success(&self) -> Option<f64> {
        let decided = self.ready + self.failed;
        (decided > 0).then(|| self.ready as f64 / decided as f64)
    }
}

/// The minute that a time lies in.
pub fn minute_of(at: Time) -> u64 {
    u64::try_from(at.unix_micros() / MINUTE_MICROS).unwrap_or(0)
}

/// When a minute begins.
pub fn begin_of(minute: u64) -> Time {
    Time::from_unix_micros(i64::try_from(minute).unwrap_or(i64::MAX / MINUTE_MICROS).saturating_mul(MINUTE_MICROS))
}

/// Durations by size; each bucket is 7 % wide, which is as exact as anybody reads a p95.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Histogram(BTreeMap<u16, u64>);

/// Width of a bucket.
const GROWTH: f64 = 1.07;

impl Histogram {
    /// Counts one duration.
    pub fn add(&mut self, ms: u64) {
        // At least 1, and u64::MAX is bucket 656: it fits.
        let bucket = ((ms.max(1) as f64).ln() / GROWTH.ln()).round() as u16;
        *self.0.entry(bucket).or_default() += 1;
    }

    /// Adds another one.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, n) in &other.0 {
            *self.0.entry(*bucket).or_default() += n;
        }
    }

    /// The duration, ms, that this share of all does not exceed; none when there are none.
    pub fn quantile(&self, share: f64) -> Option<u64> {
        let total: u64 = self.0.values().sum();
        let rank = (share * total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        self.0.iter().find_map(|(bucket, n)| {
            seen += n;
            (seen >= rank).then(|| GROWTH.powi(i32::from(*bucket)).round() as u64)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_bucket_of_the_truth() {
        let mut boots = Histogram::default();
        assert_eq!(boots.quantile(0.5), None);
        (1..=1_000).for_each(|ms| boots.add(ms));
        for (share, truth) in [(0.5, 500.0), (0.95, 950.0), (1.0, 1_000.0)] {
            let told = boots.quantile(share).unwrap() as f64;
            assert!((told / truth - 1.0).abs() < 0.07, "{share}: {told}");
        }
        boots.add(0);
        boots.add(u64::MAX);
    }

    #[test]
    fn minutes_add_up() {
        let mut all = Minute { ready: 3, failed: 1, ..Minute::default() };
        all.merge(&Minute { ready: 1, enqueued: 5, causes: [(Cause::Unknown, 2)].into(), ..Minute::default() });
        assert_eq!((all.ready, all.enqueued, all.causes[&Cause::Unknown]), (4, 5, 2));
        assert_eq!(all.success(), Some(0.8));
        assert_eq!(Minute::default().success(), None);
        assert_eq!(minute_of(begin_of(29_000_000)), 29_000_000);
    }
}
