//! Compares what a channel should do with what it does. Two things can go wrong without an error, and both end with
//! a lane that delivers nothing: deliveries that are open although no handle to settle them exists, and
//! a consumer that gets nothing although messages wait and it has credit left.

use std::time::Duration;

use tokio::time::Instant;

use super::fault::Fault;

/// Looks at one channel, from its opening to its end.
#[derive(Debug)]
pub(super) struct Watchdog {
    patience: Duration,
    /// Deliveries that nothing accounts for, and since when.
    lost: Option<(usize, Instant)>,
    starved: Option<Instant>,
}

impl Watchdog {
    /// What goes wrong for longer than `patience` is a fault.
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, lost: None, starved: None }
    }

    /// How often to look.
    pub(super) fn interval(&self) -> Duration {
        (self.patience / 3).max(Duration::from_millis(1))
    }

    /// `open`: deliveries that the broker waits for; `accounted`: those that are still to be handed over, or have a
    /// handle. A difference can be settling at this very moment, so only one that stays counts.
    pub(super) fn compare(&mut self, open: usize, accounted: usize, now: Instant) -> Result<(), Fault> {
        let lost = open.saturating_sub(accounted);
        if lost == 0 {
            self.lost = None;
            return Ok(());
        }
        let (fewest, since) = self.lost.map_or((lost, now), |(fewest, since)| (fewest.min(lost), since));
        self.lost = Some((fewest, since));
        if now.duration_since(since) >= self.patience { Err(Fault::Unaccounted(fewest)) } else { Ok(()) }
    }

    /// `waiting`: messages that the broker has and could deliver, while credit is free.
    pub(super) fn waits(&mut self, waiting: u64, now: Instant) -> Result<(), Fault> {
        if waiting == 0 {
            self.starved = None;
            return Ok(());
        }
        let since = *self.starved.get_or_insert(now);
        if now.duration_since(since) >= self.patience { Err(Fault::Starved(waiting)) } else { Ok(()) }
    }

    /// Something arrived, or nothing may.
    pub(super) fn fed(&mut self) {
        self.starved = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_delivery_without_a_handle_is_a_fault_when_it_stays() {
        let (mut dog, start) = (Watchdog::new(PATIENCE), Instant::now());
        assert!(dog.compare(5, 3, start).is_ok());
        assert!(dog.compare(4, 3, after(start, 29)).is_ok());
        assert!(matches!(dog.compare(9, 3, after(start, 30)), Err(Fault::Unaccounted(1))));
    }

    #[test]
    fn a_difference_that_goes_away_is_none() {
        let (mut dog, start) = (Watchdog::new(PATIENCE), Instant::now());
        for n in 0..10 {
            assert!(dog.compare(5, 3, after(start, 20 * n)).is_ok());
            assert!(dog.compare(5, 5, after(start, 20 * n + 10)).is_ok());
        }
        assert!(dog.compare(3, 7, after(start, 999)).is_ok(), "handles of an earlier channel");
    }

    #[test]
    fn a_consumer_that_gets_nothing_is_a_fault_while_messages_wait() {
        let (mut dog, start) = (Watchdog::new(PATIENCE), Instant::now());
        assert!(dog.waits(7, start).is_ok());
        assert!(matches!(dog.waits(8, after(start, 31)), Err(Fault::Starved(8))));
    }

    #[test]
    fn one_that_gets_something_or_has_nothing_to_get_is_none() {
        let (mut dog, start) = (Watchdog::new(PATIENCE), Instant::now());
        assert!(dog.waits(7, start).is_ok());
        dog.fed();
        assert!(dog.waits(7, after(start, 31)).is_ok());
        assert!(dog.waits(0, after(start, 60)).is_ok());
        assert!(dog.waits(7, after(start, 62)).is_ok());
    }
}
