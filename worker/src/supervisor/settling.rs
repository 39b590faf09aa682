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
