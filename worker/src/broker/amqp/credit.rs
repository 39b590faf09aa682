//! How a credit becomes consumers.
//!
//! `basic.qos` holds for consumers that start after it, a quorum queue has no channel-wide limit,
//! and starting a consumer again under a tag with unacknowledged deliveries crashes the channel
//! (RabbitMQ 3.10). So a credit is a *sum*: raising it adds a consumer with the difference,
//! lowering it cancels consumers. A cancelled consumer's deliveries stay ours until settled and
//! count against the credit, so it is never exceeded by new work.

/// A credit regained in small pieces is handed out in portions of at least this part of it, so
/// that a channel carries a dozen consumers at most and not one for each message.
const SMALLEST_PORTION: u32 = 8;
/// Raising a credit many times on a busy channel merges the newest consumers from here on.
const MAX_CONSUMERS: usize = 16;
/// AMQP counts a prefetch in 16 bits; 0 means without limit and is never sent.
const MAX_PREFETCH: u32 = u16::MAX as u32;

/// One consumer on the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    /// What it may have unacknowledged.
    pub prefetch: u32,
    /// What it has.
    pub unacked: u32,
    /// `false` once cancelled.
    pub active: bool,
}

/// What to do next to come closer to the wanted credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing, for now.
    Keep,
    /// Cancel the consumer at this index.
    Cancel(usize),
    /// Start one more, with this prefetch.
    Add(u16),
    /// Nothing is unacknowledged and the channel has a past: begin again with a fresh one.
    Renew,
}

/// The next step towards `credit`.
pub(super) fn step(credit: u32, shares: &[Share]) -> Step {
    let credit = credit.min(MAX_PREFETCH);
    let granted: u32 = shares.iter().filter(|s| s.active).map(|s| s.prefetch).sum();
    let leftover: u32 = shares.iter().filter(|s| !s.active).map(|s| s.unacked).sum();
    if granted > credit {
        // The newest is the smallest: what it loses is regained soonest.
        return shares.iter().rposition(|s| s.active).map_or(Step::Keep, Step::Cancel);
    }
    let spare = credit.saturating_sub(granted + leftover);
    let settled = shares.iter().all(|s| s.unacked == 0);
    if settled && !shares.is_empty() && (spare > 0 || credit == 0 || shares.len() > 1) {
        return Step::Renew;
    }
    if spare == 0 || (leftover > 0 && spare < (credit / SMALLEST_PORTION).max(1)) {
        return Step::Keep;
    }
    if shares.iter().filter(|s| s.active).count() >= MAX_CONSUMERS {
        return shares.iter().rposition(|s| s.active).map_or(Step::Keep, Step::Cancel);
    }
    u16::try_from(spare).map_or(Step::Keep, Step::Add)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn active(prefetch: u32, unacked: u32) -> Share {
        Share { prefetch, unacked, active: true }
    }
    const fn cancelled(unacked: u32) -> Share {
        Share { prefetch: 9, unacked, active: false }
    }

    #[test]
    fn the_first_credit_is_one_consumer() {
        assert_eq!(step(4, &[]), Step::Add(4));
        assert_eq!(step(0, &[]), Step::Keep);
        assert_eq!(step(1_000_000, &[]), Step::Add(u16::MAX));
    }

    #[test]
    fn raising_adds_the_difference() {
        assert_eq!(step(6, &[active(4, 4)]), Step::Add(2));
        assert_eq!(step(6, &[active(4, 4), active(2, 0)]), Step::Keep);
    }

    #[test]
    fn lowering_cancels_and_never_exceeds_the_new_credit() {
        assert_eq!(step(3, &[active(4, 4), active(2, 1)]), Step::Cancel(1));
        assert_eq!(step(3, &[active(4, 4), cancelled(1)]), Step::Cancel(0));
        assert_eq!(step(3, &[cancelled(4), cancelled(1)]), Step::Keep);
        assert_eq!(step(3, &[cancelled(1), cancelled(1)]), Step::Add(1));
    }

    #[test]
    fn regained_credit_comes_in_portions() {
        assert_eq!(step(100, &[cancelled(95)]), Step::Keep);
        assert_eq!(step(100, &[cancelled(85)]), Step::Add(15));
    }

    #[test]
    fn an_idle_channel_with_a_past_is_renewed() {
        assert_eq!(step(6, &[active(4, 0), active(2, 0)]), Step::Renew);
        assert_eq!(step(6, &[active(4, 0)]), Step::Renew);
        assert_eq!(step(0, &[cancelled(0)]), Step::Renew);
        assert_eq!(step(6, &[active(6, 0)]), Step::Keep);
    }

    #[test]
    fn consumers_do_not_pile_up() {
        let mut shares = vec![];
        for credit in 1..500 {
            loop {
                match step(credit, &shares) {
                    Step::Keep => break,
                    Step::Cancel(i) => drop(shares.remove(i)),
                    Step::Add(n) => shares.push(active(u32::from(n), u32::from(n))),
                    Step::Renew => shares.clear(),
                }
            }
            assert!(shares.len() <= MAX_CONSUMERS);
            assert_eq!(shares.iter().map(|s: &Share| s.prefetch).sum::<u32>(), credit);
        }
    }

    #[test]
    fn it_always_settles() {
        for credit in 0..40 {
            let mut shares = vec![active(16, 7), active(5, 5)];
            for _ in 0..100 {
                match step(credit, &shares) {
                    Step::Keep => break,
                    Step::Cancel(i) => shares[i].active = false,
                    Step::Add(n) => shares.push(active(u32::from(n), 0)),
                    Step::Renew => shares.clear(),
                }
                let granted: u32 = shares.iter().filter(|s| s.active).map(|s| s.prefetch).sum();
                assert!(shares.len() <= 4 && granted <= 40);
            }
            assert_eq!(step(credit, &shares), Step::Keep, "credit {credit}: {shares:?}");
        }
    }
}
