//! When a failed attempt is repeated, and when not.

use std::time::Duration;

use crate::diagnosis::Cause;
use crate::spec::RetryPolicy;

/// Randomness handed in by the caller: parts per million, 0 to 1,000,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jitter(u32);

impl Jitter {
    /// The full range.
    pub const SCALE: u32 = 1_000_000;

    /// Any number; the remainder to the scale counts.
    pub const fn from_random(random: u32) -> Self {
        Self(random % (Self::SCALE + 1))
    }
}

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Again, after this long.
    Again(Duration),
    /// No: another attempt would fail the same way.
    NotRetryable,
    /// No: this was the last one allowed.
    Exhausted {
        /// How many were allowed for this cause.
        allowed: u32,
    },
}

/// Decides after attempt number `attempt` failed for `cause`.
pub fn after_failure(policy: &RetryPolicy, attempt: u32, cause: Cause, jitter: Jitter) -> Verdict {
    let own = policy.per_cause.get(&cause).copied();
    // A per-cause number is the user's word, also for causes that we would not repeat.
    if own.is_none() && !cause.retryable() {
        return Verdict::NotRetryable;
    }
    let allowed = own.unwrap_or(policy.max_attempts);
    if attempt >= allowed {
        return Verdict::Exhausted { allowed };
    }
    Verdict::Again(delay(policy, attempt, jitter))
}

/// Exponential wait after attempt number `attempt`, capped, with the policy's share of it random
/// (the wait is never longer than the cap, and never shorter than the fixed share).
pub fn delay(policy: &RetryPolicy, attempt: u32, jitter: Jitter) -> Duration {
    let doublings = attempt.saturating_sub(1).min(32);
    let full_ms = policy.base_ms.saturating_mul(1 << doublings).min(policy.cap_ms);
    let random_share = full_ms * u64::from(policy.jitter_percent) / 100;
    let fixed = full_ms - random_share;
    // random_share <= 24 h in ms and the jitter <= 1e6: the product stays below 2^63.
    Duration::from_millis(fixed + random_share * u64::from(jitter.0) / u64::from(Jitter::SCALE))
}

/// The wait before a job that was put back `times` times before is offered again, ms: doubled each time up to
/// the cap. Not an attempt, so no policy of the job's counts.
pub fn deferral_ms(base_ms: u64, cap_ms: u64, times: u32) -> u64 {
    let doubled = 1_u64.checked_shl(times).and_then(|factor| base_ms.checked_mul(factor));
    doubled.unwrap_or(cap_ms).min(cap_ms)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn policy(base_ms: u64, cap_ms: u64, jitter_percent: u8, max_attempts: u32) -> RetryPolicy {
        RetryPolicy { max_attempts, base_ms, cap_ms, jitter_percent, per_cause: BTreeMap::new() }
    }

    proptest! {
        #[test]
        fn waits_lie_between_the_fixed_share_and_the_cap(
            base in 0u64..86_400_000, extra in 0u64..86_400_000, percent in 0u8..=100, attempt in 1u32..1000, random: u32
        ) {
            let cap = (base + extra).min(86_400_000).max(base);
            let p = policy(base, cap, percent, 50);
            let wait = delay(&p, attempt, Jitter::from_random(random));
            let full = delay(&p, attempt, Jitter(Jitter::SCALE));
            prop_assert!(full <= Duration::from_millis(cap));
            prop_assert!(wait <= full);
            prop_assert!(wait.as_millis() >= full.as_millis() * u128::from(100 - percent) / 100);
        }

        #[test]
        fn never_more_attempts_than_allowed(max in 1u32..50, attempt in 1u32..100, random: u32) {
            let verdict = after_failure(&policy(1, 1, 0, max), attempt, Cause::AgentNotListening, Jitter::from_random(random));
            prop_assert_eq!(matches!(verdict, Verdict::Again(_)), attempt < max);
        }
    }

    #[test]
    fn every_jitter_up_to_the_scale_can_be_drawn_and_none_beyond() {
        let scale = Jitter::SCALE;
        for (random, drawn) in [(0, 0), (7, 7), (scale, scale), (scale + 1, 0), (scale + 8, 7), (2 * scale + 2, 0)] {
            assert_eq!(Jitter::from_random(random), Jitter(drawn), "{random}");
        }
    }

    #[test]
    fn each_wait_is_twice_the_one_before_up_to_the_cap() {
        let p = policy(100, 60_000, 0, 50);
        let waits: Vec<_> = (1..=12).map(|attempt| delay(&p, attempt, Jitter(0)).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 51_200, 60_000, 60_000]);
        let longest = policy(1, u64::MAX, 0, 50);
        let last = 1 << 32;
        assert_eq!(delay(&longest, 33, Jitter(0)), Duration::from_millis(last));
        assert_eq!(delay(&longest, u32::MAX, Jitter(0)), Duration::from_millis(last), "no more doublings than 32");
    }

    #[test]
    fn the_random_share_of_a_wait_follows_the_jitter() {
        let p = policy(1_000, 60_000, 20, 50);
        let ms = |parts_per_million| delay(&p, 2, Jitter(parts_per_million)).as_millis();
        assert_eq!([0, 250_000, 500_000, Jitter::SCALE].map(ms), [1_600, 1_700, 1_800, 2_000]);
    }

    #[test]
    fn deferrals_double_up_to_their_cap() {
        let waits = [0, 1, 2, 3, 4, 63, 64, u32::MAX].map(|times| deferral_ms(1_000, 15_000, times));
        assert_eq!(waits, [1_000, 2_000, 4_000, 8_000, 15_000, 15_000, 15_000, 15_000]);
    }

    #[test]
    fn a_conflicting_network_is_not_repeated_unless_asked() {
        let mut p = policy(1000, 1000, 0, 3);
        assert_eq!(after_failure(&p, 1, Cause::ConflictingNetwork, Jitter(0)), Verdict::NotRetryable);
        p.per_cause.insert(Cause::ConflictingNetwork, 2);
        assert_eq!(after_failure(&p, 1, Cause::ConflictingNetwork, Jitter(0)), Verdict::Again(Duration::from_secs(1)));
        assert_eq!(after_failure(&p, 2, Cause::ConflictingNetwork, Jitter(0)), Verdict::Exhausted { allowed: 2 });
    }
}
