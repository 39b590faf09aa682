//! The position of the last durable event, told to all who wait for it, in the order in which they asked.
//!
//! Everyone gets a channel of their own: tokio wakes those who wait at one in random order, which a
//! deterministic simulation could not bear, and there are only a handful.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Heads(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    position: u64,
    waiting: Vec<watch::Sender<u64>>,
    /// The writer has ended: there will be no more.
    closed: bool,
}

impl Heads {
    pub(super) fn new(position: u64) -> Self {
        Self(Arc::new(Mutex::new(State { position, waiting: Vec::new(), closed: false })))
    }

    pub(super) fn position(&self) -> u64 {
        self.lock().position
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        let mut state = self.lock();
        let (sender, receiver) = watch::channel(state.position);
        // Here as well as in `advance`: a log that nobody writes to must not gather what was dropped.
        state.waiting.retain(|waiting| !waiting.is_closed());
        if !state.closed {
            state.waiting.push(sender);
        }
        receiver
    }

    pub(super) fn advance(&self, position: u64) {
        let mut state = self.lock();
        state.position = position;
        state.waiting.retain(|waiting| waiting.send(position).is_ok());
    }

    /// Tells all who wait that nothing more comes.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.waiting.clear();
    }

    /// Whole after every statement, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_who_wait_hear_of_each_advance_and_of_the_end() {
        let heads = Heads::new(3);
        let (first, second) = (heads.subscribe(), heads.subscribe());
        drop(heads.subscribe());
        heads.advance(4);
        assert_eq!((*first.borrow(), *second.borrow(), heads.position()), (4, 4, 4));
        assert_eq!(heads.lock().waiting.len(), 2, "what was dropped is forgotten");
        heads.close();
        assert!(first.has_changed().is_err(), "the end is heard");
        let late = heads.subscribe();
        assert!(*late.borrow() == 4 && late.has_changed().is_err());
    }
}
