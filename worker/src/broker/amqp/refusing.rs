//! Queues that go on refusing what is published, although they have room.
//!
//! A channel that first publishes to a quorum queue while the queue's leader is being replaced is refused, and
//! RabbitMQ 3.10 goes on refusing on that channel for as long as it lives. A queue that is really full refuses on
//! every channel. So a refusal that lasts is tried on a fresh channel, with growing waits in between.

use std::collections::BTreeMap;

use lapin::types::ShortString;
use tokio::time::{Duration, Instant};

use crate::backoff_policy::{Backoff, Policy};

/// How long a queue may refuse before a fresh channel is tried, and how often at most.
const PATIENCE: Policy =
    Policy { initial: Duration::from_secs(1), max: Duration::from_secs(60), multiplier: 2.0, jitter: 0.0 };
/// Keys that are watched at once; the names of pools in them come from outside.
const MAX_KEYS: usize = 1024;

/// Since when each routing key has been refused.
pub(super) struct Refusing {
    since: BTreeMap<ShortString, Instant>,
    waits: Backoff,
    wait: Duration,
}

impl Refusing {
    pub(super) fn new() -> Self {
        let mut waits = Backoff::new(PATIENCE);
        let wait = waits.next_delay();
        Self { since: BTreeMap::new(), waits, wait }
    }

    /// A message with this key was taken.
    pub(super) fn taken(&mut self, key: &ShortString) {
        if self.since.remove(key).is_some() && self.since.is_empty() {
            self.waits.reset();
            self.wait = self.waits.next_delay();
        }
    }

    /// A message with this key was refused. `true` when a fresh channel should be tried.
    pub(super) fn refused(&mut self, key: &ShortString, now: Instant) -> bool {
        if self.since.len() >= MAX_KEYS && !self.since.contains_key(key) {
            return false;
        }
        let since = *self.since.entry(key.clone()).or_insert(now);
        now.duration_since(since) >= self.wait
    }

    /// A fresh channel is opened: what is refused on it has been refused since now.
    pub(super) fn renewed(&mut self, now: Instant) {
        self.since.values_mut().for_each(|since| *since = now);
        self.wait = self.waits.next_delay();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_that_lasts_is_tried_on_a_fresh_channel_less_and_less_often() {
        let (key, other): (ShortString, ShortString) = ("job.enqueued.a.high".into(), "vm.gone".into());
        let (mut refusing, begun) = (Refusing::new(), Instant::now());
        let mut renewals = Vec::new();
        for second in 0..200 {
            let now = begun + Duration::from_secs(second);
            // What is taken elsewhere changes nothing.
            refusing.taken(&other);
            if refusing.refused(&key, now) {
                renewals.push(second);
                refusing.renewed(now);
            }
        }
        assert_eq!(renewals, [1, 3, 7, 15, 31, 63, 123, 183]);
        refusing.taken(&key);
        let now = begun + Duration::from_secs(200);
        assert!(!refusing.refused(&key, now), "it was taken meanwhile");
        assert!(refusing.refused(&key, now + Duration::from_secs(1)));
    }
}
