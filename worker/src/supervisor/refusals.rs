//! Queues that refuse what this host publishes: told when that lasts, and when it is over.

use std::collections::BTreeMap;
use std::time::Duration;

use stoker_schemas::event::{EventData, HostPublishingRefused, HostPublishingResumed};
use tokio::time::Instant;

use super::Supervisor;
use super::turn::Turn;
use crate::outbox::Refusal;

/// What changes back within this is not told: a queue at its limit takes one message and refuses the next, and each
/// word stays in the log.
const LASTING: Duration = Duration::from_secs(2);

/// What was told of each queue.
#[derive(Debug, Default)]
pub(super) struct Refusals(BTreeMap<String, Told>);

#[derive(Debug, Default)]
struct Told {
    /// Messages that were told of; 0 for none.
    messages: u64,
    /// Since when it differs from what was told.
    differs: Option<Instant>,
}

impl Refusals {
    /// What is to be told, seeing this now.
    fn look(&mut self, seen: &[Refusal], now: Instant) -> Vec<EventData> {
        let mut facts = Vec::new();
        for refusal in seen {
            let told = self.0.entry(refusal.queue.clone()).or_default();
            // Told again at each doubling only: the number is for people.
            if told.is_due(refusal.messages >= told.messages.saturating_mul(2).max(1), now) {
                told.messages = refusal.messages;
                facts.push(EventData::HostPublishingRefused(HostPublishingRefused {
                    queue: refusal.queue.clone(),
                    reason: refusal.reason.clone(),
                    messages: refusal.messages,
                    oldest: refusal.oldest,
                }));
            }
        }
        for (queue, told) in &mut self.0 {
            let is_over = seen.iter().all(|refusal| refusal.queue != *queue);
            if is_over && told.messages == 0 {
                told.differs = None;
            } else if is_over && told.is_due(true, now) {
                told.messages = 0;
                facts.push(EventData::HostPublishingResumed(HostPublishingResumed { queue: queue.clone() }));
            }
        }
        self.0.retain(|_, told| told.messages > 0 || told.differs.is_some());
        facts
    }
}

impl Told {
    fn is_due(&mut self, differs: bool, now: Instant) -> bool {
        if !differs {
            self.differs = None;
            return false;
        }
        let is_due = now.duration_since(*self.differs.get_or_insert(now)) >= LASTING;
        if is_due {
            self.differs = None;
        }
        is_due
    }
}

impl Supervisor {
    pub(super) fn tell_refusals(&mut self, turn: &mut Turn) {
        for fact in self.refusals.look(&self.settling.progress().refusals, Instant::now()) {
            turn.host_fact(fact);
        }
    }
}

#[cfg(test)]
mod tests {
    use stoker_schemas::Time;

    use super::*;

    fn refusal(queue: &str, messages: u64) -> Refusal {
        Refusal { queue: queue.to_owned(), reason: "full".to_owned(), messages, oldest: Time::from_unix_micros(7) }
    }

    fn kinds(facts: &[EventData]) -> Vec<&'static str> {
        facts.iter().map(EventData::kind).collect()
    }

    const REFUSED: &str = "host.publishing-refused";
    const RESUMED: &str = "host.publishing-resumed";

    #[test]
    fn a_lasting_refusal_is_told_once_and_its_end_once() {
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let seen = [refusal("a", 3), refusal("b", 1)];
        assert!(refusals.look(&seen, start).is_empty());
        assert_eq!(kinds(&refusals.look(&seen, after(2))), [REFUSED, REFUSED]);
        assert!(refusals.look(&seen, after(60)).is_empty());
        let left = [refusal("b", 1)];
        assert!(refusals.look(&left, after(61)).is_empty());
        assert_eq!(kinds(&refusals.look(&left, after(63))), [RESUMED]);
        assert!(refusals.look(&left, after(99)).is_empty());
    }

    #[test]
    fn what_passes_quickly_is_not_told() {
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        for n in 0..20 {
            let seen = if n % 2 == 0 { vec![refusal("a", 1)] } else { Vec::new() };
            assert!(refusals.look(&seen, start + Duration::from_secs(n)).is_empty());
        }
    }

    #[test]
    fn growing_is_told_at_each_doubling() {
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        let mut told = 0;
        for n in 1..=1_000 {
            told += refusals.look(&[refusal("a", n)], start + Duration::from_secs(n)).len();
        }
        assert!((5..=10).contains(&told), "{told}");
    }
}
