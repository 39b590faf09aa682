//! Where a job stands, computed from its state, and which wishes are still open.

use std::fmt;

use super::{At, Attempt, JobState};
use crate::event::{GoneWhy, JobCancelRequested, JobSnoozeRequested, JobStopRequested};
use crate::id::Epoch;
use crate::seeded::{self, Bug};
use crate::spec::JobSpec;
use crate::time::Time;

/// Where a job stands. The names are those users see.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waits for a host.
    Queued,
    /// An attempt is under way.
    Booting,
    /// The VM is up.
    Ready,
    /// An attempt failed; what follows is being settled.
    Failing,
    /// Waits for its next attempt.
    Retrying,
    /// No attempt follows.
    Dead,
    /// Will not run.
    Cancelled,
    /// Was up, is not any more.
    Stopped,
}

impl Phase {
    /// Each once, in the order of a job's life.
    pub const ALL: [Self; 8] = [
        Self::Queued,
        Self::Booting,
        Self::Ready,
        Self::Failing,
        Self::Retrying,
        Self::Dead,
        Self::Cancelled,
        Self::Stopped,
    ];

    /// Its name, as in data.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Booting => "booting",
            Self::Ready => "ready",
            Self::Failing => "failing",
            Self::Retrying => "retrying",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Stopped => "stopped",
        }
    }

    /// No event follows by itself.
    pub const fn is_closed(self) -> bool {
        matches!(self, Self::Dead | Self::Cancelled | Self::Stopped)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl JobState {
    /// Number of the latest attempt started or scheduled; 0 before the first.
    pub fn last_attempt(&self) -> u32 {
        let started = self.attempts.keys().next_back().map_or(0, |e| e.attempt);
        let scheduled = self.retries.keys().next_back().copied().unwrap_or(0);
        started.max(scheduled)
    }

    /// The highest attempt number at which the job was called dead or cancelled; 0 for never.
    pub fn settled_attempt(&self) -> u32 {
        self.dead.keys().chain(self.cancelled.keys()).max().copied().unwrap_or(0)
    }

    /// What is to be booted: the spec of the latest attempt that is known of.
    pub fn spec(&self) -> Option<&JobSpec> {
        // At the same number they are the same; the rank only makes the choice definite.
        let enqueued = self.enqueued.iter().map(|e| ((1, 0), &e.value.spec));
        let dead = self.dead.iter().map(|(n, d)| ((*n, 1), &d.value.spec));
        let deferred = self.deferred.iter().map(|d| ((d.value.attempt, 2), &d.value.spec));
        let started = self.attempts.iter().filter_map(|(epoch, a)| Some((epoch, a.started.as_ref()?)));
        let started = started.map(|(epoch, s)| ((epoch.attempt, 3), &s.value.spec));
        let retries = self.retries.iter().map(|(n, r)| ((*n, 4), &r.value.spec));
        enqueued.chain(dead).chain(deferred).chain(started).chain(retries).max_by_key(|(rank, _)| *rank).map(|(_, s)| s)
    }

    /// When it was first enqueued, as far as is known.
    pub fn enqueued_at(&self) -> Option<Time> {
        let started = self.tries().filter_map(|(_, a)| a.started.as_ref()).map(|s| s.value.enqueued_at);
        let retries = self.retries.values().map(|r| r.value.enqueued_at);
        let deferred = self.deferred.iter().map(|d| d.value.enqueued_at);
        self.enqueued.iter().map(|e| e.at).chain(started).chain(retries).chain(deferred).min()
    }

    /// The epoch in which a delivered attempt is tried here: never one that was used before. (A
    /// publisher's repeat of a message starts counting deliveries from 0 again.)
    pub fn epoch_for(&self, attempt: u32, delivery: u32) -> Epoch {
        let first = Epoch::first(attempt);
        let used = self.attempts.range(first..=Epoch { delivery: u32::MAX, ..first }).next_back();
        let free = used.map_or(0, |(epoch, _)| epoch.delivery.saturating_add(1));
        Epoch { attempt, delivery: delivery.max(free) }
    }

    /// Whether a message about this attempt asks for nothing any more: its VM is up or was, the job has
    /// ended, or a later attempt follows.
    pub fn is_past(&self, attempt: u32) -> bool {
        let phase = self.phase();
        let settled = phase.is_closed() || phase == Phase::Ready;
        attempt < self.last_attempt() || (settled && attempt <= self.last_attempt().max(self.settled_attempt()).max(1))
    }

    /// Whether a later attempt than this try's was asked for by hand. A delivery of another attempt
    /// waits for such a try to go; beside any other try that is up, it is settled.
    pub fn is_overtaken(&self, epoch: Epoch) -> bool {
        epoch.attempt < self.asked_attempt
    }

    /// A request to cancel that is still to be carried out: the job has not ended otherwise, and no
    /// attempt was asked for by hand that the asker did not know of.
    pub fn pending_cancel(&self) -> Option<&At<JobCancelRequested>> {
        let holds = |request: &&At<JobCancelRequested>| match request.value.asked_attempt {
            Some(known) => known >= self.asked_attempt,
            // An older Stoker's, which says no more than when.
            None => self.asked_at.is_none_or(|asked| asked < request.at),
        };
        let request = self.cancel_requested.values().rev().find(holds)?;
        (!self.phase().is_closed()).then_some(request)
    }

    /// A wish that this attempt waits longer.
    pub fn snooze(&self, attempt: u32) -> Option<&At<JobSnoozeRequested>> {
        self.snooze_requested.as_ref().filter(|snooze| snooze.value.attempt == attempt)
    }

    /// When a scheduled attempt may start.
    pub fn due(&self, attempt: u32) -> Option<Time> {
        let not_before = self.retries.get(&attempt)?.value.not_before;
        Some(self.snooze(attempt).map_or(not_before, |snooze| snooze.value.until.max(not_before)))
    }

    /// A request to stop this try's VM.
    pub fn pending_stop(&self, epoch: Epoch) -> Option<&At<JobStopRequested>> {
        let attempt = self.attempts.get(&epoch).filter(|a| a.has_vm())?;
        let started = attempt.started.as_ref()?.at;
        let holds = |request: &&At<JobStopRequested>| match request.value.attempt {
            Some(_) if seeded::is_on(Bug::ClocksCompared) => started <= request.at,
            Some(known) => epoch.attempt <= known,
            // An older Stoker's, which says no more than when.
            None => started <= request.at,
        };
        self.stop_requested.values().rev().find(holds)
    }

    /// Attempts below this number are over, whichever host still has one: their VM was stopped. (A message
    /// that was published twice can have booted another one since.) 0 where none was.
    pub(super) fn stopped_below(&self) -> u32 {
        let is_stopped = |a: &Attempt| a.gone.as_ref().is_some_and(|gone| gone.value.why == GoneWhy::Stopped);
        let carried_out = |known: &u32| self.tries().any(|(epoch, a)| epoch.attempt <= *known && is_stopped(a));
        let known = self.stop_requested.keys().filter_map(|known| *known).filter(carried_out).max();
        known.map_or(0, |known| known.saturating_add(1))
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        let last = self.last_attempt();
        if self.is_cancelled() {
            return Phase::Cancelled;
        }
        // A VM that answers is up, even if another host gave the same attempt up (it had lost the
        // delivery): only an attempt asked for by hand overtakes it.
        let (asked, stopped) = (self.asked_attempt, self.stopped_below());
        if self.tries().any(|(epoch, a)| epoch.attempt >= asked.max(stopped) && a.is_up()) {
            return Phase::Ready;
        }
        if self.dead.keys().next_back().is_some_and(|n| *n >= last) {
            return Phase::Dead;
        }
        if last < stopped {
            return Phase::Stopped;
        }
        let latest = || self.tries().filter(|(epoch, _)| epoch.attempt == last);
        if latest().any(|(_, a)| a.ready.is_none() && a.failed.is_none() && a.gone.is_none()) {
            return Phase::Booting;
        }
        if latest().any(|(_, a)| a.failed.is_some() && a.gone.is_none()) {
            return Phase::Failing;
        }
        // Once one was up, an attempt that a host scheduled when it failed beside it is moot.
        let was_up = self.tries().any(|(epoch, a)| epoch.attempt >= asked && a.ready.is_some());
        if was_up || latest().any(|(_, a)| was_taken_away(a)) {
            Phase::Stopped
        } else if latest().next().is_some() {
            Phase::Failing
        } else if last == 0 {
            Phase::Queued
        } else {
            Phase::Retrying
        }
    }

    /// Called cancelled, and no attempt was scheduled since.
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.keys().next_back().is_some_and(|n| *n >= self.last_attempt())
    }
}

/// Removed on purpose, not because it had failed.
fn was_taken_away(a: &Attempt) -> bool {
    let on_purpose = |why| matches!(why, GoneWhy::Stopped | GoneWhy::Duplicate);
    a.gone.as_ref().is_some_and(|gone| a.superseded.is_some() || (a.failed.is_none() && on_purpose(gone.value.why)))
}
