//! What the history has not been told because it was away: a range of the log, told later.
//!
//! Where it begins is kept in a cursor beside the log; it ends where everything after it is known
//! to have arrived. What arrived after all comes twice, and readers recognise it.

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::backoff_policy::{Backoff, RECONNECT};
use crate::log::{EventLog, LogError};
use crate::ports::broker::HistoryStatus;

/// Name of the cursor: position of the first event to tell, 0 for none.
pub const CURSOR: &str = "outbox.gap";

/// Positions, both inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub first: u64,
    pub last: u64,
}

pub(super) struct Gap {
    log: EventLog,
    history: watch::Receiver<HistoryStatus>,
    span: Option<Span>,
    waits: Backoff,
    /// Not to be tried before.
    due: Instant,
}

impl Gap {
    /// The gap that an earlier process left; it may have been about to grow up to `published`.
    pub(super) fn open(
        log: EventLog,
        history: watch::Receiver<HistoryStatus>,
        published: u64,
    ) -> Result<Self, LogError> {
        let first = log.cursor(CURSOR)?;
        let span = (1..=published).contains(&first).then_some(Span { first, last: published });
        Ok(Self { log, history, span, waits: Backoff::new(RECONNECT), due: Instant::now() })
    }

    /// What is missing, if anything.
    pub(super) fn span(&self) -> Option<Span> {
        self.span
    }

    /// The history did not get these, or nobody knows.
    pub(super) fn extend(&mut self, missed: Span) -> Result<(), LogError> {
        let first = match self.span {
            Some(open) => open.first.min(missed.first),
            None => {
                tracing::warn!(from = missed.first, "history does not take events; it is told when it does");
                missed.first
            }
        };
        self.span = Some(Span { first, last: missed.last });
        self.log.set_cursor(CURSOR, first)
    }

    /// Resolves when it is worth trying to tell what is missing; never while nothing is.
    pub(super) async fn due(&mut self) {
        let available = self.history.wait_for(|status| *status == HistoryStatus::Available);
        if self.span.is_none() || available.await.is_err() {
            return std::future::pending().await;
        }
        sleep_until(self.due).await;
    }

    /// The history still does not take it.
    pub(super) fn put_off(&mut self) {
        self.due = Instant::now() + self.waits.next_delay();
    }

    /// The history has everything up to here.
    pub(super) fn told(&mut self, through: u64) -> Result<(), LogError> {
        self.waits.reset();
        self.span = self.span.filter(|open| through < open.last).map(|open| Span { first: through + 1, ..open });
        if self.span.is_none() {
            tracing::info!(through, "history has been told what it missed");
        }
        self.log.set_cursor(CURSOR, self.span.map_or(0, |open| open.first))
    }
}
