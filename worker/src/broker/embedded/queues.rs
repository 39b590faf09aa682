//! The queues: positions in the log, in order, with delays. Held in memory, rebuilt from the log.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::ports::broker::Source;

/// A message: where it stands in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) position: u64,
    pub(super) deliveries: u32,
    pub(super) deferrals: u32,
}

/// All queues of the broker.
#[derive(Default)]
pub(super) struct Queues {
    by_source: Mutex<HashMap<Source, Arc<Queue>>>,
}

/// One queue.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Something was added, or became free.
    pub(super) changed: Notify,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Item>,
    later: BTreeMap<(Instant, u64), Item>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section here leaves the value whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queues {
    pub(super) fn get(&self, source: &Source) -> Arc<Queue> {
        let mut queues = lock(&self.by_source);
        if let Some(queue) = queues.get(source) {
            return queue.clone();
        }
        queues.entry(source.clone()).or_default().clone()
    }

    pub(super) fn push(&self, source: &Source, item: Item) {
        let queue = self.get(source);
        lock(&queue.state).ready.push_back(item);
        queue.changed.notify_one();
    }

    pub(super) fn push_later(&self, source: &Source, item: Item, due: Instant) {
        if due <= Instant::now() {
            return self.push(source, item);
        }
        let queue = self.get(source);
        lock(&queue.state).later.insert((due, item.position), item);
        queue.changed.notify_one();
    }

    pub(super) fn depth(&self, source: &Source) -> u64 {
        lock(&self.get(source).state).ready.len() as u64
    }
}

impl Queue {
    /// The next item that is due, or when the next one will be.
    pub(super) fn pop(&self) -> Result<Item, Option<Instant>> {
        let mut state = lock(&self.state);
        let now = Instant::now();
        while let Some(entry) = state.later.first_entry()
            && entry.key().0 <= now
        {
            let item = entry.remove();
            state.ready.push_back(item);
        }
        let due = state.later.first_key_value().map(|((due, _), _)| *due);
        state.ready.pop_front().ok_or(due)
    }

    /// Keeps an item back for a while.
    pub(super) fn defer(&self, item: Item, due: Instant) {
        let deferrals = item.deferrals.saturating_add(1);
        lock(&self.state).later.insert((due, item.position), Item { deferrals, ..item });
        self.changed.notify_one();
    }

    /// Gives items back, to where they came from: the front, in order.
    pub(super) fn give_back(&self, items: impl DoubleEndedIterator<Item = Item>) {
        let mut state = lock(&self.state);
        for item in items.rev() {
            state.ready.push_front(Item { deliveries: item.deliveries + 1, ..item });
        }
        drop(state);
        self.changed.notify_one();
    }
}
