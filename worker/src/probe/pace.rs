//! How often to ask, and how long to wait for a connection.
//!
//! Two things are kept apart: the wait between tries (tight while a boot may end at any moment,
//! then slower), and the patience with one SYN. The kernel repeats a lost SYN after 1 s, so an early
//! try that waits for it would see an agent a second late; a new try sends a new SYN.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff_policy::{Backoff, Policy};

/// The tight phase: most boots of a small guest end in it.
const TIGHT_FOR: Duration = Duration::from_secs(2);
const TIGHT: Policy =
    Policy { initial: Duration::from_millis(1), max: Duration::from_millis(5), multiplier: 1.5, jitter: 0.0 };
/// Afterwards the wait grows up to this: what it adds at worst to a boot of many seconds.
/// The jitter spreads the polls of VMs that were started together.
const LOOSE: Policy =
    Policy { initial: Duration::from_millis(10), max: Duration::from_millis(250), multiplier: 1.5, jitter: 0.2 };

/// Patience with a connection, by how many tries in a row got none. A sound guest answers a SYN in
/// 1-6 ms; a SYN sent a moment too early makes us blind for as long as we wait for it. It grows,
/// because an overloaded guest that needs 100 ms would never be seen otherwise.
pub(super) const PATIENCE: [Duration; 5] = [
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(1000),
];
/// Up to which patience it grows until the poll is this old; afterwards up to the last.
const GROWS_TO: [(Duration, usize); 2] = [(TIGHT_FOR, 1), (Duration::from_secs(10), 3)];

/// The pace of one VM's polling.
pub(super) struct Pace {
    started: Instant,
    tight: Backoff,
    loose: Backoff,
    unconnected: usize,
}

impl Pace {
    pub fn start() -> Self {
        Self { started: Instant::now(), tight: Backoff::new(TIGHT), loose: Backoff::new(LOOSE), unconnected: 0 }
    }

    /// Time since the first try.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Notes whether the last try ran out of patience; returns the wait before the next.
    pub fn next(&mut self, ran_out: bool) -> Duration {
        self.unconnected = if ran_out { self.unconnected + 1 } else { 0 };
        let tight = self.elapsed() < TIGHT_FOR;
        if tight { self.tight.next_delay() } else { self.loose.next_delay() }
    }

    /// Index into [`PATIENCE`] for the next try.
    pub fn patience(&self) -> usize {
        let elapsed = self.elapsed();
        let most = GROWS_TO.iter().find(|(until, _)| elapsed < *until).map_or(PATIENCE.len() - 1, |(_, most)| *most);
        self.unconnected.min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tight_at_first_then_slower_and_bounded() {
        let mut pace = Pace::start();
        let early: Vec<Duration> = (0..50).map(|_| pace.next(false)).collect();
        assert_eq!(early[0], TIGHT.initial);
        assert!(early.iter().all(|wait| *wait <= TIGHT.max), "{early:?}");
        pace.started = Instant::now().checked_sub(TIGHT_FOR).unwrap();
        let late: Vec<Duration> = (0..50).map(|_| pace.next(false)).collect();
        assert!(late[49] > Duration::from_millis(190), "{late:?}");
        assert!(late.iter().all(|wait| *wait <= LOOSE.max), "{late:?}");
    }

    #[test]
    fn patience_grows_with_silence_and_is_lost_with_an_answer() {
        let mut pace = Pace::start();
        assert_eq!(pace.patience(), 0);
        for _ in 0..10 {
            pace.next(true);
        }
        assert_eq!(pace.patience(), 1);
        for (age, most) in [(TIGHT_FOR, 3), (GROWS_TO[1].0, 4)] {
            pace.started = Instant::now().checked_sub(age).unwrap();
            assert_eq!(pace.patience(), most);
        }
        pace.next(false);
        assert_eq!(pace.patience(), 0);
    }
}
