//! Two connections, one status: the worse of both.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use crate::ports::broker::BrokerStatus;

/// What a connection is for. They are apart because a broker with a memory or disk alarm stops
/// reading from connections that publish, and acknowledgements on the same one would hang too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Publish,
    Consume,
}

impl Role {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Consume => "consume",
        }
    }
}

/// Collects the status of both connections.
pub(super) struct StatusBoard {
    parts: Mutex<[BrokerStatus; 2]>,
    combined: watch::Sender<BrokerStatus>,
    /// The answer that trying again does not change, while it is the last one.
    refused: watch::Sender<Option<String>>,
}

impl StatusBoard {
    pub(super) fn new() -> Self {
        let start = || BrokerStatus::Down("not connected yet".into());
        let (combined, refused) = (watch::Sender::new(start()), watch::Sender::new(None));
        Self { parts: Mutex::new([start(), start()]), combined, refused }
    }

    pub(super) fn set(&self, role: Role, status: BrokerStatus) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts[role as usize] = status;
        // Sent under the lock: two roles must not overtake each other with an older combination.
        let combined = worse(&parts[0], &parts[1]).clone();
        self.combined.send_if_modified(|old| {
            let changed = *old != combined;
            *old = combined;
            changed
        });
    }

    /// Told of each connection: why the broker cannot be used, or that it can.
    pub(super) fn refused(&self, why: Option<&str>) {
        self.refused.send_if_modified(|old| {
            let changed = old.as_deref() != why;
            *old = why.map(str::to_owned);
            changed
        });
    }

    pub(super) fn refusals(&self) -> watch::Receiver<Option<String>> {
        self.refused.subscribe()
    }

    pub(super) fn of(&self, role: Role) -> BrokerStatus {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)[role as usize].clone()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<BrokerStatus> {
        self.combined.subscribe()
    }
}

fn worse<'a>(a: &'a BrokerStatus, b: &'a BrokerStatus) -> &'a BrokerStatus {
    let rank = |s: &BrokerStatus| match s {
        BrokerStatus::Connected => 0,
        BrokerStatus::Blocked(_) => 1,
        BrokerStatus::Down(_) => 2,
    };
    if rank(b) > rank(a) { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worse_connection_decides() {
        let board = StatusBoard::new();
        let seen = board.subscribe();
        board.set(Role::Publish, BrokerStatus::Connected);
        assert!(matches!(*seen.borrow(), BrokerStatus::Down(_)));
        board.set(Role::Consume, BrokerStatus::Connected);
        assert_eq!(*seen.borrow(), BrokerStatus::Connected);
        board.set(Role::Publish, BrokerStatus::Blocked("memory".into()));
        assert_eq!(*seen.borrow(), BrokerStatus::Blocked("memory".into()));
        board.set(Role::Consume, BrokerStatus::Down("gone".into()));
        assert_eq!(*seen.borrow(), BrokerStatus::Down("gone".into()));
        assert_eq!(board.of(Role::Publish), BrokerStatus::Blocked("memory".into()));
    }
}
