//! Publishes the log's own events, in order, from a cursor kept beside the log. What was published
//! but not yet noted is published again after a crash: readers recognise duplicates by id.
//!
//! Work (retries, deferrals) never waits for history: while that is away, what only it would
//! take becomes a gap, which is filled when it is back.

mod gap;
mod messages;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use stoker_schemas::seeded::{self, Bug};
use tokio::sync::watch;

use self::gap::{Gap, Span};
use self::messages::{For, Planned, plan};
use crate::backoff_policy::{Backoff, RECONNECT};
use crate::clock::Clock;
use crate::log::{EventLog, LogError};
use crate::ports::broker::{Broker, BrokerError, HistoryStatus};

/// Name of the cursor.
pub const CURSOR: &str = "outbox";
pub use self::gap::CURSOR as GAP_CURSOR;
/// Events read from the log at a time; also the most that are under way.
const PAGE: usize = 512;

/// Publishes for ever. `published` tells the position up to which the broker has everything that
/// anybody works from.
pub async fn run(
    log: EventLog,
    broker: Arc<dyn Broker>,
    source: String,
    clock: Clock,
    published: watch::Sender<u64>,
) -> Result<(), LogError> {
    let mut head = log.head();
    let mut outbox = Outbox::open(log, broker, source, clock)?;
    let _ = published.send(outbox.next - 1);
    // Neither may starve the other: after a page it is the gap's turn.
    let mut gap_first = false;
    while let Some(work) = outbox.next_work(&mut head, gap_first).await {
        match work {
            Work::Page => {
                outbox.publish_page().await?;
                let _ = published.send(outbox.next - 1);
            }
            Work::Gap => outbox.fill_gap().await?,
        }
        gap_first = work == Work::Page;
    }
    Ok(())
}

/// What there is to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// New events.
    Page,
    /// What the history missed.
    Gap,
}

struct Outbox {
    log: EventLog,
    broker: Arc<dyn Broker>,
    source: String,
    clock: Clock,
    /// Changes when the history was cut off or came back.
    history: watch::Receiver<HistoryStatus>,
    /// Position to publish next.
    next: u64,
    /// Beginning of the last page that the history is known to have taken part of. From there on
    /// nothing is certain: work that is published while the history is away tells nobody so.
    certain: u64,
    gap: Gap,
}

/// What the history did with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// Took its part.
    Yes,
    /// Did not.
    No,
    /// It had no part of its own, so nobody knows.
    Unknown,
}

impl Outbox {
    fn open(log: EventLog, broker: Arc<dyn Broker>, source: String, clock: Clock) -> Result<Self, LogError> {
        let published = log.cursor(CURSOR)?;
        let history = broker.history_status();
        let gap = Gap::open(log.clone(), history.clone(), published)?;
        // The last page of an earlier process may not have been seen to arrive.
        let certain = (published + 1).saturating_sub(PAGE as u64).max(1);
        Ok(Self { log, broker, source, clock, history, next: published + 1, certain, gap })
    }

    /// Waits for something to publish; `None` once the log is closed.
    async fn next_work(&mut self, head: &mut watch::Receiver<u64>, gap_first: bool) -> Option<Work> {
        let next = self.next;
        let page = async { head.wait_for(|head| *head >= next).await.is_ok().then_some(Work::Page) };
        let gap = async {
            self.gap.due().await;
            Some(Work::Gap)
        };
        if gap_first {
            tokio::select! { biased; work = gap => work, work = page => work }
        } else {
            tokio::select! { biased; work = page => work, work = gap => work }
        }
    }

    async fn publish_page(&mut self) -> Result<(), LogError> {
        let records = self.log.scan(self.next, PAGE)?;
        let Some(last) = records.last().map(|r| r.position) else { return Ok(()) };
        if seeded::is_on(Bug::CursorTooEarly) {
            self.log.set_cursor(CURSOR, last)?;
        }
        let told = self.publish(plan(&records, &self.source, self.clock, For::All)).await;
        let first = self.next;
        self.next = last + 1;
        let cut = self.history_changed();
        match told {
            Told::Yes if !cut => self.certain = first,
            Told::Unknown if !cut && self.gap.span().is_none() => {}
            _ if seeded::is_on(Bug::GapForgotten) => {}
            _ => self.gap.extend(Span { first: self.certain, last })?,
        }
        self.log.set_cursor(CURSOR, last)
    }

    /// Was it cut off or brought back since the last page? Then parts of that page, too, may have
    /// gone by while it was away.
    fn history_changed(&mut self) -> bool {
        let changed = self.history.has_changed().unwrap_or(false);
        self.history.mark_unchanged();
        changed
    }

    /// Tells the history one page of what it missed, work included.
    async fn fill_gap(&mut self) -> Result<(), LogError> {
        let Some(span) = self.gap.span() else { return Ok(()) };
        let mut records = self.log.scan(span.first, PAGE)?;
        records.retain(|r| r.position <= span.last);
        let through = records.last().map_or(span.last, |r| r.position);
        match self.publish(plan(&records, &self.source, self.clock, For::History)).await {
            Told::No => {
                self.gap.put_off();
                Ok(())
            }
            Told::Yes | Told::Unknown => self.gap.told(through),
        }
    }

    /// Publishes messages in order, all under way at once.
    async fn publish(&self, planned: Vec<Planned>) -> Told {
        let mut sending: FuturesOrdered<_> = planned.into_iter().map(|p| send(self.broker.as_ref(), p)).collect();
        let mut page = Told::Unknown;
        while let Some(told) = sending.next().await {
            page = match (page, told) {
                (Told::No, _) | (_, Told::No) => Told::No,
                (Told::Unknown, told) => told,
                (Told::Yes, _) => Told::Yes,
            };
        }
        page
    }
}

/// Publishes one message, however long the broker is away; only history is not waited for. The log
/// is bounded by its own means; the outbox only ever holds one page.
async fn send(broker: &dyn Broker, Planned { message, history_only }: Planned) -> Told {
    let mut waits = Backoff::new(RECONNECT);
    loop {
        match broker.publish(message.clone()).await {
            Ok(()) if history_only => return Told::Yes,
            Ok(()) => return Told::Unknown,
            // Nobody takes it, or the stream cannot: a batch is never too large for good.
            Err(BrokerError::Unroutable(_) | BrokerError::Refused(_)) if history_only => return Told::No,
            Err(_) if seeded::is_on(Bug::FailedIsDropped) => return Told::Unknown,
            // A full queue refuses, too: a retry is never given up for that. Events are
            // far below every limit of size, so a refusal is not for good.
            Err(error) => {
                let wait = waits.next_delay();
                tracing::warn!(%error, ?wait, "event not published, trying again");
                tokio::time::sleep(wait.max(Duration::from_millis(1))).await;
            }
        }
    }
}
