//! What is known of a job: the sum of its events.
//!
//! [`JobState::apply`] is a join: every field keeps the least (or the latest) of what it was told
//! by a total order, so the same set of events gives the same state in any order and with any
//! duplication. Nothing here decides; [`Phase`] is computed from the fields, never stored.
//!
//! Clocks of two machines are not compared. What overtakes what follows from what its author knew:
//! a request names the attempt that it is about, and an attempt asked for by hand has a number above
//! all that its asker knew of. Of two requests that did not know of each other, one counts by rule:
//! an attempt asked for by hand overtakes a cancellation, the longer snooze a shorter one.
//!
//! A message that its publisher repeated (a confirm was lost) can start the same epoch on two
//! hosts. Their tries are kept apart by the host that tells of them: that of the host whose name
//! comes first is in `attempts`, the others in `rivals`, until [`duplicates()`] has them removed.

mod awaited;
mod duplicates;
mod phase;
mod timing;

pub use awaited::{Awaited, AwaitedFrom};
pub use duplicates::{Duplicate, duplicates};
pub use phase::Phase;

use std::collections::{BTreeMap, BTreeSet};

use crate::event::{
    AttemptFailed, AttemptMessageSettled, AttemptReady, AttemptStarted, AttemptSuperseded, Event, EventData,
    JobCancelRequested, JobCancelled, JobDead, JobDeferred, JobEnqueued, JobRepublished, JobRetryScheduled,
    JobSnoozeRequested, JobStopRequested, StageMark, VmGone,
};
use crate::id::{Epoch, HostName, JobId};
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
    /// Tries of an epoch that another host, whose name comes first, has too. Empty on every worker.
    pub rivals: BTreeMap<(Epoch, HostName), Attempt>,
    /// Scheduled attempts, by number.
    pub retries: BTreeMap<u32, At<JobRetryScheduled>>,
    /// Why it was last put back without an attempt, and since when for that reason.
    pub deferred: Option<At<JobDeferred>>,
    /// Times that its message was published again.
    pub republished: BTreeSet<At<JobRepublished>>,
    /// Dead after this many attempts.
    pub dead: BTreeMap<u32, At<JobDead>>,
    /// Cancelled after this many attempts.
    pub cancelled: BTreeMap<u32, At<JobCancelled>>,
    /// Requests to cancel, the latest by the attempt that its asker knew of.
    pub cancel_requested: BTreeMap<Option<u32>, At<JobCancelRequested>>,
    /// Requests to stop, the latest by the attempt that its asker knew of.
    pub stop_requested: BTreeMap<Option<u32>, At<JobStopRequested>>,
    /// The longest wait that was asked for, of the latest attempt that one was asked for.
    pub snooze_requested: Option<At<JobSnoozeRequested>>,
    /// The latest attempt asked for by hand; 0 for none. What came before it is overtaken.
    pub asked_attempt: u32,
    /// When an attempt was last asked for by hand, by the asker's clock.
    pub asked_at: Option<Time>,
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
    /// Its message was acknowledged before it ended: its host alone decides what follows.
    pub message_settled: Option<At<AttemptMessageSettled>>,
    /// Times it was taken over, with the VMM's pid.
    pub adopted: BTreeSet<At<u32>>,
    /// Another VM of the job was chosen to stay.
    pub superseded: Option<At<AttemptSuperseded>>,
    /// The VM is gone.
    pub gone: Option<At<VmGone>>,
    /// Whose try it is.
    host: Option<HostName>,
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
        self.ready.is_some() && self.failed.is_none() && self.gone.is_none()
    }

    /// Where it is, as far as is known.
    pub fn host(&self) -> Option<&HostName> {
        self.host.as_ref()
    }

    /// Order among tries of the same epoch: those that started, then by host. The times are not
    /// asked: they are of two machines.
    fn rank(&self) -> (bool, Option<&HostName>) {
        (self.started.is_none(), self.host())
    }
}

fn first<T: Ord>(slot: &mut Option<At<T>>, at: Time, value: T) {
    let told = At { at, value };
    if slot.as_ref().is_none_or(|known| told < *known) {
        *slot = Some(told);
    }
}

/// The latest by a rank, then by time.
fn latest_by<T: Ord, R: Ord>(slot: &mut Option<At<T>>, at: Time, value: T, rank: impl Fn(&T) -> R) {
    let told = At { at, value };
    if slot.as_ref().is_none_or(|known| (rank(&told.value), &told) > (rank(&known.value), known)) {
        *slot = Some(told);
    }
}

/// The first by a rank, then by time.
fn first_by<T: Ord, R: Ord>(map: &mut BTreeMap<u32, At<T>>, key: u32, at: Time, value: T, rank: impl Fn(&T) -> R) {
    let told = At { at, value };
    if map.get(&key).is_none_or(|known| (rank(&told.value), &told) < (rank(&known.value), known)) {
        map.insert(key, told);
    }
}

fn latest_of<K: Ord, T: Ord>(map: &mut BTreeMap<K, At<T>>, key: K, at: Time, value: T) {
    let told = At { at, value };
    if map.get(&key).is_none_or(|known| told > *known) {
        map.insert(key, told);
    }
}

impl JobState {
    /// A job of which nothing is known yet.
    pub fn new(id: JobId) -> Self {
        Self {
            id,
            enqueued: None,
            attempts: BTreeMap::new(),
            rivals: BTreeMap::new(),
            retries: BTreeMap::new(),
            deferred: None,
            republished: BTreeSet::new(),
            dead: BTreeMap::new(),
            cancelled: BTreeMap::new(),
            cancel_requested: BTreeMap::new(),
            stop_requested: BTreeMap::new(),
            snooze_requested: None,
            asked_attempt: 0,
            asked_at: None,
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
        if event.job() == Some(self.id) {
            self.add(event.epoch, event.time, &event.data, event.host());
        }
    }

    /// Adds what happened at a time in an epoch on this host: for its own facts only.
    pub fn apply_data(&mut self, epoch: Epoch, at: Time, data: &EventData) {
        self.add(epoch, at, data, None);
    }

    fn add(&mut self, epoch: Epoch, at: Time, data: &EventData, told_by: Option<HostName>) {
        match data {
            EventData::JobEnqueued(e) => first(&mut self.enqueued, at, e.clone()),
            EventData::JobRetryScheduled(e) => {
                let by_hand = e.by.as_ref().map(|_| (e.attempt, Some(at)));
                let (attempt, asked_at) = by_hand.unwrap_or_default();
                self.asked(attempt.max(e.asked_attempt), asked_at.max(e.asked_at));
                first_by(&mut self.retries, e.attempt, at, e.clone(), |e| e.by.is_none());
            }
            EventData::JobDeferred(e) => {
                self.asked(e.asked_attempt, e.asked_at);
                latest_by(&mut self.deferred, at, e.clone(), |e| e.attempt);
            }
            EventData::JobRepublished(e) => {
                self.republished.insert(At { at, value: e.clone() });
            }
            EventData::JobDead(e) => first_by(&mut self.dead, e.attempt, at, e.clone(), |e| e.reason),
            EventData::JobCancelled(e) => first_by(&mut self.cancelled, e.attempt, at, e.clone(), |_| ()),
            EventData::CancelRequested(e) => latest_of(&mut self.cancel_requested, e.asked_attempt, at, e.clone()),
            EventData::StopRequested(e) => latest_of(&mut self.stop_requested, e.attempt, at, e.clone()),
            EventData::SnoozeRequested(e) => {
                latest_by(&mut self.snooze_requested, at, e.clone(), |e| (e.attempt, e.until));
            }
            EventData::AttemptStarted(e) => {
                self.asked(e.asked_attempt, e.asked_at);
                self.add_to_try(epoch, at, data, Some(e.host.clone()));
            }
            // Told by whoever chose, about the host that it names.
            EventData::AttemptSuperseded(e) => self.add_to_try(epoch, at, data, Some(e.host.clone())),
            EventData::AttemptProgressed(_)
            | EventData::AttemptReady(_)
            | EventData::AttemptFailed(_)
            | EventData::AttemptMessageSettled(_)
            | EventData::AttemptAdopted(_)
            | EventData::VmGone(_) => self.add_to_try(epoch, at, data, told_by),
            EventData::HostStarted(_)
            | EventData::HostHypervisorChanged(_)
            | EventData::HostPublishingRefused(_)
            | EventData::HostPublishingResumed(_)
            | EventData::HostDrainRequested(_)
            | EventData::HostDraining(_)
            | EventData::HostStopped(_)
            | EventData::WarmStarted(_)
            | EventData::WarmReady(_)
            | EventData::WarmTaken(_)
            | EventData::WarmGone(_)
            | EventData::PoolConfigured(_)
            | EventData::MessageDeadLettered(_)
            | EventData::MessageRedriven(_)
            | EventData::MessageDismissed(_) => {}
        }
    }

    fn asked(&mut self, attempt: u32, at: Option<Time>) {
        self.asked_attempt = self.asked_attempt.max(attempt);
        self.asked_at = self.asked_at.max(at);
    }

    /// Adds to the try of this epoch on this host; told by nobody in particular, to the main one.
    fn add_to_try(&mut self, epoch: Epoch, at: Time, data: &EventData, host: Option<HostName>) {
        let main = self.attempts.entry(epoch).or_default();
        match host {
            Some(host) if main.host.as_ref().is_some_and(|known| *known != host) => {
                let rival = self.rivals.entry((epoch, host.clone())).or_default();
                rival.host = Some(host);
                rival.apply(at, data);
            }
            host => {
                main.host = main.host.take().or(host);
                main.apply(at, data);
            }
        }
        if !self.rivals.is_empty() {
            self.rank(epoch);
        }
    }

    /// Makes the try that comes first by rank the main one of its epoch, whatever was heard of first.
    fn rank(&mut self, epoch: Epoch) {
        let rivals = self.rivals.iter().filter(|((e, _), _)| *e == epoch);
        let Some((key, first)) = rivals.min_by_key(|(_, a)| a.rank()) else { return };
        let Some(main) = self.attempts.get_mut(&epoch).filter(|main| first.rank() < main.rank()) else { return };
        let key = key.clone();
        let Some(mut other) = self.rivals.remove(&key) else { return };
        std::mem::swap(main, &mut other);
        // Only a try with a host can have a rival (see add_to_try).
        if let Some(host) = other.host.clone() {
            self.rivals.insert((epoch, host), other);
        }
    }

    /// Every try, with its epoch: the main ones and their rivals.
    pub fn tries(&self) -> impl Iterator<Item = (Epoch, &Attempt)> {
        let rivals = self.rivals.iter().map(|((epoch, _), attempt)| (*epoch, attempt));
        self.attempts.iter().map(|(epoch, attempt)| (*epoch, attempt)).chain(rivals)
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
            EventData::AttemptMessageSettled(e) => first(&mut self.message_settled, at, e.clone()),
            EventData::AttemptAdopted(e) => {
                self.adopted.insert(At { at, value: e.pid });
            }
            EventData::AttemptSuperseded(e) => first(&mut self.superseded, at, e.clone()),
            EventData::VmGone(e) => first(&mut self.gone, at, e.clone()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod clocks;
#[cfg(test)]
mod tests;
