//! How many messages each lane of each pool may hand out: together as many as may boot, and a few more.
//!
//! A booting job holds its message, so what all lanes may hold is what boots at once. It is dealt out by demand:
//! a lane that has used all of its share gets more, one that has not keeps what it used. Each lane may hold one
//! message besides, so that no pool is without a share and a high lane's first job need not wait for a new deal.
//! Deals are rare: on RabbitMQ a lower credit costs a consumer (`broker/amqp/credit.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use stoker_schemas::PoolName;
use stoker_schemas::seeded::{self, Bug};
use stoker_schemas::spec::Priority;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::ports::broker::Delivery;

/// Least time between two deals for demand's sake, and how long what a lane used counts.
const DEAL_EVERY: Duration = Duration::from_secs(1);
/// Of lanes that want more than there is, a high one gets this many times as much as a normal one.
const HIGH_WEIGHT: u32 = 3;

/// What one lane wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Demand {
    pub(super) high: bool,
    /// It may hold no more; 0 while its pool is paused.
    pub(super) most: u32,
    /// The most it held since the last deal.
    pub(super) used: u32,
    /// It had used all that it might.
    pub(super) wants_more: bool,
}

/// Deals `budget` messages out; one for each lane comes on top.
pub(super) fn deal(budget: u32, demands: &[Demand]) -> Vec<u32> {
    let mut shares = vec![0; demands.len()];
    if budget == 0 {
        return shares;
    }
    // Twice as much each time: a lane with one job at a time does not take what others need.
    let wanted = |d: &Demand| if d.wants_more { d.used.saturating_mul(2).max(2) } else { d.used }.min(d.most);
    let left = fill(budget, demands, &mut shares, wanted);
    let left = fill(left, demands, &mut shares, |d| if d.wants_more { d.most } else { 0 });
    // Not needed now: wherever the next jobs come, they find it.
    let idle: Vec<_> = demands.iter().map(|d| Demand { high: false, ..*d }).collect();
    fill(left, &idle, &mut shares, |d| d.most);
    for (share, demand) in shares.iter_mut().zip(demands) {
        let besides = u32::from(!demand.wants_more || *share == 0);
        *share = (*share + besides).min(demand.most);
    }
    shares
}

/// Fills shares up to their limits, evenly by weight; what is left of the budget.
fn fill(mut budget: u32, demands: &[Demand], shares: &mut [u32], limit: impl Fn(&Demand) -> u32) -> u32 {
    let weight = |d: &Demand| u64::from(if d.high { HIGH_WEIGHT } else { 1 });
    while budget > 0 {
        let open = demands.iter().enumerate().filter(|(i, d)| shares[*i] < limit(d));
        // By share for its weight, compared without division; of equals the high lane.
        let rank = |i: usize, d: &Demand| u64::from(shares[i]) * u64::from(HIGH_WEIGHT) / weight(d);
        let Some((next, _)) = open.min_by_key(|(i, d)| (rank(*i, d), !d.high)) else { break };
        shares[next] += 1;
        budget -= 1;
    }
    budget
}

/// A lane that this host takes jobs from.
pub(super) struct Lane {
    pub(super) pool: PoolName,
    pub(super) priority: Priority,
    credit: watch::Sender<u32>,
    /// Messages that are here and not settled.
    held: Arc<AtomicU32>,
    /// The most since the last look.
    used: u32,
}

impl Lane {
    fn held(&self) -> u32 {
        self.held.load(Ordering::Relaxed)
    }

    fn demand(&self, most: u32) -> Demand {
        let wants_more = self.used > 0 && self.used >= *self.credit.borrow();
        Demand { high: self.priority == Priority::High, most, used: self.used, wants_more }
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    /// What the last deal was made from: budget, and the most that each lane may hold.
    basis: (u32, Vec<u32>),
    dealt_at: Option<Instant>,
    /// Since when uses are counted.
    used_since: Option<Instant>,
}

impl Lanes {
    /// One more; what counts its messages.
    pub(super) fn add(&mut self, pool: PoolName, priority: Priority, credit: watch::Sender<u32>) -> Counter {
        let held = Arc::new(AtomicU32::new(0));
        self.lanes.push(Lane { pool, priority, credit, held: held.clone(), used: 0 });
        Counter(held)
    }

    /// What all lanes together may hold.
    pub(super) fn granted(&self) -> u64 {
        self.lanes.iter().map(|lane| u64::from(*lane.credit.borrow())).sum()
    }

    /// Deals out what may be held, where something has changed or a lane wants more.
    pub(super) fn update(&mut self, budget: u32, most: impl Fn(&Lane) -> u32) {
        for lane in &mut self.lanes {
            lane.used = lane.used.max(lane.held());
        }
        let basis = (budget, self.lanes.iter().map(most).collect::<Vec<_>>());
        let demands: Vec<_> = self.lanes.iter().zip(&basis.1).map(|(lane, most)| lane.demand(*most)).collect();
        let now = Instant::now();
        let is_time = |last: Option<Instant>| last.is_none_or(|at| now >= at + DEAL_EVERY);
        let wanted = demands.iter().any(|demand| demand.wants_more && demand.used < demand.most);
        let wanted = wanted && is_time(self.dealt_at);
        if basis != self.basis || wanted {
            let stays_closed = seeded::is_on(Bug::CreditStaysZero) && self.used_since.is_some();
            for (lane, share) in self.lanes.iter_mut().zip(deal(budget, &demands)) {
                let share = if stays_closed && *lane.credit.borrow() == 0 { 0 } else { share };
                lane.credit.send_if_modified(|credit| std::mem::replace(credit, share) != share);
            }
            self.basis = basis;
            self.dealt_at = if wanted { Some(now) } else { self.dealt_at };
        }
        if is_time(self.used_since) {
            self.used_since = Some(now);
            self.lanes.iter_mut().for_each(|lane| lane.used = lane.held());
        }
    }
}

/// Counts a lane's messages.
#[derive(Clone)]
pub(super) struct Counter(Arc<AtomicU32>);

impl Counter {
    /// Counts this one until it is settled, or dropped.
    pub(super) fn count(&self, delivery: Delivery) -> Delivery {
        self.0.fetch_add(1, Ordering::Relaxed);
        Delivery { ack: delivery.ack.holding(One(self.0.clone())), ..delivery }
    }
}

struct One(Arc<AtomicU32>);

impl Drop for One {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[path = "credit/tests.rs"]
mod tests;
