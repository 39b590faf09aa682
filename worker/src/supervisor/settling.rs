//! Deliveries that are acknowledged once what their jobs wrote is published.
//!
//! A delivery waits for its own job only: that a queue refuses another one's message is not its concern.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use stoker_schemas::{JobId, PoolName};
use tokio::time::Instant;

use crate::outbox::Progress;
use crate::ports::broker::Source;
use crate::ports::handle::Handle;

/// A delivery whose job waits for a queue is kept open no longer than this: RabbitMQ ends a channel with a delivery of
/// 30 minutes. What the job wrote is in the log by then, and the outbox goes on with it.
const MAX_HELD: Duration = Duration::from_secs(600);
/// And no more of them than this; each takes a place beside those that the credit allows.
const MAX_HELD_DELIVERIES: usize = 256;

/// A delivery to acknowledge when its time has come.
pub(super) struct Owed {
    /// The job that it is about, if it is about one that we write of.
    pub(super) job: Option<JobId>,
    pub(super) handle: Handle,
}

/// What has been committed and not acknowledged.
#[derive(Default)]
pub(super) struct Settling {
    progress: Progress,
    /// By the log's head when their facts were on disk.
    unpublished: BTreeMap<u64, Vec<Owed>>,
    /// Passed by the outbox, but a message of their job is set aside; the oldest first.
    held: VecDeque<Held>,
}

struct Held {
    head: u64,
    since: Instant,
    owed: Owed,
}

impl Settling {
    /// Keeps what was committed at this head; what may be acknowledged at once comes back.
    pub(super) fn add(&mut self, head: u64, owed: Vec<Owed>) -> Vec<Handle> {
        if owed.is_empty() {
            return Vec::new();
        }
        if self.progress.through < head {
            self.unpublished.entry(head).or_default().extend(owed);
            return Vec::new();
        }
        self.published(head, owed)
    }

    /// What may be acknowledged now that the outbox has come so far.
    pub(super) fn advance(&mut self, progress: Progress) -> Vec<Handle> {
        let through = progress.through;
        self.progress = progress;
        let later = self.unpublished.split_off(&(through + 1));
        let passed = std::mem::replace(&mut self.unpublished, later);
        let mut done: Vec<Handle> = passed.into_iter().flat_map(|(head, owed)| self.published(head, owed)).collect();
        let progress = &self.progress;
        done.extend(release(&mut self.held, |held| progress.covers(held.owed.job, held.head)));
        done
    }

    /// What is not to be held any longer, whatever its queue does.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Handle> {
        let surplus = self.held.len().saturating_sub(MAX_HELD_DELIVERIES);
        let mut n = 0;
        release(&mut self.held, |held| {
            n += 1;
            n <= surplus || now.duration_since(held.since) >= MAX_HELD
        })
    }

    fn published(&mut self, head: u64, owed: Vec<Owed>) -> Vec<Handle> {
        let (done, held): (Vec<_>, Vec<_>) = owed.into_iter().partition(|o| self.progress.covers(o.job, head));
        let since = Instant::now();
        self.held.extend(held.into_iter().map(|owed| Held { head, since, owed }));
        done.into_iter().map(|owed| owed.handle).collect()
    }

    /// Is there anything that the outbox has not come to yet?
    pub(super) fn waits_for_outbox(&self) -> bool {
        !self.unpublished.is_empty()
    }

    /// All deliveries that only wait for a queue.
    pub(super) fn held(&self) -> u32 {
        u32::try_from(self.held.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Deliveries of a pool that only wait for a queue: nothing on this host is busy with them, so they must not take
    /// the places of others.
    pub(super) fn held_of(&self, pool: &PoolName) -> u32 {
        let is_of = |held: &&Held| matches!(held.owed.handle.source(), Some(Source::Jobs(of, _)) if of == pool);
        u32::try_from(self.held.iter().filter(is_of).count()).unwrap_or(u32::MAX)
    }
}

fn release(held: &mut VecDeque<Held>, mut is_done: impl FnMut(&Held) -> bool) -> Vec<Handle> {
    let (done, left): (VecDeque<_>, VecDeque<_>) = std::mem::take(held).into_iter().partition(|one| is_done(one));
    *held = left;
    done.into_iter().map(|one| one.owed.handle).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use stoker_schemas::spec::Priority;
    use tokio::sync::mpsc;
    use tokio_util::sync::CancellationToken;
    use uuid::Uuid;

    use super::*;
    use crate::ports::broker::{Ack, BrokerError, Delivery, NotDeferred};
    use crate::ports::handle::Handles;

    struct Nothing;

    #[async_trait]
    impl Ack for Nothing {
        async fn ack(self: Box<Self>) -> Result<(), BrokerError> {
            Ok(())
        }
        async fn requeue(self: Box<Self>) -> Result<(), BrokerError> {
            Ok(())
        }
        async fn dead_letter(self: Box<Self>) -> Result<(), BrokerError> {
            Ok(())
        }
        async fn defer(self: Box<Self>, _: Duration) -> Result<(), NotDeferred> {
            Ok(())
        }
    }

    /// Deliveries of one lane; dropped without a fault, for their subscription has ended.
    struct Lane(Handles);

    impl Lane {
        fn new() -> Self {
            let (out, _) = mpsc::channel::<Delivery>(1);
            let source = Source::Jobs(PoolName::default(), Priority::Normal);
            Self(Handles::new(source, &out, CancellationToken::new()))
        }

        fn of(&self, number: u64) -> Vec<Owed> {
            vec![Owed { job: Some(job(number)), handle: self.0.issue(Box::new(Nothing)) }]
        }
    }

    fn job(number: u64) -> JobId {
        JobId(Uuid::from_u128(number.into()))
    }

    /// The outbox has come so far, but for these jobs' events.
    fn progress(through: u64, held: &[(u64, u64)]) -> Progress {
        let held = held.iter().map(|(number, position)| (job(*number), *position)).collect();
        Progress { held: Arc::new(held), ..Progress::up_to(through) }
    }

    #[test]
    fn a_delivery_waits_for_what_its_own_job_wrote() {
        let (lane, mut settling) = (Lane::new(), Settling::default());
        assert_eq!(settling.add(5, lane.of(1)).len(), 0);
        assert_eq!(settling.add(6, lane.of(2)).len(), 0);
        assert_eq!(settling.advance(progress(4, &[])).len(), 0);
        assert_eq!(settling.advance(progress(6, &[(1, 5)])).len(), 1, "the other one's");
        assert_eq!(settling.held_of(&PoolName::default()), 1);
        assert_eq!(settling.held_of(&"other".parse().unwrap()), 0);
        assert_eq!(settling.advance(progress(9, &[(1, 5), (2, 8)])).len(), 0);
        assert_eq!(settling.advance(progress(9, &[(1, 7)])).len(), 1, "what it wrote since is not this delivery's");
        assert_eq!(settling.held_of(&PoolName::default()), 0);
    }

    #[test]
    fn what_is_published_already_waits_for_nothing() {
        let (lane, mut settling) = (Lane::new(), Settling::default());
        settling.advance(progress(7, &[(1, 6)]));
        assert_eq!(settling.add(7, lane.of(2)).len(), 1);
        assert_eq!(settling.add(7, lane.of(1)).len(), 0);
        let of_none = Owed { job: None, handle: lane.of(3).remove(0).handle };
        assert_eq!(settling.add(7, vec![of_none]).len(), 1);
    }

    #[test]
    fn no_delivery_is_held_for_too_long_and_not_too_many_are() {
        let (lane, mut settling) = (Lane::new(), Settling::default());
        settling.advance(progress(9, &[(1, 1)]));
        let now = Instant::now();
        for _ in 0..MAX_HELD_DELIVERIES + 2 {
            assert!(settling.add(9, lane.of(1)).is_empty());
        }
        assert_eq!(settling.expire(now).len(), 2);
        assert_eq!(settling.expire(Instant::now() + MAX_HELD).len(), MAX_HELD_DELIVERIES);
        assert!(settling.expire(Instant::now() + MAX_HELD).is_empty());
    }
}
