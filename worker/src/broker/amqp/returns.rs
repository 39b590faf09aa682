//! Whose message came back.
//!
//! RabbitMQ returns an unroutable message and confirms it afterwards, on its own time: confirms of
//! others may come in between, and one frame may confirm many. lapin queues what is returned and
//! hands the next of it to whichever message is confirmed next. Taken at its word, a kept job is
//! called unroutable and an event that nobody took is called kept. So a returned message is known by
//! what is written on it, and one that was confirmed while carrying another's waits until it is
//! certain that its own is not still to come.
//!
//! Certain, because each of lapin's confirms takes one from the queue: as many as are queued at any
//! time, at least so many confirms are still to come of messages that were under way then.

use std::collections::BTreeSet;

/// A confirm as it came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Confirmed {
    pub id: u64,
    /// Whether every queue that it went to has it; also for one that went nowhere.
    pub acked: bool,
    /// Whose returned message came along.
    pub carried: Option<u64>,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Kept,
    Refused,
    Returned,
}

/// Confirmed with another's message; its own may have been queued behind that one.
#[derive(Debug)]
struct Held {
    id: u64,
    acked: bool,
    /// Those that were under way have smaller ids. When they are confirmed, all is known.
    until: u64,
}

/// The books of one channel. Ids rise in the order of publishing.
#[derive(Debug, Default)]
pub(super) struct Returns {
    under_way: BTreeSet<u64>,
    returned: BTreeSet<u64>,
    held: Vec<Held>,
}

impl Returns {
    pub(super) fn sent(&mut self, id: u64) {
        self.under_way.insert(id);
    }

    /// Is it known to have come back, and not said yet?
    pub(super) fn is_returned(&self, id: u64) -> bool {
        self.returned.contains(&id)
    }

    pub(super) fn came_back(&mut self, id: u64) {
        self.returned.insert(id);
    }

    /// Says what is certain, in no particular order. What was carried must have been told to
    /// [`Self::came_back`], and whatever was confirmed before the last of these must be among them
    /// or have been settled: their order does not matter.
    pub(super) fn settle(&mut self, confirmed: &[Confirmed]) -> Vec<(u64, Verdict)> {
        for one in confirmed {
            self.under_way.remove(&one.id);
        }
        // One that carried nothing was confirmed after all the older ones that are held: nothing of
        // theirs was queued any more.
        let was_empty = confirmed.iter().any(|one| one.carried.is_none());
        let next = self.under_way.first().copied().unwrap_or(u64::MAX);
        let until = self.under_way.last().map_or(0, |last| last + 1);

        let held = std::mem::take(&mut self.held).into_iter().map(|one| (one, was_empty));
        let new = confirmed.iter().map(|one| {
            let own = Held { id: one.id, acked: one.acked, until };
            (own, one.carried.is_none())
        });
        let mut settled = Vec::with_capacity(confirmed.len());
        for (one, certain) in held.chain(new) {
            if self.returned.remove(&one.id) {
                settled.push((one.id, Verdict::Returned));
            } else if certain || next >= one.until {
                settled.push((one.id, if one.acked { Verdict::Kept } else { Verdict::Refused }));
            } else {
                self.held.push(one);
            }
        }
        settled
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use proptest::prelude::*;

    use super::*;

    fn with(id: u64, carried: Option<u64>) -> Confirmed {
        Confirmed { id, acked: true, carried }
    }

    /// As the publisher does.
    fn settle(returns: &mut Returns, confirmed: &[Confirmed]) -> Vec<(u64, Verdict)> {
        confirmed.iter().filter_map(|one| one.carried).for_each(|owner| returns.came_back(owner));
        returns.settle(confirmed)
    }

    fn sent(ids: std::ops::Range<u64>) -> Returns {
        let mut returns = Returns::default();
        ids.for_each(|id| returns.sent(id));
        returns
    }

    #[test]
    fn without_returns_each_is_said_at_once() {
        let mut returns = sent(0..2);
        assert_eq!(settle(&mut returns, &[with(1, None)]), [(1, Verdict::Kept)]);
        let refused = Confirmed { id: 0, acked: false, carried: None };
        assert_eq!(settle(&mut returns, &[refused]), [(0, Verdict::Refused)]);
    }

    #[test]
    fn a_kept_message_is_not_blamed_for_the_one_it_carried() {
        let mut returns = sent(0..2);
        assert_eq!(settle(&mut returns, &[with(0, Some(1))]), []);
        assert_eq!(settle(&mut returns, &[with(1, None)]), [(0, Verdict::Kept), (1, Verdict::Returned)]);
    }

    #[test]
    fn one_that_carried_anothers_may_have_come_back_itself() {
        let mut returns = sent(0..3);
        assert_eq!(settle(&mut returns, &[with(0, Some(2))]), []);
        assert_eq!(settle(&mut returns, &[with(1, Some(0))]), [(0, Verdict::Returned)]);
        assert_eq!(settle(&mut returns, &[with(2, None)]), [(1, Verdict::Kept), (2, Verdict::Returned)]);
    }

    #[test]
    fn later_messages_are_not_waited_for() {
        let mut returns = sent(0..2);
        assert_eq!(settle(&mut returns, &[with(0, Some(1))]), []);
        returns.sent(2);
        assert_eq!(settle(&mut returns, &[with(1, Some(2))]), [(0, Verdict::Kept), (1, Verdict::Returned)]);
    }

    /// A broker and lapin: what each does next, and for which of the messages under way.
    #[derive(Debug, Clone)]
    enum Step {
        Publish {
            routable: bool,
        },
        Return(prop::sample::Index),
        Confirm {
            which: prop::sample::Index,
            through: bool,
        },
        /// The publisher looks.
        Poll,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => any::<bool>().prop_map(|routable| Step::Publish { routable }),
            2 => any::<prop::sample::Index>().prop_map(Step::Return),
            3 => (any::<prop::sample::Index>(), prop::bool::weighted(0.3))
                .prop_map(|(which, through)| Step::Confirm { which, through }),
            2 => Just(Step::Poll),
        ]
    }

    #[derive(Default)]
    struct World {
        returns: Returns,
        next: u64,
        /// Published and not confirmed: routable or not, and whether it was returned.
        under_way: BTreeMap<u64, (bool, bool)>,
        routable: BTreeMap<u64, bool>,
        queue: VecDeque<u64>,
        resolved: Vec<Confirmed>,
        said: BTreeMap<u64, Verdict>,
    }

    impl World {
        fn confirm(&mut self, id: u64) {
            let Some((routable, returned)) = self.under_way.remove(&id) else { return };
            if !routable && !returned {
                self.queue.push_back(id);
            }
            let carried = self.queue.pop_front();
            self.resolved.push(with(id, carried));
        }

        fn run(&mut self, step: &Step) {
            let ids: Vec<u64> = self.under_way.keys().copied().collect();
            match step {
                Step::Publish { routable } => {
                    self.returns.sent(self.next);
                    self.under_way.insert(self.next, (*routable, false));
                    self.routable.insert(self.next, *routable);
                    self.next += 1;
                }
                Step::Return(which) if !ids.is_empty() => {
                    let id = *which.get(&ids);
                    let Some((false, returned @ false)) = self.under_way.get_mut(&id) else { return };
                    *returned = true;
                    self.queue.push_back(id);
                }
                Step::Confirm { which, through } if !ids.is_empty() => {
                    let last = *which.get(&ids);
                    let first = if *through { 0 } else { last };
                    // Those of one frame in an order that is not theirs.
                    ids.iter().rev().filter(|id| (first..=last).contains(id)).for_each(|id| self.confirm(*id));
                }
                Step::Poll => {
                    self.resolved.reverse();
                    let batch = std::mem::take(&mut self.resolved);
                    for (id, verdict) in settle(&mut self.returns, &batch) {
                        assert_eq!(self.said.insert(id, verdict), None, "{id} was said twice");
                    }
                }
                Step::Return(_) | Step::Confirm { .. } => {}
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn every_message_is_called_what_it_was(steps in prop::collection::vec(step(), 1..120)) {
            let mut world = World::default();
            steps.iter().for_each(|step| world.run(step));
            let rest: Vec<u64> = world.under_way.keys().copied().collect();
            rest.into_iter().for_each(|id| world.confirm(id));
            world.run(&Step::Poll);
            let truth: BTreeMap<u64, Verdict> = world.routable.iter()
                .map(|(id, kept)| (*id, if *kept { Verdict::Kept } else { Verdict::Returned }))
                .collect();
            prop_assert_eq!(world.said, truth);
        }
    }
}
