//! How long to wait before trying again: exponential, with jitter, capped, never giving up.
//!
//! The only module that touches the `backoff` crate, which is no longer maintained. Its
//! `retry_after` is not used: it ignores the policy's limits and can loop for ever.

use std::time::Duration;

use backoff::{ExponentialBackoff, ExponentialBackoffBuilder, backoff::Backoff as _};

/// The shape of a series of waits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// The first wait, before jitter.
    pub initial: Duration,
    /// No wait is longer than this.
    pub max: Duration,
    /// Each wait is this many times the one before.
    pub multiplier: f64,
    /// 0.5 spreads a wait over 50-150 % of its value, so that clients that lost the same server
    /// together do not come back together.
    pub jitter: f64,
}

/// For connections to a server that is restarting: quick at first, then gentle.
pub const RECONNECT: Policy =
    Policy { initial: Duration::from_millis(50), max: Duration::from_secs(5), multiplier: 2.0, jitter: 0.5 };

/// One series of waits; starts over at [`Backoff::reset`].
#[derive(Debug)]
pub struct Backoff {
    series: ExponentialBackoff,
    max: Duration,
    jitter: f64,
}

impl Backoff {
    /// A fresh series.
    pub fn new(policy: Policy) -> Self {
        let series = ExponentialBackoffBuilder::new()
            .with_initial_interval(policy.initial)
            .with_max_interval(policy.max)
            .with_multiplier(policy.multiplier)
            // The crate's own source of randomness cannot be seeded; jitter is ours.
            .with_randomization_factor(0.0)
            // The default gives up after 15 minutes; whoever waits here has no plan B.
            .with_max_elapsed_time(None)
            .build();
        Self { series, max: policy.max, jitter: policy.jitter }
    }

    /// How long to wait this time.
    pub fn next_delay(&mut self) -> Duration {
        let wait = self.series.next_backoff().unwrap_or(self.max);
        // The thread's generator: a simulation seeds it.
        let spread = 1.0 + self.jitter * (2.0 * fastrand::f64() - 1.0);
        // Jitter comes after the crate's own cap, so the cap is enforced again here.
        wait.mul_f64(spread.max(0.0)).min(self.max)
    }

    /// The thing that was tried works again.
    pub fn reset(&mut self) {
        self.series.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_stay_below_the_cap_and_never_end() {
        let mut backoff = Backoff::new(Policy { jitter: 0.0, ..RECONNECT });
        let waits: Vec<_> = (0..10_000).map(|_| backoff.next_delay()).collect();
        assert_eq!(waits[0], RECONNECT.initial);
        assert!(waits.windows(2).all(|w| w[0] <= w[1]));
        assert_eq!(waits[9_999], RECONNECT.max);
    }

    #[test]
    fn jitter_spreads_but_keeps_the_cap() {
        let mut backoff = Backoff::new(RECONNECT);
        let waits: Vec<_> = (0..200).map(|_| backoff.next_delay()).collect();
        assert!(waits.iter().all(|w| *w <= RECONNECT.max));
        assert!(waits.iter().any(|w| *w != RECONNECT.max), "no spread at all");
    }

    #[test]
    fn reset_starts_over() {
        let mut backoff = Backoff::new(Policy { jitter: 0.0, ..RECONNECT });
        let first = backoff.next_delay();
        backoff.next_delay();
        backoff.reset();
        assert_eq!(backoff.next_delay(), first);
    }
}
