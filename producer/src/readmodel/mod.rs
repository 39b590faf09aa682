//! What the front knows: everything the history says, added up into rows that pages and commands
//! ask for. Its own sled folder, refilled from the history whenever it is missing.

mod awaited;
mod cache;
mod caught_up;
mod database;
mod filter;
mod follow;
mod hosts;
mod ingest;
mod keys;
mod letters;
pub(crate) mod packed;
mod pools;
pub(crate) mod query;
mod refusals;
mod seeded;
mod series;
mod store;
mod summary;
mod totals;
mod waiting;
mod warm;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use stoker_schemas::diagnosis::Cause;
use stoker_schemas::event::DeadLetterReason;
use stoker_schemas::id::LetterId;
use stoker_schemas::spec::Priority;
use stoker_schemas::{Event, EventData, JobId, JobState, Phase, PoolName, Time};
use stoker_worker::ports::broker::{HistoryEntry, Offset};
use tokio::sync::{broadcast, watch};

pub use awaited::AwaitedJob;
pub use filter::{Filter, Phases};
pub use follow::MAX_ENTRIES_PER_BATCH;
pub use hosts::{HostStatus, HostView};
pub use ingest::Undecodable;
pub use letters::{LetterPage, LetterState, LetterSummary, LetterWord, MAX_LETTERS, WholeLetter};
pub use pools::{PoolView, Unheard};
use query::SHOWN_CANDIDATES;
pub use query::{DEFAULT_PAGE, Found, MAX_PAGE, Page};
pub use refusals::RefusalView;
pub use series::{Histogram, KEPT_MINUTES, Minute, begin_of};
pub use store::Stored;
pub use summary::JobSummary;
pub use totals::Totals;
pub use warm::WarmView;

use crate::clock::Clock;
use cache::Cache;
use ingest::{Ingest, Written};
use store::{Meta, Store};

/// Changes a slow listener may be behind; it then looks at the rows instead.
const CHANGES_KEPT: usize = 1_024;
/// Hosts listed; a front for more needs pages for them.
const MAX_HOSTS: usize = 10_000;
/// Pools listed: as many as a person can still name.
const MAX_POOLS: usize = 1_000;
/// What can go wrong with the read model.
#[derive(Debug, thiserror::Error)]
pub enum ReadModelError {
    /// Its folder cannot be read or written.
    #[error("read model store failed: {0}; is the disk full, or the folder in use by another stoker?")]
    Store(#[from] sled::Error),
    /// Opening its folder anew failed; the log has the reason.
    #[error("read model is closed, because it could not be opened anew; start stoker again")]
    Closed,
    /// A row is not what we wrote.
    #[error("read model is damaged: {0}; stop stoker and remove its control folder, it is refilled from the history")]
    Corrupt(String),
    /// A page's cursor was not made by us.
    #[error("cursor is not one that a list answered with; leave it out to begin with the newest")]
    Cursor,
}

/// Something new in the rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its place in the order of arrival.
    pub seq: u64,
    /// The job it is about; none for hosts.
    pub job: Option<JobId>,
    /// Kind of event.
    pub kind: &'static str,
}

/// Numbers for the overview.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Counts {
    /// Jobs by phase; every phase is there.
    pub phases: BTreeMap<Phase, u64>,
    /// Jobs that are failing, retrying or dead, by the cause of their last failure.
    pub causes: BTreeMap<Cause, u64>,
    /// History entries that could not be decoded, ever.
    pub undecodable: u64,
    /// Open dead letters (messages, not jobs) by reason.
    pub dead_letters: BTreeMap<DeadLetterReason, u64>,
}

struct Live {
    meta: Meta,
    /// When history entries last arrived.
    heard_at: Option<Time>,
}

/// The rows. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct ReadModel {
    store: Store,
    live: Arc<Mutex<Live>>,
    /// Held while a batch is added up: one at a time. Who only reads does not wait for it.
    cache: Arc<Mutex<Cache>>,
    changes: broadcast::Sender<Change>,
    crowded: watch::Sender<()>,
    unsettled: watch::Sender<()>,
    caught_up: watch::Sender<bool>,
    opened_at: Time,
    /// Number of the next event when the database was opened last; later where that was put off.
    opened_at_seq: Arc<AtomicU64>,
    clock: Clock,
}

impl ReadModel {
    /// Opens (or makes) the folder.
    pub fn open(dir: &Path, clock: Clock) -> Result<Self, ReadModelError> {
        let (store, meta) = Store::open(dir)?;
        let opened_at_seq = Arc::new(AtomicU64::new(meta.next_seq));
        let live = Live { meta, heard_at: None };
        let (changes, crowded) = (broadcast::channel(CHANGES_KEPT).0, watch::channel(()).0);
        let (unsettled, caught_up, opened_at) = (watch::channel(()).0, watch::channel(false).0, clock());
        let (live, cache) = (Arc::new(Mutex::new(live)), Arc::default());
        Ok(Self { store, live, cache, changes, crowded, unsettled, caught_up, opened_at, opened_at_seq, clock })
    }

    /// Nothing panics while holding it, and a half-done change is never kept in it.
    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds history entries: all of them or, on error, none.
    pub fn apply(&self, entries: &[HistoryEntry]) -> Result<(), ReadModelError> {
        let (changes, crowded, unsettled, latest) = {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            let now = (self.clock)();
            let meta = self.live().meta.clone();
            let mut ingest = Ingest::new(&self.store, &mut cache, meta);
            let done = ingest.entries(entries, now).and_then(|()| ingest.commit());
            match done {
                Ok(Written { meta, changes, crowded, unsettled, latest }) => {
                    let mut live = self.live();
                    live.meta = meta;
                    live.heard_at = Some(now);
                    (changes, crowded, unsettled, latest)
                }
                Err(e) => {
                    // States in the cache may be ahead of the rows now.
                    *cache = Cache::default();
                    return Err(e);
                }
            }
        };
        for change in changes {
            // No listener is no error.
            let _ = self.changes.send(change);
        }
        if crowded {
            self.crowded.send_replace(());
        }
        if unsettled {
            self.unsettled.send_replace(());
        }
        if latest.is_some_and(|latest| latest >= self.opened_at) && !self.is_caught_up() {
            self.now_caught_up()?;
        }
        Ok(())
    }

    /// Where the history is read on.
    pub fn next_offset(&self) -> Offset {
        let live = self.live();
        match (live.meta.last_read, live.meta.next_offset) {
            (Some(mark), _) => Offset::After(mark),
            (None, next) => next.map_or(Offset::First, Offset::At),
        }
    }

    /// Reads the history from its beginning when it is followed next: for a history whose offsets
    /// begin anew. What is known stays; what is told again changes nothing.
    pub fn rewind(&self) {
        let mut live = self.live();
        (live.meta.next_offset, live.meta.last_read) = (None, None);
    }

    /// Whether the history was read to its end once, since this process began.
    pub fn is_caught_up(&self) -> bool {
        *self.caught_up.borrow()
    }

    /// The same, as it changes.
    pub fn caught_up(&self) -> watch::Receiver<bool> {
        self.caught_up.subscribe()
    }

    /// Tells of everything new from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// Number that the next new event will have.
    pub fn next_seq(&self) -> u64 {
        self.live().meta.next_seq
    }

    /// When history entries last arrived, since this process began.
    pub fn heard_at(&self) -> Option<Time> {
        self.live().heard_at
    }

    /// Waits until these jobs are known, so that who submitted them finds them; `false` when time
    /// was up before that.
    pub async fn wait_for(&self, ids: &[JobId], within: Duration) -> bool {
        let mut news = self.changes();
        let mut missing: Vec<_> = ids.to_vec();
        let known = |id: &JobId| matches!(self.store.summary(*id), Ok(Some(_)));
        let all = async {
            loop {
                missing.retain(|id| !known(id));
                // Falling behind is news, too.
                if missing.is_empty() || matches!(news.recv().await, Err(broadcast::error::RecvError::Closed)) {
                    return;
                }
            }
        };
        tokio::time::timeout(within, all).await.is_ok()
    }

    /// Waits until an event is known.
    pub async fn wait_for_event(&self, event: &Event, within: Duration) -> bool {
        let mut news = self.changes();
        let key = keys::event(event);
        let seen = async {
            while !matches!(self.store.event(&key), Ok(Some(_))) {
                if matches!(news.recv().await, Err(broadcast::error::RecvError::Closed)) {
                    return;
                }
            }
        };
        tokio::time::timeout(within, seen).await.is_ok()
    }

    /// A page of jobs, newest first.
    pub fn list(&self, filter: &Filter, cursor: Option<&str>, limit: usize) -> Result<Page, ReadModelError> {
        let in_phases = filter.phase.as_ref().map_or(0, |phases| {
            let live = self.live();
            phases.iter().map(|phase| live.meta.counters.phase(phase)).sum()
        });
        query::list(&self.store, filter, in_phases, cursor, limit)
    }

    /// The job that an id, or the beginning of one, names.
    pub fn find(&self, text: &str) -> Result<Found, ReadModelError> {
        query::find(&self.store, text)
    }

    /// The state of a job; a job nobody heard of has none.
    pub fn job(&self, id: JobId) -> Result<Option<JobState>, ReadModelError> {
        // In use while a batch is added up; the events say the same.
        if let Ok(cache) = self.cache.try_lock()
            && let Some(state) = cache.get(id)
        {
            return Ok(Some(state));
        }
        let _whole = self.store.between_batches();
        let events = self.events(id)?;
        Ok(JobState::replay(id, &events))
    }

    /// The row of a job.
    pub fn summary(&self, id: JobId) -> Result<Option<JobSummary>, ReadModelError> {
        self.store.summary(id)
    }

    /// Events of a job as they came.
    pub fn stored_events(&self, id: JobId) -> Result<Vec<Stored>, ReadModelError> {
        let mut stored = self.store.events_of(id)?.map(|r| r.map(|(_, s)| s)).collect::<Result<Vec<_>, _>>()?;
        stored.sort_by_key(|s| s.seq);
        Ok(stored)
    }

    /// Events of a job by time.
    pub fn events(&self, id: JobId) -> Result<Vec<Event>, ReadModelError> {
        let mut events = self.stored_events(id)?.iter().map(Stored::event).collect::<Result<Vec<_>, _>>()?;
        events.sort_by_key(|e| (e.time, e.epoch));
        Ok(events)
    }

    /// Events of all jobs and hosts in order of arrival, from a number on.
    pub fn arrived(&self, from: u64, limit: usize) -> Result<Vec<Stored>, ReadModelError> {
        self.store.arrived(from, limit)
    }

    /// Jobs with a VM too many that was not told to go.
    pub fn crowded(&self, limit: usize) -> Result<Vec<JobId>, ReadModelError> {
        self.store.crowded(limit)
    }

    /// Tells when there may be more of them.
    pub fn crowded_news(&self) -> watch::Receiver<()> {
        self.crowded.subscribe()
    }

    /// Jobs for which something is to come, behind a place in their order, each with its place: those of
    /// which nothing was heard longest first. The urgent ones are to be cancelled, or have a time-to-live.
    pub fn awaited(
        &self,
        is_urgent: bool,
        after: &[u8],
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, AwaitedJob)>, ReadModelError> {
        self.store.awaited_after(is_urgent, after, limit)
    }

    /// Number of the last event of the latest job of a lane that a host took.
    pub fn passed(&self, pool: &PoolName, lane: Priority) -> Result<u64, ReadModelError> {
        self.store.passed(pool, lane)
    }

    /// Numbers for the overview.
    pub fn counts(&self) -> Counts {
        let live = self.live();
        let counters = &live.meta.counters;
        Counts {
            phases: Phase::ALL.into_iter().map(|p| (p, counters.phase(p))).collect(),
            causes: counters.causes(&[Phase::Failing, Phase::Retrying, Phase::Dead]),
            undecodable: live.meta.undecodable,
            dead_letters: live.meta.letters.by_reason().clone(),
        }
    }

    /// Jobs in a phase by the cause of their last failure, the most frequent first.
    pub fn causes_of(&self, phase: Phase) -> Vec<(Cause, u64)> {
        let mut causes: Vec<_> = self.live().meta.counters.causes(&[phase]).into_iter().collect();
        causes.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        causes
    }

    /// Jobs that wait for another attempt by the host that had the last one, the most first.
    pub fn retrying_hosts(&self) -> Vec<(String, u64)> {
        let mut hosts = self.live().meta.counters.hosts(Phase::Retrying);
        hosts.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        hosts
    }

    /// Jobs that wait for an attempt, those due soonest first.
    pub fn due_soonest(&self, limit: usize) -> Result<Vec<JobSummary>, ReadModelError> {
        let ids = self.store.due(limit)?;
        ids.into_iter().filter_map(|id| self.store.summary(id).transpose()).collect()
    }

    /// The job that has been in a phase's list longest.
    pub fn oldest(&self, phase: Phase) -> Result<Option<JobSummary>, ReadModelError> {
        let id = self.store.oldest(&keys::by_phase(phase))?;
        id.map_or(Ok(None), |id| self.store.summary(id))
    }

    /// What happened in the last minutes, one entry each, the oldest first.
    pub fn series(&self, minutes: u64) -> Result<Vec<(u64, Minute)>, ReadModelError> {
        let now = series::minute_of((self.clock)());
        let first = now.saturating_sub(minutes.clamp(1, KEPT_MINUTES) - 1);
        let mut known: BTreeMap<_, _> = self.store.minutes(first, now)?.into_iter().collect();
        Ok((first..=now).map(|minute| (minute, known.remove(&minute).unwrap_or_default())).collect())
    }

    /// All hosts by name.
    pub fn hosts(&self) -> Result<Vec<HostView>, ReadModelError> {
        let states = self.store.hosts(MAX_HOSTS)?;
        let live = self.live();
        let on = |name: &str, phase| live.meta.counters.on_host(name, phase);
        Ok(states.iter().map(|(n, s)| s.view(n, on(n, Phase::Booting), on(n, Phase::Ready))).collect())
    }

    /// All pools by name.
    pub fn pools(&self) -> Result<Vec<PoolView>, ReadModelError> {
        let (rules, hosts) = (self.store.pools(MAX_POOLS)?, self.store.hosts(MAX_HOSTS)?);
        Ok(pools::views(&rules, &hosts, &self.live().meta.counters, MAX_POOLS))
    }

    /// What was said of pools and hosts that began later may not have heard.
    pub fn unheard(&self) -> Result<Vec<Unheard>, ReadModelError> {
        Ok(pools::unheard(&self.store.pools(MAX_POOLS)?, &self.store.hosts(MAX_HOSTS)?))
    }

    /// A dead letter, with its body.
    pub fn letter(&self, id: LetterId) -> Result<Option<WholeLetter>, ReadModelError> {
        let _whole = self.store.between_batches();
        let Some(summary) = self.store.letter(id)?.and_then(|row| row.summary(id)) else { return Ok(None) };
        let missing = || store::corrupt("the event of a letter's death is missing");
        let stored = self.store.event(&keys::letter_death(id, summary.died_at))?.ok_or_else(missing)?;
        match stored.event()?.data {
            EventData::MessageDeadLettered(death) => Ok(Some(WholeLetter { summary, body: death.body })),
            _ => Err(missing()),
        }
    }

    /// The dead letter about a job.
    pub fn letter_of(&self, job: JobId) -> Result<Option<WholeLetter>, ReadModelError> {
        self.store.letter_of(job)?.map_or(Ok(None), |id| self.letter(id))
    }

    /// Dead letters whose ids begin so; some of them.
    pub fn find_letters(&self, text: &str) -> Result<Vec<LetterId>, ReadModelError> {
        let Some((low, high)) = keys::id_range(text) else { return Ok(Vec::new()) };
        self.store.letter_ids(LetterId(low.0), LetterId(high.0), SHOWN_CANDIDATES)
    }

    /// A page of dead letters that are open, or not, those that died last first.
    pub fn letters(
        &self,
        open: bool,
        reason: Option<DeadLetterReason>,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<LetterPage, ReadModelError> {
        let mut page = query::letters(&self.store, open, reason, cursor, limit)?;
        page.open = self.live().meta.letters.by_reason().clone();
        Ok(page)
    }

    /// Jobs that wait for a message that was given up.
    pub fn unsettled(&self, limit: usize) -> Result<Vec<JobId>, ReadModelError> {
        self.store.unsettled(limit)
    }

    /// Tells when there may be more of them.
    pub fn unsettled_news(&self) -> watch::Receiver<()> {
        self.unsettled.subscribe()
    }

    /// History entries that could not be decoded, the newest first.
    pub fn undecodable(&self, limit: usize) -> Result<Vec<Undecodable>, ReadModelError> {
        self.store.undecodable(limit)
    }
}
