//! Where the time of an attempt went: its wait, and its stages one after the other.

use std::time::Duration;

use super::{Attempt, JobState};
use crate::event::{Stage, StageMark};
use crate::id::Epoch;
use crate::time::Time;

impl JobState {
    /// Since when an attempt waited for a host: the first one since it was enqueued, a later one since it was due.
    pub fn waits_since(&self, attempt: u32) -> Option<Time> {
        self.due(attempt).or_else(|| self.enqueued_at())
    }

    /// How long an attempt waited for a host. The times may be those of two machines: for people, it decides
    /// nothing; a clock that is behind makes it zero.
    pub fn queue_wait(&self, epoch: Epoch) -> Option<Duration> {
        let started = self.attempts.get(&epoch)?.started.as_ref()?;
        Some(started.at.since(self.waits_since(epoch.attempt)?))
    }
}

impl Attempt {
    /// Stages reached, each once and in order: a later mark of one (a second DHCP exchange) is not a new stage.
    pub fn stages(&self) -> Vec<&StageMark> {
        let is_stage = |stage| !matches!(stage, Stage::UnitStarted | Stage::UnitFailed | Stage::Accepted);
        let mut marks: Vec<_> = self.marks.iter().filter(|mark| is_stage(mark.stage)).collect();
        marks.sort_by_key(|mark| (mark.at, mark.stage));
        let mut seen = Vec::new();
        marks.retain(|mark| {
            let is_new = !seen.contains(&mark.stage);
            seen.push(mark.stage);
            is_new
        });
        marks
    }

    /// How long each stage took.
    pub fn stage_lengths(&self) -> Vec<(Stage, Duration)> {
        let Some(started) = &self.started else { return Vec::new() };
        let mut before = started.at;
        let length = |mark: &StageMark| {
            let took = mark.at.since(before);
            before = before.max(mark.at);
            (mark.stage, took)
        };
        self.stages().into_iter().map(length).collect()
    }

    /// From taken to ready; none for one that is not, or whose start is not known.
    pub fn boot_length(&self) -> Option<Duration> {
        Some(self.ready.as_ref()?.at.since(self.started.as_ref()?.at))
    }
}
