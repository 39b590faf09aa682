//! Reading the history into the rows, batch by batch; and, where nobody waits, making the next start
//! short (see [`database`](super::database)).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use stoker_schemas::seeded::{self, Bug};
use stoker_worker::blocking;
use stoker_worker::ports::broker::{Broker, BrokerError, HistoryEntry, HistoryReader};
use tokio_util::sync::CancellationToken;

use super::{ReadModel, ReadModelError, caught_up};

/// History entries per batch: one write per so many, and a reader sees news soon.
pub const MAX_ENTRIES_PER_BATCH: usize = 512;
/// Bytes of entries per batch: some hundred events, whose adding up takes tens of milliseconds.
const MAX_BATCH_BYTES: usize = 256 * 1024;
/// Wait before the history is asked for again after it could not be had.
const HISTORY_RETRY: Duration = Duration::from_millis(500);
/// Events after which opening the database anew is worth it: some tenths of a second of the next start.
const REOPEN_AFTER: u64 = 100_000;
/// The same while an old history is read: pages are behind then, and wait for it a second or two.
const REOPEN_AFTER_WHEN_BEHIND: u64 = 500_000;
/// No news for so long: a moment in which hardly anybody reads.
const IDLE: Duration = Duration::from_secs(30);

/// What there is to do next.
enum Heard {
    /// Entries came.
    Entries,
    /// Nothing came for a moment, though it would have.
    Quiet,
    /// Nothing came for long.
    Idle,
    /// The history's end, or ours.
    End,
}

impl ReadModel {
    /// Reads the history, from where it stopped, until told to stop or the broker is closed.
    pub async fn follow(&self, broker: Arc<dyn Broker>, stop: CancellationToken) -> Result<(), ReadModelError> {
        let Some(mut reader) = self.reader(broker.as_ref(), &stop).await else { return self.end().await };
        let mut entries = Vec::with_capacity(MAX_ENTRIES_PER_BATCH);
        loop {
            match self.hear(broker.as_ref(), &mut reader, &mut entries, &stop).await {
                Heard::Entries => {
                    let entries = std::mem::take(&mut entries);
                    if seeded::is_on(Bug::OffsetBeforeRows) {
                        self.note_too_early(&entries)?;
                        tokio::time::sleep(HISTORY_RETRY).await;
                    }
                    self.off_thread(move |model| model.apply_all(&entries)).await?;
                }
                Heard::Quiet => self.off_thread(Self::now_caught_up).await?,
                Heard::Idle => self.off_thread(|model| model.shorten_next_start(REOPEN_AFTER)).await?,
                Heard::End => return self.end().await,
            }
        }
    }

    /// The history from where it stopped; `None` when told to stop, or the broker is closed.
    async fn reader(&self, broker: &dyn Broker, stop: &CancellationToken) -> Option<HistoryReader> {
        loop {
            let reader = tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                reader = broker.history(self.next_offset()) => reader,
            };
            match reader {
                Ok(reader) => return Some(reader),
                Err(BrokerError::Closed) => return None,
                Err(cause) => tracing::warn!(%cause, "history cannot be read; trying again"),
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(HISTORY_RETRY) => {}
            }
        }
    }

    async fn hear(
        &self,
        broker: &dyn Broker,
        reader: &mut HistoryReader,
        entries: &mut Vec<HistoryEntry>,
        stop: &CancellationToken,
    ) -> Heard {
        tokio::select! {
            biased;
            () = stop.cancelled() => Heard::End,
            received = reader.recv_many(entries, MAX_ENTRIES_PER_BATCH) => match received {
                0 => Heard::End,
                _ => Heard::Entries,
            },
            () = caught_up::quiet(broker), if !self.is_caught_up() => Heard::Quiet,
            () = tokio::time::sleep(IDLE), if self.unopened() >= REOPEN_AFTER => Heard::Idle,
        }
    }

    /// Adding up and writing takes milliseconds, and opening anew more: not on a thread that serves
    /// requests.
    async fn off_thread(
        &self,
        work: impl FnOnce(&Self) -> Result<(), ReadModelError> + Send + 'static,
    ) -> Result<(), ReadModelError> {
        let model = self.clone();
        let done = blocking::run(move || work(&model)).await;
        done.unwrap_or_else(|e| Err(ReadModelError::Corrupt(format!("adding up an entry failed: {e}"))))
    }

    fn apply_all(&self, entries: &[HistoryEntry]) -> Result<(), ReadModelError> {
        pieces(entries).try_for_each(|piece| self.apply(piece))?;
        if self.is_caught_up() { Ok(()) } else { self.shorten_next_start(REOPEN_AFTER_WHEN_BEHIND) }
    }

    /// The history has been read up to our own time: from now on the rows are as good as they get.
    pub(super) fn now_caught_up(&self) -> Result<(), ReadModelError> {
        let opened = self.shorten_next_start(REOPEN_AFTER);
        self.caught_up.send_replace(true);
        opened
    }

    async fn end(&self) -> Result<(), ReadModelError> {
        self.off_thread(|model| {
            model.store.flush()?;
            model.shorten_next_start(REOPEN_AFTER)
        })
        .await
    }

    /// Events written since the database was opened.
    fn unopened(&self) -> u64 {
        self.next_seq().saturating_sub(self.opened_at_seq.load(Ordering::Relaxed))
    }

    fn shorten_next_start(&self, after: u64) -> Result<(), ReadModelError> {
        let written = self.unopened();
        if written < after {
            return Ok(());
        }
        let begun = std::time::Instant::now();
        let opened = self.store.reopen()?;
        // Where readers left no moment, it is tried again after half as many events.
        let from = self.next_seq() - if opened { 0 } else { after / 2 };
        self.opened_at_seq.store(from, Ordering::Relaxed);
        tracing::info!(opened, events = written, took = ?begun.elapsed(), "rows opened anew for a short next start");
        Ok(())
    }
}

/// Cuts entries, each of which may hold many events, into pieces that are written at once.
fn pieces(mut entries: &[HistoryEntry]) -> impl Iterator<Item = &[HistoryEntry]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = entries.iter().take_while(|entry| {
            bytes += entry.body.len();
            bytes <= MAX_BATCH_BYTES
        });
        // One that is larger alone must go, too.
        let fits = fits.count().max(1).min(entries.len());
        let (piece, rest) = entries.split_at(fits);
        entries = rest;
        (!piece.is_empty()).then_some(piece)
    })
}
