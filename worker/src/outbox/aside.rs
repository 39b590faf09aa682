//! Work that its queue refuses: set aside, so that everything else goes on, and tried again.
//!
//! Only positions are kept, as cursors beside the log's; the events are in the log. Messages with the same routing
//! key stand in one line: who comes later waits behind. So does a later message of the same job, whatever its key.

use std::collections::BTreeMap;
use std::sync::Arc;

use stoker_schemas::event::Event;
use stoker_schemas::{JobId, Time};
use tokio::time::{Instant, sleep_until};

use super::messages::Ticket;
use super::progress::Refusal;
use crate::backoff_policy::{Backoff, RECONNECT};
use crate::clock::Clock;
use crate::log::{EventLog, LogError};

/// Most messages set aside. Each is a job that can do nothing else meanwhile, so this many are not reached by a
/// queue that is full for an hour.
pub const MAX_SET_ASIDE: usize = 100_000;
/// Most messages of one line tried at once. A refused one may have reached the history all the same, so it begins
/// with a single one.
const MAX_ROUND: usize = 64;
/// Names of the cursors, followed by the position.
const CURSOR_PREFIX: &str = "outbox.refused.";
/// Until the broker says it again.
const BEFORE_RESTART: &str = "refused before the worker was restarted";

pub(super) struct Aside {
    log: EventLog,
    bound: usize,
    lines: BTreeMap<String, Line>,
    /// Of each job, its positions and the line that each stands in.
    jobs: BTreeMap<JobId, BTreeMap<u64, String>>,
    /// What others are told: the first position of each job.
    held: Arc<BTreeMap<JobId, u64>>,
    count: usize,
}

/// Messages with one routing key.
struct Line {
    queue: String,
    /// Why the queue refuses them; `None` when they only wait for other messages of their jobs.
    reason: Option<String>,
    waiting: BTreeMap<u64, Waiting>,
    waits: Backoff,
    due: Instant,
    round: usize,
}

struct Waiting {
    job: Option<JobId>,
    time: Time,
}

impl Aside {
    /// What an earlier process set aside is due at once.
    pub(super) fn open(log: EventLog, clock: Clock, bound: usize) -> Result<Self, LogError> {
        let (lines, jobs, held) = (BTreeMap::new(), BTreeMap::new(), Arc::default());
        let mut aside = Self { log, bound, lines, jobs, held, count: 0 };
        for (name, position) in aside.log.cursors(CURSOR_PREFIX)? {
            let record = aside.log.scan_past(position, 1)?.records.into_iter().next();
            let event = record.filter(|r| r.position == position).map(|r| Event::decode(&r.payload, clock.now()));
            match event {
                Some(Ok(event)) => {
                    let ticket = Ticket::new(position, &event);
                    let key = ticket.routing_key.clone();
                    aside.remember(ticket, Some(BEFORE_RESTART));
                    aside.retry_now(&key);
                }
                _ => {
                    tracing::error!(position, "event in the log cannot be read, not published");
                    aside.log.set_cursor(&name, 0)?;
                }
            }
        }
        Ok(aside)
    }

    /// How many more fit.
    pub(super) fn room(&self) -> usize {
        self.bound.saturating_sub(self.count)
    }

    /// Must this message wait behind one that is set aside already?
    pub(super) fn is_behind(&self, ticket: &Ticket) -> bool {
        let refuses = self.lines.get(&ticket.routing_key).is_some_and(|line| line.reason.is_some());
        refuses || ticket.job.is_some_and(|job| self.jobs.contains_key(&job))
    }

    /// Sets a message aside: on disk with the cursor that passes it. `refused` says why, if it was tried at all.
    pub(super) fn add(&mut self, ticket: Ticket, refused: Option<&str>) -> Result<(), LogError> {
        self.log.set_cursor(&cursor(ticket.position), ticket.position)?;
        self.remember(ticket, refused);
        Ok(())
    }

    fn remember(&mut self, ticket: Ticket, refused: Option<&str>) {
        let Ticket { position, job, routing_key, queue, time } = ticket;
        let line = self.lines.entry(routing_key.clone()).or_insert_with(|| Line::new(queue));
        if let Some(reason) = refused {
            line.refuse(&routing_key, reason);
        }
        if line.waiting.insert(position, Waiting { job, time }).is_none() {
            self.count += 1;
        }
        if let Some(job) = job {
            let positions = self.jobs.entry(job).or_default();
            positions.insert(position, routing_key);
            if let Some(first) = positions.keys().next() {
                Arc::make_mut(&mut self.held).insert(job, *first);
            }
        }
    }

    /// Resolves when a line is to be tried again; never while there is none.
    pub(super) async fn due(&self) {
        match self.lines.values().map(|line| line.due).min() {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// The line that is due first, and the positions of it to try; each the first of its job.
    pub(super) fn round(&mut self) -> Option<(String, Vec<u64>)> {
        let (key, line) = self.lines.iter_mut().min_by_key(|(_, line)| line.due)?;
        let is_first = |position: u64, waiting: &Waiting| {
            waiting.job.is_none_or(|job| self.held.get(&job).is_none_or(|first| *first == position))
        };
        let positions: Vec<u64> =
            line.waiting.iter().filter(|(at, w)| is_first(**at, w)).map(|(at, _)| *at).take(line.round).collect();
        if positions.is_empty() {
            // All wait for messages of their jobs in other lines, which will say so.
            line.put_off();
        }
        Some((key.clone(), positions))
    }

    /// The queue took it.
    pub(super) fn published(&mut self, key: &str, position: u64) -> Result<(), LogError> {
        self.log.set_cursor(&cursor(position), 0)?;
        let Some(line) = self.lines.get_mut(key) else { return Ok(()) };
        let Some(waiting) = line.waiting.remove(&position) else { return Ok(()) };
        self.count -= 1;
        line.succeeded();
        if line.waiting.is_empty() {
            if line.reason.is_some() {
                tracing::info!(queue = line.queue, key, "messages are taken again");
            }
            self.lines.remove(key);
        }
        if let Some(job) = waiting.job {
            self.let_next(job, position);
        }
        Ok(())
    }

    /// The job's next message, if one waits, has nothing before it any longer.
    fn let_next(&mut self, job: JobId, published: u64) {
        let Some(positions) = self.jobs.get_mut(&job) else { return };
        positions.remove(&published);
        let held = Arc::make_mut(&mut self.held);
        match positions.iter().next().map(|(at, key)| (*at, key.clone())) {
            Some((first, key)) => {
                held.insert(job, first);
                self.retry_now(&key);
            }
            None => {
                held.remove(&job);
                self.jobs.remove(&job);
            }
        }
    }

    fn retry_now(&mut self, key: &str) {
        if let Some(line) = self.lines.get_mut(key) {
            line.due = Instant::now();
        }
    }

    /// The queue still refuses.
    pub(super) fn refused(&mut self, key: &str, reason: &str) {
        if let Some(line) = self.lines.get_mut(key) {
            line.refuse(key, reason);
            line.round = 1;
            line.put_off();
        }
    }

    pub(super) fn held(&self) -> Arc<BTreeMap<JobId, u64>> {
        Arc::clone(&self.held)
    }

    /// Lines of the same queue together.
    pub(super) fn refusals(&self) -> Vec<Refusal> {
        let mut queues: BTreeMap<&str, Refusal> = BTreeMap::new();
        for line in self.lines.values() {
            let (Some(reason), Some(first)) = (&line.reason, line.waiting.values().next()) else { continue };
            let oldest = first.time;
            let messages = line.waiting.len() as u64;
            queues
                .entry(&line.queue)
                .and_modify(|refusal| {
                    refusal.messages += messages;
                    refusal.oldest = refusal.oldest.min(oldest);
                })
                .or_insert_with(|| Refusal { queue: line.queue.clone(), reason: reason.clone(), messages, oldest });
        }
        queues.into_values().collect()
    }
}

impl Line {
    fn new(queue: String) -> Self {
        let mut line = Self {
            queue,
            reason: None,
            waiting: BTreeMap::new(),
            waits: Backoff::new(RECONNECT),
            due: Instant::now(),
            round: 1,
        };
        line.put_off();
        line
    }

    fn refuse(&mut self, key: &str, reason: &str) {
        if self.reason.is_none() {
            tracing::warn!(queue = self.queue, key, reason, "messages are refused and set aside");
        }
        self.reason = Some(reason.to_owned());
    }

    fn put_off(&mut self) {
        self.due = Instant::now() + self.waits.next_delay();
    }

    fn succeeded(&mut self) {
        self.waits.reset();
        self.due = Instant::now();
        self.round = (self.round * 2).min(MAX_ROUND);
    }
}

/// Fixed width, so that names are in the order of positions.
fn cursor(position: u64) -> String {
    format!("{CURSOR_PREFIX}{position:020}")
}
