//! How long a job has waited for this host. The time it was enqueued is its producer's, and the clocks
//! of two machines may be hours apart: a fresh job must not look old because this one is ahead.

use std::time::Duration;

use stoker_schemas::Time;
use tokio::time::Instant;

use super::Supervisor;
use super::books::Claim;

/// What this host knows of its clock and those of producers.
#[derive(Debug)]
pub(super) struct Ages {
    /// Its clock when it began, and when that was: from then on its steps do not count.
    begun: (Time, Instant),
    /// The youngest that a new job ever looked here: so far, at most, this clock is ahead.
    youngest: Option<Duration>,
}

impl Ages {
    pub(super) fn new(now: Time) -> Self {
        Self { begun: (now, Instant::now()), youngest: None }
    }

    /// How long a job has waited at least, whatever the clocks say. Of the first job seen nothing is known;
    /// the control plane, which saw it come, ends what is too old.
    fn at_least(&mut self, enqueued_at: Time) -> Duration {
        let age = self.begun.0.plus(self.begun.1.elapsed()).since(enqueued_at);
        let youngest = self.youngest.map_or(age, |known| known.min(age));
        self.youngest = Some(youngest);
        age - youngest
    }
}

impl Supervisor {
    /// How long a job has waited.
    pub(super) fn waited(&mut self, claim: &Claim) -> Duration {
        if self.settings.shares_log {
            // Enqueued in this process, or an earlier one on this machine.
            return self.rig.clock.now().since(claim.enqueued_at);
        }
        self.ages.at_least(claim.enqueued_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn a_clock_that_is_ahead_makes_no_fresh_job_old() {
        let now = Time::from_unix_micros(1_764_000_000_000_000);
        // By the producer's clock it is three hours earlier.
        let mut ages = Ages::new(now.plus(3 * HOUR));
        assert_eq!(ages.at_least(now), Duration::ZERO);
        let waited = ages.at_least(Time::from_unix_micros(now.unix_micros() - 7_200_000_000));
        assert!(waited >= 2 * HOUR && waited < 3 * HOUR, "{waited:?}");
        assert!(ages.at_least(now) < HOUR);
        // A clock that is behind sees only jobs of its future.
        let mut behind = Ages::new(Time::from_unix_micros(now.unix_micros() - 3_600_000_000));
        assert_eq!([behind.at_least(now), behind.at_least(now)], [Duration::ZERO; 2]);
    }
}
