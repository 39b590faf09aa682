//! Publishes the log's own events, in order, from a cursor kept beside the log. What was published
//! but not yet noted is published again after a crash: readers recognise duplicates by id.
//!
//! Work (retries, deferrals) never waits for history: while that is away, what only it would
//! take becomes a gap, which is filled when it is back. And nothing waits for a queue that refuses:
//! its messages are set aside and tried again, and only later ones of the same jobs wait behind them.

mod aside;
mod gap;
mod messages;
mod progress;
mod sending;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use stoker_schemas::seeded::{self, Bug};
use tokio::sync::watch;

use self::aside::Aside;
pub use self::aside::MAX_SET_ASIDE;
pub use self::gap::CURSOR as GAP_CURSOR;
use self::gap::{Gap, Span};
use self::messages::{For, Plan, Ticket, plan};
pub use self::progress::{Lag, Progress, Refusal};
use self::sending::{Outcome, Told, send_all};
use crate::clock::Clock;
use crate::log::{EventLog, LogError, Recorded, Scanned};
use crate::ports::broker::{Broker, HistoryStatus};

/// Name of the cursor.
pub const CURSOR: &str = "outbox";
/// Events read from the log at a time; also the most that are under way.
const PAGE: usize = 512;

/// Publishes for ever. `progress` tells how far the broker has everything that anybody works from.
pub async fn run(
    log: EventLog,
    broker: Arc<dyn Broker>,
    source: String,
    clock: Clock,
    progress: watch::Sender<Progress>,
) -> Result<(), LogError> {
    Outbox::open(log, broker, source, clock, MAX_SET_ASIDE)?.run(progress).await
}

/// What there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// New events.
    Page,
    /// What a queue refused.
    Refused,
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
    aside: Aside,
}

impl Outbox {
    fn open(
        log: EventLog,
        broker: Arc<dyn Broker>,
        source: String,
        clock: Clock,
        set_aside: usize,
    ) -> Result<Self, LogError> {
        let published = log.cursor(CURSOR)?;
        let history = broker.history_status();
        let gap = Gap::open(log.clone(), history.clone(), published)?;
        let aside = Aside::open(log.clone(), clock, set_aside)?;
        // The last page of an earlier process may not have been seen to arrive.
        let certain = (published + 1).saturating_sub(PAGE as u64).max(1);
        Ok(Self { log, broker, source, clock, history, next: published + 1, certain, gap, aside })
    }

    async fn run(mut self, told: watch::Sender<Progress>) -> Result<(), LogError> {
        let mut head = self.log.head();
        let mut last = Work::Page;
        told.send_replace(self.progress());
        while let Some(work) = self.next_work(&mut head, last).await {
            match work {
                Work::Page => self.publish_page().await?,
                Work::Refused => self.try_refused().await?,
                Work::Gap => self.fill_gap().await?,
            }
            if work != Work::Gap {
                self.tell(&told);
            }
            last = work;
        }
        Ok(())
    }

    /// Waits for something to do; `None` once the log is closed. None of the three may starve another: what was done
    /// last comes last.
    async fn next_work(&mut self, head: &mut watch::Receiver<u64>, last: Work) -> Option<Work> {
        let Self { next, aside, gap, .. } = self;
        let page = async {
            if aside.room() == 0 {
                return std::future::pending().await;
            }
            head.wait_for(|head| *head >= *next).await.is_ok().then_some(Work::Page)
        };
        let refused = async {
            aside.due().await;
            Some(Work::Refused)
        };
        let gap = async {
            gap.due().await;
            Some(Work::Gap)
        };
        match last {
            Work::Page => tokio::select! { biased; w = refused => w, w = gap => w, w = page => w },
            Work::Refused => tokio::select! { biased; w = gap => w, w = page => w, w = refused => w },
            Work::Gap => tokio::select! { biased; w = page => w, w = refused => w, w = gap => w },
        }
    }

    fn progress(&self) -> Progress {
        let stopped = self.aside.room() == 0;
        Progress { through: self.next - 1, held: self.aside.held(), refusals: self.aside.refusals(), stopped }
    }

    fn tell(&self, told: &watch::Sender<Progress>) {
        let progress = self.progress();
        if progress.stopped && !told.borrow().stopped {
            let refused = progress.refused();
            tracing::error!(refused, "queues refuse so many messages that nothing more is published");
        }
        told.send_replace(progress);
    }

    async fn publish_page(&mut self) -> Result<(), LogError> {
        let Scanned { records, next, .. } = self.log.scan_past(self.next, PAGE.min(self.aside.room()))?;
        if next == self.next {
            return Ok(());
        }
        let last = next - 1;
        if seeded::is_on(Bug::CursorTooEarly) {
            self.log.set_cursor(CURSOR, last)?;
        }
        let Plan { messages, behind } =
            plan(&records, &self.source, self.clock, For::All, |ticket| self.aside.is_behind(ticket));
        let Outcome { mut told, refused, .. } = send_all(self.broker.as_ref(), messages).await;
        let set_aside = !behind.is_empty() || !refused.is_empty();
        if !refused.is_empty() {
            told = told.and(self.tell_history_of(&records, &refused).await);
        }
        for ticket in behind {
            self.aside.add(ticket, None)?;
        }
        for (ticket, reason) in refused {
            self.aside.add(ticket, reason.as_deref())?;
        }
        let first = self.next;
        self.next = last + 1;
        let cut = self.history_changed();
        match told {
            Told::Yes if !cut => self.certain = first,
            Told::Unknown if !cut && self.gap.span().is_none() => {}
            _ if seeded::is_on(Bug::GapForgotten) => {}
            _ => self.gap.extend(Span { first: self.certain, last })?,
        }
        self.log.set_cursor(CURSOR, last)?;
        // Cursors that wait for a commit are bounded, and each message set aside is one.
        if set_aside { self.log.flush_cursors().await } else { Ok(()) }
    }

    /// Readers learn of what is refused, too; a broker may or may not have told them.
    async fn tell_history_of(&self, records: &[Recorded], refused: &[(Ticket, Option<String>)]) -> Told {
        let is_refused = |at: u64| refused.binary_search_by_key(&at, |(ticket, _)| ticket.position).is_ok();
        let records: Vec<_> = records.iter().filter(|record| is_refused(record.position)).cloned().collect();
        let Plan { messages, .. } = plan(&records, &self.source, self.clock, For::History, |_| false);
        send_all(self.broker.as_ref(), messages).await.told
    }

    /// Tries the messages of one line again. The history knows them.
    async fn try_refused(&mut self) -> Result<(), LogError> {
        let Some((key, positions)) = self.aside.round() else { return Ok(()) };
        let mut records: Vec<Recorded> = Vec::with_capacity(positions.len());
        for position in positions {
            let scanned = self.log.scan_past(position, 1)?;
            // What cannot be read any more is waited for by nobody.
            if !scanned.damaged.is_empty() {
                self.aside.published(&key, position)?;
            }
            records.extend(scanned.records);
        }
        let Plan { messages, .. } = plan(&records, &self.source, self.clock, For::All, |_| false);
        let Outcome { taken, refused, .. } = send_all(self.broker.as_ref(), messages).await;
        for ticket in &taken {
            self.aside.published(&key, ticket.position)?;
        }
        if let Some((_, Some(reason))) = refused.first() {
            self.aside.refused(&key, reason);
        }
        if taken.is_empty() { Ok(()) } else { self.log.flush_cursors().await }
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
        let Scanned { mut records, next, .. } = self.log.scan_past(span.first, PAGE)?;
        records.retain(|r| r.position <= span.last);
        let through = if next > span.first { (next - 1).min(span.last) } else { span.last };
        let Plan { messages, .. } = plan(&records, &self.source, self.clock, For::History, |_| false);
        match send_all(self.broker.as_ref(), messages).await.told {
            Told::No => {
                self.gap.put_off();
                Ok(())
            }
            Told::Yes | Told::Unknown => self.gap.told(through),
        }
    }
}
