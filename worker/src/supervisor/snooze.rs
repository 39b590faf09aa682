//! Jobs that a user wants to wait. Until when is said by the user's clock, which may be hours from this host's: what
//! counts is how long was asked for, from when the request came here.

use std::collections::BTreeMap;
use std::time::Duration;

use stoker_schemas::event::JobSnoozeRequested;
use stoker_schemas::state::At;
use stoker_schemas::{JobId, Time};
use tokio::time::Instant;

/// Requests remembered. Of those beyond it, the ones that end first are forgotten.
const MAX_REQUESTS: usize = 10_000;

/// When the requests that this host knows of end, by its own clock.
#[derive(Debug, Default)]
pub(super) struct Snoozes(BTreeMap<(JobId, Time), Instant>);

impl Snoozes {
    /// A request comes from a user.
    pub(super) fn request(&mut self, job: JobId, at: Time, until: Time) {
        self.remember(job, until, until.since(at));
    }

    /// How much longer the job is to wait; `None` when it is over. A request of before this worker started is judged
    /// by this host's clock, and waits no longer than was asked for.
    pub(super) fn left(&mut self, job: JobId, snooze: &At<JobSnoozeRequested>, now: Time) -> Option<Duration> {
        let until = snooze.value.until;
        let wait = until.since(now).min(until.since(snooze.at));
        let ends = self.remember(job, until, wait);
        let left = ends.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// The job waits no longer.
    pub(super) fn forget(&mut self, job: JobId) {
        let first = (job, Time::UNIX_EPOCH);
        let of_job = |(key, _): (&(JobId, Time), &Instant)| (key.0 == job).then_some(*key);
        while let Some(key) = self.0.range(first..).next().and_then(of_job) {
            self.0.remove(&key);
        }
    }

    fn remember(&mut self, job: JobId, until: Time, wait: Duration) -> Instant {
        let ends = *self.0.entry((job, until)).or_insert_with(|| Instant::now() + wait);
        if self.0.len() > MAX_REQUESTS
            && let Some(first) = self.0.iter().min_by_key(|(_, ends)| **ends).map(|(key, _)| *key)
        {
            self.0.remove(&first);
        }
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        Time::from_unix_micros((1_764_000_000 + seconds) * 1_000_000)
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_waits_as_long_as_was_asked_for_whatever_the_clocks_say() {
        for skew in [-3_600, 0, 3_600] {
            let (mut snoozes, job) = (Snoozes::default(), JobId::from_key("default", "a"));
            let value = JobSnoozeRequested { attempt: 1, until: at(60), by: "ada".to_owned(), reason: String::new() };
            let snooze = At { at: at(0), value };
            snoozes.request(job, at(0), at(60));
            tokio::time::advance(Duration::from_secs(50)).await;
            assert_eq!(snoozes.left(job, &snooze, at(50 + skew)), Some(Duration::from_secs(10)), "{skew}");
            tokio::time::advance(Duration::from_secs(10)).await;
            assert_eq!(snoozes.left(job, &snooze, at(60 + skew)), None, "{skew}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_restart_it_waits_no_longer_than_was_asked_for() {
        let (mut snoozes, job) = (Snoozes::default(), JobId::from_key("default", "a"));
        let value = JobSnoozeRequested { attempt: 1, until: at(60), by: "ada".to_owned(), reason: String::new() };
        let snooze = At { at: at(0), value };
        assert_eq!(snoozes.left(job, &snooze, at(-3_600)), Some(Duration::from_secs(60)));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(snoozes.left(job, &snooze, at(-3_540)), None);
        snoozes.forget(job);
        assert_eq!(snoozes.left(job, &snooze, at(50)), Some(Duration::from_secs(10)));
    }
}
