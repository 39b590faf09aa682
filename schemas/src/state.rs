//! What is known of a job: the sum of its events.
//!
//! [`JobState::apply`] is a join: every field keeps the least (or the latest) of what it was told
//! by a total order, so the same set of events gives the same state in any order and with any
//! duplication. Nothing here decides; [`Phase`] is computed from the fields, never stored.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::event::{
    AttemptFailed, AttemptReady, AttemptStarted, Event, EventData, JobCancelled, JobDead, JobDeferred, JobEnqueued,
    JobRetryScheduled, Request, StageMark, VmGone,
};
use crate::id::{Epoch, JobId};
use crate::spec::JobSpec;
use crate::time::Time;

/// Something and when it happened. Ordered by time first, so `min` is "the first told".
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct At<T> {
    /// When.
    pub at: Time,
    /// What.
    pub value: T,
}

/// One job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobState {
    /// Which.
    pub id: JobId,
    /// As it was enqueued (known where that event has been seen).
    pub enqueued: Option<At<JobEnqueued>>,
    /// Its tries.
    pub attempts: BTreeMap<Epoch, Attempt>,
    /// Scheduled attempts, by number.
    pub retries: BTreeMap<u32, At<JobRetryScheduled>>,
    /// The latest time it was put back without an attempt.
    pub deferred: Option<At<JobDeferred>>,
    /// Dead after this many attempts.
    pub dead: BTreeMap<u32, At<JobDead>>,
    /// Cancelled after this many attempts.
    pub cancelled: BTreeMap<u32, At<JobCancelled>>,
    /// The latest wish to cancel.
    pub cancel_requested: Option<At<Request>>,
    /// The latest wish to stop.
    pub stop_requested: Option<At<Request>>,
}

/// One try.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attempt {
    /// Where and with what it started.
    pub started: Option<At<AttemptStarted>>,
    /// Stages reached, by time.
    pub marks: BTreeSet<StageMark>,
    /// The proof that it is up.
    pub ready: Option<At<AttemptReady>>,
    /// Why it is not.
    pub failed: Option<At<AttemptFailed>>,
    /// Times it was taken over, with the VMM's pid.
    pub adopted: BTreeSet<At<u32>>,
    /// The VM is gone.
    pub gone: Option<At<VmGone>>,
}

impl Attempt {
    /// Started, and neither ready nor failed nor gone.
    pub fn is_booting(&self) -> bool {
        self.started.is_some() && self.ready.is_none() && self.failed.is_none() && self.gone.is_none()
    }

    /// Has (or may have) something on its host.
    pub fn has_vm(&self) -> bool {
        self.started.is_some() && self.gone.is_none()
    }

    /// Ready and there.
    pub fn is_up(&self) -> bool {
        self.ready.is_some() && self.gone.is_none()
    }
}

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

fn first<T: Ord>(slot: &mut Option<At<T>>, at: Time, value: T) {
    let told = At { at, value };
    if slot.as_ref().is_none_or(|known| told < *known) {
        *slot = Some(told);
    }
}

fn latest<T: Ord>(slot: &mut Option<At<T>>, at: Time, value: T) {
    let told = At { at, value };
    if slot.as_ref().is_none_or(|known| told > *known) {
        *slot = Some(told);
    }
}

fn first_by<T: Ord>(map: &mut BTreeMap<u32, At<T>>, key: u32, at: Time, value: T) {
    let told = At { at, value };
    match map.get(&key) {
        Some(known) if *known <= told => {}
        _ => {
            map.insert(key, told);
        }
    }
}

impl JobState {
    /// A job of which nothing is known yet.
    pub fn new(id: JobId) -> Self {
        Self {
            id,
            enqueued: None,
            attempts: BTreeMap::new(),
            retries: BTreeMap::new(),
            deferred: None,
            dead: BTreeMap::new(),
            cancelled: BTreeMap::new(),
            cancel_requested: None,
            stop_requested: None,
        }
    }

    /// The sum of these events, if there are any.
    pub fn replay<'a>(id: JobId, events: impl IntoIterator<Item = &'a Event>) -> Option<Self> {
        let mut state = None;
        for event in events {
            state.get_or_insert_with(|| Self::new(id)).apply(event);
        }
        state
    }

    /// Adds one event. Events about other jobs or hosts change nothing.
    pub fn apply(&mut self, event: &Event) {
        if event.job() != Some(self.id) {
            return;
        }
        self.apply_data(event.epoch, event.time, &event.data);
    }

    /// Adds what happened at a time in an epoch.
    pub fn apply_data(&mut self, epoch: Epoch, at: Time, data: &EventData) {
        match data {
            EventData::JobEnqueued(e) => first(&mut self.enqueued, at, e.clone()),
            EventData::JobRetryScheduled(e) => first_by(&mut self.retries, e.attempt, at, e.clone()),
            EventData::JobDeferred(e) => latest(&mut self.deferred, at, e.clone()),
            EventData::JobDead(e) => first_by(&mut self.dead, e.attempt, at, e.clone()),
            EventData::JobCancelled(e) => first_by(&mut self.cancelled, e.attempt, at, e.clone()),
            EventData::CancelRequested(e) => latest(&mut self.cancel_requested, at, e.clone()),
            EventData::StopRequested(e) => latest(&mut self.stop_requested, at, e.clone()),
            EventData::AttemptStarted(_)
            | EventData::AttemptProgressed(_)
            | EventData::AttemptReady(_)
            | EventData::AttemptFailed(_)
            | EventData::AttemptAdopted(_)
            | EventData::VmGone(_) => self.attempts.entry(epoch).or_default().apply(at, data),
            EventData::HostStarted(_)
            | EventData::HostDrainRequested(_)
            | EventData::HostDraining(_)
            | EventData::HostStopped(_) => {}
        }
    }

    /// Number of the latest attempt started or scheduled; 0 before the first.
    pub fn last_attempt(&self) -> u32 {
        let started = self.attempts.keys().next_back().map_or(0, |e| e.attempt);
        let scheduled = self.retries.keys().next_back().copied().unwrap_or(0);
        started.max(scheduled)
    }

    /// What is to be booted: the latest spec told.
    pub fn spec(&self) -> Option<&JobSpec> {
        let retry = self.retries.values().next_back().map(|r| &r.value.spec);
        let started = self.attempts.values().rev().find_map(|a| a.started.as_ref()).map(|s| &s.value.spec);
        let dead = self.dead.values().next_back().map(|d| &d.value.spec);
        let deferred = self.deferred.as_ref().map(|d| &d.value.spec);
        retry.or(started).or(self.enqueued.as_ref().map(|e| &e.value.spec)).or(deferred).or(dead)
    }

    /// When it was first enqueued, as far as is known.
    pub fn enqueued_at(&self) -> Option<Time> {
        let started = self.attempts.values().filter_map(|a| a.started.as_ref()).map(|s| s.value.enqueued_at);
        let retries = self.retries.values().map(|r| r.value.enqueued_at);
        self.enqueued.iter().map(|e| e.at).chain(started).chain(retries).min()
    }

    /// A wish to cancel that nothing has answered yet: later than the latest retry by hand.
    pub fn pending_cancel(&self) -> Option<&At<Request>> {
        let by_hand = self.retries.values().filter(|r| r.value.by.is_some()).map(|r| r.at).max();
        let request = self.cancel_requested.as_ref()?;
        let settled = self.cancelled.keys().next_back().is_some_and(|n| *n >= self.last_attempt());
        (!settled && by_hand.is_none_or(|retry| retry < request.at)).then_some(request)
    }

    /// A wish to stop this try, made after it started.
    pub fn pending_stop(&self, epoch: Epoch) -> Option<&At<Request>> {
        let attempt = self.attempts.get(&epoch).filter(|a| a.has_vm())?;
        let started = attempt.started.as_ref()?.at;
        self.stop_requested.as_ref().filter(|request| request.at >= started)
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        let last = self.last_attempt();
        let settled = |map_last: Option<u32>| map_last.is_some_and(|n| n >= last);
        if settled(self.cancelled.keys().next_back().copied()) {
            return Phase::Cancelled;
        }
        if settled(self.dead.keys().next_back().copied()) {
            return Phase::Dead;
        }
        let tries = || self.attempts.range(Epoch::first(last)..).map(|(_, a)| a);
        if last > 0 && tries().next().is_none() {
            return Phase::Retrying;
        }
        if tries().any(Attempt::is_up) {
            Phase::Ready
        } else if tries().any(Attempt::is_booting) {
            Phase::Booting
        } else if tries().any(|a| a.ready.is_some()) {
            Phase::Stopped
        } else if tries().next().is_some() {
            Phase::Failing
        } else {
            Phase::Queued
        }
    }
}

impl Attempt {
    fn apply(&mut self, at: Time, data: &EventData) {
        match data {
            EventData::AttemptStarted(e) => first(&mut self.started, at, e.clone()),
            EventData::AttemptProgressed(e) => self.marks.extend(e.marks.iter().cloned()),
            EventData::AttemptReady(e) => {
                self.marks.extend(e.marks.iter().cloned());
                first(&mut self.ready, at, e.clone());
            }
            EventData::AttemptFailed(e) => {
                self.marks.extend(e.marks.iter().cloned());
                first(&mut self.failed, at, e.clone());
            }
            EventData::AttemptAdopted(e) => {
                self.adopted.insert(At { at, value: e.pid });
            }
            EventData::VmGone(e) => first(&mut self.gone, at, e.clone()),
            _ => {}
        }
    }
}
