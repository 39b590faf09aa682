//! What is to be done about a job of which nothing was heard for a while. Pure: the caller has measured.

use std::time::Duration;

use stoker_schemas::state::AwaitedFrom;

use crate::readmodel::AwaitedJob;

/// A message that a host put back goes round without a word for long, as long as the job does not fit.
const DEFERRED_FACTOR: u32 = 12;
/// Each time waits twice as long as the one before, so many times: 300 s become 21 h.
const MAX_DOUBLINGS: u32 = 8;

/// How long is waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For a message to be taken, or for a host to tell of its attempt, beyond what that takes.
    pub after: Duration,
    /// For a host to carry out what it can carry out at once.
    pub grace: Duration,
}

/// How long a job has waited, at least.
#[derive(Debug, Clone, Copy)]
pub struct Heard {
    /// Since its last event.
    pub last: Duration,
    /// Since it began to wait.
    pub first: Duration,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing yet.
    Wait,
    /// End it as cancelled: no host that has it does.
    Cancel,
    /// End it as expired.
    Expire,
    /// If its lane has moved past it: publish its message again.
    Republish,
    /// If its lane has moved past it: go on without the host that had it.
    Abandon,
}

/// The next step about a job. `may_lose`: its message, and the host that had it, may be gone at all; where they are in
/// one process with this, they are not.
pub fn step(job: &AwaitedJob, heard: Heard, patience: Patience, may_lose: bool) -> Step {
    let awaited = &job.awaited;
    let usual = Duration::from_millis(awaited.usual_ms);
    if awaited.cancelling {
        let (wait, may_end) = if job.is_queued() { (patience.grace, true) } else { (patience.after, may_lose) };
        return if may_end && heard.last >= wait { Step::Cancel } else { Step::Wait };
    }
    let ttl = awaited.ttl_s.map(Duration::from_secs);
    if job.is_queued() && ttl.is_some_and(|ttl| heard.first >= ttl.saturating_add(patience.grace)) {
        return Step::Expire;
    }
    let factor = if awaited.from == AwaitedFrom::Deferral { DEFERRED_FACTOR } else { 1 };
    let wait = patience.after.saturating_mul(factor).saturating_mul(1 << awaited.republished.min(MAX_DOUBLINGS));
    match awaited.from {
        _ if !may_lose || heard.last < usual.saturating_add(wait) => Step::Wait,
        AwaitedFrom::Queue | AwaitedFrom::Deferral => Step::Republish,
        AwaitedFrom::Host => Step::Abandon,
    }
}

#[cfg(test)]
mod tests {
    use stoker_schemas::JobId;
    use stoker_schemas::state::Awaited;

    use super::*;

    const PATIENCE: Patience = Patience { after: Duration::from_secs(300), grace: Duration::from_secs(10) };

    fn job(from: AwaitedFrom) -> AwaitedJob {
        let awaited = Awaited { from, attempt: 1, usual_ms: 5_000, cancelling: false, ttl_s: None, republished: 0 };
        AwaitedJob { id: JobId::from_key("default", "a"), seq: 7, first_seq: 7, message_seq: 7, lane: None, awaited }
    }

    fn after(job: &AwaitedJob, seconds: u64, may_lose: bool) -> Step {
        let waited = Duration::from_secs(seconds);
        step(job, Heard { last: waited, first: waited }, PATIENCE, may_lose)
    }

    #[test]
    fn a_silent_job_is_driven_again_later_each_time_and_never_where_nothing_is_lost() {
        let mut queued = job(AwaitedFrom::Queue);
        for (times, first) in [(0, 305), (1, 605), (2, 1_205), (8, 76_805), (100, 76_805)] {
            queued.awaited.republished = times;
            assert_eq!([after(&queued, first - 1, true), after(&queued, first, true)], [Step::Wait, Step::Republish]);
            assert_eq!(after(&queued, first, false), Step::Wait);
        }
        let deferred = job(AwaitedFrom::Deferral);
        assert_eq!([after(&deferred, 3_604, true), after(&deferred, 3_605, true)], [Step::Wait, Step::Republish]);
        let booting = job(AwaitedFrom::Host);
        assert_eq!([after(&booting, 304, true), after(&booting, 305, true)], [Step::Wait, Step::Abandon]);
    }

    #[test]
    fn cancellations_and_time_to_live_need_no_message_and_no_host() {
        for (from, first) in [(AwaitedFrom::Queue, 10), (AwaitedFrom::Deferral, 10), (AwaitedFrom::Host, 300)] {
            let mut cancelling = job(from);
            cancelling.awaited.cancelling = true;
            assert_eq!(
                [after(&cancelling, first - 1, true), after(&cancelling, first, true)],
                [Step::Wait, Step::Cancel]
            );
            let in_process = if cancelling.is_queued() { Step::Cancel } else { Step::Wait };
            assert_eq!(after(&cancelling, first, false), in_process);
        }
        let mut mortal = job(AwaitedFrom::Queue);
        mortal.awaited.ttl_s = Some(60);
        assert_eq!([after(&mortal, 69, false), after(&mortal, 70, false)], [Step::Wait, Step::Expire]);
        let heard = Heard { last: Duration::ZERO, first: Duration::from_secs(70) };
        assert_eq!(step(&mortal, heard, PATIENCE, true), Step::Expire, "put back again and again");
    }
}
