//! The one thread that writes.
//!
//! It takes whatever calls are waiting, up to a limit, writes them as one batch and answers all of
//! them after one sync: the more callers wait, the more share the cost of the disk. Because nobody
//! else writes, versions are checked and positions assigned without a lock.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::append::{Append, Appended};
use super::compact::{Compacted, compact};
use super::cursor::DirtyCursors;
use super::disk::{Disk, Fate};
use super::error::LogError;
use super::group::{Group, Tip};
use super::head::Heads;
use super::shared::Shared;
use super::store::{Store, panic_message};
use super::witness::Witness;

/// After a commit its callers need a moment to come back with their next events. Waiting for as many
/// as came last time, but no longer than this, keeps groups whole instead of alternating between one
/// early caller and all the others.
const REGROUP: Duration = Duration::from_micros(150);
/// Smaller groups are not waited for: two callers that happened to meet (a producer and the
/// supervisor) are no crowd, and each next lone caller would pay for their meeting.
const REGROUP_FROM: usize = 8;

pub(super) type Reply<T> = oneshot::Sender<Result<T, LogError>>;

pub(super) enum Command {
    Append { appends: Vec<Append>, reply: Reply<Vec<Appended>> },
    FlushCursors { reply: Reply<()> },
    Compact { max_events: usize, reply: Reply<Compacted> },
}

/// The first failure of a write; set once, then the log only reads.
pub(super) type Poison = Arc<OnceLock<Arc<str>>>;

pub(super) struct Writer {
    pub(super) store: Store,
    pub(super) tree: Shared,
    pub(super) witness: Witness,
    pub(super) tip: Tip,
    pub(super) max_batch: usize,
    pub(super) reopen_after: usize,
    /// Events since the database was opened, or since that was last put off.
    pub(super) unopened: usize,
    pub(super) heads: Heads,
    pub(super) cursors: DirtyCursors,
    pub(super) poison: Poison,
}

impl Writer {
    /// Works until every sender is gone, then writes the cursors that are still waiting.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let mut last_calls = 0;
        while let Some(first) = queue.blocking_recv() {
            let calls = self.collect(first, &mut queue, last_calls);
            last_calls = calls.len();
            self.guarded(|writer| {
                writer.serve(calls);
                writer.shorten_next_start();
            });
        }
        self.close();
    }

    /// As `run`, in a task and on a disk that may fail (simulation).
    pub(super) async fn run_as_task(mut self, mut queue: mpsc::Receiver<Command>, disk: Arc<dyn Disk>) {
        while let Some(first) = queue.recv().await {
            match disk.fate().await {
                Fate::Kept => {}
                Fate::Refused => drop(self.fail("no space left on device (injected)")),
                Fate::SyncFails => self.store.fail_next_sync(),
            }
            // What has come meanwhile shares the commit; nobody is waited for.
            let calls = self.collect(first, &mut queue, 0);
            self.guarded(|writer| writer.serve(calls));
        }
        self.close();
    }

    /// Opens the database anew when enough was written since it was opened.
    fn shorten_next_start(&mut self) {
        if self.unopened < self.reopen_after || self.healthy().is_err() {
            return;
        }
        let begun = Instant::now();
        let Self { tree, store, .. } = self;
        match tree.renew(|| store.reopen()) {
            Ok(opened) => {
                // Where a reader left no moment, it is tried again after a part of as many events.
                let events = std::mem::replace(&mut self.unopened, if opened { 0 } else { self.reopen_after / 2 });
                tracing::info!(opened, events, took = ?begun.elapsed(), "event log opened anew for a short next start");
            }
            Err(error) => drop(self.fail(&format!("the log was not opened anew: {error}"))),
        }
    }

    fn guarded(&mut self, work: impl FnOnce(&mut Self)) {
        // sled can panic where it should return an error; the callers must hear of it.
        let outcome = catch_unwind(AssertUnwindSafe(|| work(self)));
        if let Err(panic) = outcome {
            self.fail(&panic_message(panic.as_ref()));
        }
    }

    fn close(&mut self) {
        if let Err(error) = self.flush_cursors() {
            tracing::warn!(%error, "the log was closed without its latest cursors; consumers will see some events again");
        }
    }

    fn collect(&self, first: Command, queue: &mut mpsc::Receiver<Command>, last_calls: usize) -> Vec<Command> {
        let mut calls = vec![first];
        let mut events = event_count(&calls[0]);
        let crowd = last_calls >= REGROUP_FROM;
        let deadline = Instant::now() + REGROUP;
        while events < self.max_batch {
            match queue.try_recv() {
                Ok(call) => {
                    events += event_count(&call);
                    calls.push(call);
                }
                Err(_) if crowd && calls.len() < last_calls && Instant::now() < deadline => std::thread::yield_now(),
                Err(_) => break,
            }
        }
        calls
    }

    fn serve(&mut self, calls: Vec<Command>) {
        let mut appends = Vec::with_capacity(calls.len());
        let mut cursor_replies = Vec::new();
        let mut compactions = Vec::new();
        for call in calls {
            match call {
                Command::Append { appends: call, reply } => appends.push((call, reply)),
                Command::FlushCursors { reply } => cursor_replies.push(reply),
                Command::Compact { max_events, reply } => compactions.push((max_events, reply)),
            }
        }
        if !appends.is_empty() {
            self.commit_group(appends);
        }
        if !cursor_replies.is_empty() {
            let outcome = self.flush_cursors();
            cursor_replies.into_iter().for_each(|reply| answer(reply, outcome.clone()));
        }
        for (max_events, reply) in compactions {
            let outcome = self.compact(max_events);
            answer(reply, outcome);
        }
    }

    fn commit_group(&mut self, calls: Vec<(Vec<Append>, Reply<Vec<Appended>>)>) {
        let mut group = Group::new(self.tip);
        let mut staged = Vec::with_capacity(calls.len());
        for (appends, reply) in calls {
            match self.healthy().and_then(|()| group.stage(&*self.tree.get()?, &appends)) {
                Ok(appended) => staged.push((appended, reply)),
                Err(error) => answer(reply, Err(error)),
            }
        }
        if staged.is_empty() {
            return;
        }
        let outcome = self.commit(group);
        for (appended, reply) in staged {
            answer(reply, outcome.clone().map(|()| appended));
        }
    }

    /// Writes a group together with the cursors that moved meanwhile, and makes it durable.
    fn commit(&mut self, mut group: Group) -> Result<(), LogError> {
        let cursors = self.cursors.snapshot();
        cursors.iter().for_each(|(name, position)| group.set_cursor(name, *position));
        let tip = group.tip;
        self.unopened += group.events;
        self.durable(group.into_batch())?;
        self.cursors.written(&cursors);
        if tip.position > self.tip.position {
            self.tip = tip;
            self.witness.note(tip.position, tip.hash);
            self.heads.advance(tip.position);
        }
        Ok(())
    }

    fn flush_cursors(&mut self) -> Result<(), LogError> {
        if self.cursors.is_empty() { Ok(()) } else { self.commit(Group::new(self.tip)) }
    }

    fn compact(&mut self, max_events: usize) -> Result<Compacted, LogError> {
        let plan = compact(&*self.tree.get()?, self.tip.position, max_events)?;
        if let Some(batch) = plan.batch {
            self.durable(batch)?;
        }
        Ok(plan.done)
    }

    fn durable(&mut self, batch: sled::Batch) -> Result<(), LogError> {
        self.healthy()?;
        self.store.commit(batch).map_err(|error| self.fail(&error.to_string()))
    }

    fn healthy(&self) -> Result<(), LogError> {
        match self.poison.get() {
            Some(cause) => Err(LogError::Poisoned { cause: Arc::clone(cause) }),
            None => Ok(()),
        }
    }

    /// After a failed write nobody knows what the disk holds (the kernel may have dropped the dirty
    /// pages, so trying again could succeed without them): stop writing for good.
    fn fail(&self, cause: &str) -> LogError {
        tracing::error!(cause, "a write to the event log failed; it is read-only until the next start");
        let cause = Arc::clone(self.poison.get_or_init(|| cause.into()));
        LogError::Poisoned { cause }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.heads.close();
    }
}

fn event_count(command: &Command) -> usize {
    match command {
        Command::Append { appends, .. } => appends.iter().map(|append| append.events.len()).sum::<usize>().max(1),
        Command::FlushCursors { .. } | Command::Compact { .. } => 1,
    }
}

/// A caller that gave up waiting is no concern of the writer: its events are written all the same.
fn answer<T>(reply: Reply<T>, outcome: Result<T, LogError>) {
    drop(reply.send(outcome));
}
