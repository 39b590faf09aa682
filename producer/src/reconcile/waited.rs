//! How long something has been so, by what this process saw itself: at which moment how many events
//! were known. No clock of a machine is asked, least of all two.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Moments kept. Beyond, every second one of the older half goes: what is old need not be known to the second. A
/// wait is then known to be shorter than it is, by less than half.
const MAX_MOMENTS: usize = 4_096;

/// What was known when, since this began to look.
#[derive(Debug, Default)]
pub struct Waited {
    /// Each moment with the number that the next event was to have, in order.
    moments: VecDeque<(Instant, u64)>,
}

impl Waited {
    /// Notes a moment.
    pub fn note(&mut self, now: Instant, next_seq: u64) {
        if self.moments.len() >= MAX_MOMENTS {
            let mut place = 0;
            self.moments.retain(|_| {
                place += 1;
                place > MAX_MOMENTS / 2 || place % 2 == 1
            });
        }
        self.moments.push_back((now, next_seq));
    }

    /// Forgets everything: while nothing could be heard, silence says nothing.
    pub fn forget(&mut self) {
        self.moments.clear();
    }

    /// For how long, at least, the event with this number has been known.
    pub fn since(&self, seq: u64, now: Instant) -> Duration {
        self.known_at(seq).map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
    }

    /// The number that the next event was to have so long after this one was known; `None` when that moment
    /// has not come.
    pub fn number_after(&self, seq: u64, wait: Duration) -> Option<u64> {
        let then = self.known_at(seq)?.checked_add(wait)?;
        let place = self.moments.partition_point(|(at, _)| *at < then);
        self.moments.get(place).map(|(_, next_seq)| *next_seq)
    }

    fn known_at(&self, seq: u64) -> Option<Instant> {
        let place = self.moments.partition_point(|(_, next_seq)| *next_seq <= seq);
        self.moments.get(place).map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_wait_begins_when_the_event_is_first_known_here() {
        let start = Instant::now();
        let mut waited = Waited::default();
        assert_eq!(waited.since(0, start), Duration::ZERO);
        for (second, next_seq) in (0..).zip([1, 5, 5, 9]) {
            waited.note(start + SECOND * second, next_seq);
        }
        let now = start + SECOND * 3;
        assert_eq!([0, 1, 4, 5, 8, 9].map(|seq| waited.since(seq, now).as_secs()), [3, 2, 2, 0, 0, 0]);
        assert_eq!(waited.number_after(1, SECOND), Some(5));
        assert_eq!(waited.number_after(1, SECOND * 2), Some(9));
        assert_eq!(waited.number_after(1, SECOND * 3), None, "not come yet");
        waited.forget();
        assert_eq!(waited.since(0, now), Duration::ZERO);
    }

    #[test]
    fn many_moments_take_bounded_room_and_never_make_a_wait_longer() {
        let start = Instant::now();
        let mut waited = Waited::default();
        let moments = 5 * MAX_MOMENTS as u32;
        for second in 0..moments {
            waited.note(start + SECOND * second, u64::from(second) + 1);
            assert!(waited.moments.len() <= MAX_MOMENTS);
        }
        let now = start + SECOND * (moments - 1);
        for seq in (0..moments).step_by(997) {
            let true_wait = SECOND * (moments - 1 - seq);
            let known = waited.since(u64::from(seq), now);
            assert!(known <= true_wait && known * 2 + SECOND >= true_wait, "{seq}: {known:?} of {true_wait:?}");
        }
    }
}
