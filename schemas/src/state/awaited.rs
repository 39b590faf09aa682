//! What a job that has not ended waits for. A reader of the history can tell by it when something
//! has not come for too long: the message may be gone, or the host that had it.

use serde::{Deserialize, Serialize};

use super::{JobState, Phase};

/// A boot has ended after so many times its deadline: the deadline moves by half of itself at most, and
/// the rest is for what is not counted against the guest.
const BOOT_FACTOR: u64 = 2;

/// What is to come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AwaitedFrom {
    /// A host takes its message; none has yet.
    Queue,
    /// A host takes its message; one had it and put it back.
    Deferral,
    /// The host that has, or had, the attempt says what became of it.
    Host,
}

/// What a job waits for, and how long that may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Awaited {
    /// From where.
    pub from: AwaitedFrom,
    /// The attempt that waits, or is under way.
    pub attempt: u32,
    /// How long it takes when all is well, ms, counted from the job's last event: a wait before the
    /// attempt, a boot. Lengths told by one clock, never a difference of two.
    pub usual_ms: u64,
    /// It is to be cancelled.
    pub cancelling: bool,
    /// Its time-to-live, seconds, while it counts: until its first attempt.
    pub ttl_s: Option<u64>,
    /// How often the attempt's message was published again.
    pub republished: u32,
}

impl JobState {
    /// What the job waits for; `None` when it has ended, or is up and stays so.
    pub fn awaited(&self) -> Option<Awaited> {
        let phase = self.phase();
        let cancelling = self.pending_cancel().is_some();
        let (from, usual_ms) = match phase {
            Phase::Queued | Phase::Retrying => self.message_wait(),
            Phase::Booting => (AwaitedFrom::Host, self.boot_ms()),
            Phase::Failing => (AwaitedFrom::Host, 0),
            Phase::Ready if cancelling => (AwaitedFrom::Host, 0),
            Phase::Ready | Phase::Dead | Phase::Cancelled | Phase::Stopped => return None,
        };
        let attempt = self.last_attempt().max(1);
        let ttl_s = self.spec().filter(|_| phase == Phase::Queued).and_then(|spec| spec.ttl_s);
        let republished = self.republished.iter().filter(|told| told.value.attempt == attempt).count();
        let republished = u32::try_from(republished).unwrap_or(u32::MAX);
        Some(Awaited { from, attempt, usual_ms, cancelling, ttl_s, republished })
    }

    fn message_wait(&self) -> (AwaitedFrom, u64) {
        let attempt = self.last_attempt();
        let scheduled = self.retries.get(&attempt).map_or(0, |retry| retry.value.delay_ms);
        let snoozed = self.snooze(attempt).map_or(0, |snooze| millis(snooze.value.until.since(snooze.at)));
        let deferred = self.deferred.as_ref().filter(|deferred| deferred.value.attempt == attempt.max(1));
        let from = if deferred.is_some() { AwaitedFrom::Deferral } else { AwaitedFrom::Queue };
        let put_back = deferred.map_or(0, |deferred| deferred.value.delay_ms);
        (from, scheduled.max(snoozed).max(put_back))
    }

    fn boot_ms(&self) -> u64 {
        self.spec().map_or(0, |spec| spec.readiness.deadline_ms.saturating_mul(BOOT_FACTOR))
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
