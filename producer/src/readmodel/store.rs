//! The read model's tree: typed reads, and one atomic write. Everything in it follows from the
//! history, so nothing here needs to survive more than it does: a lost tail is read again.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sled::Batch;
use stoker_schemas::id::LetterId;
use stoker_schemas::spec::Priority;
use stoker_schemas::{Event, JobId, PoolName, Time};
use stoker_worker::ports::broker::Mark;
use uuid::Uuid;

use super::ReadModelError;
use super::awaited::AwaitedJob;
use super::database::{Database, Reading};
use super::hosts::HostState;
use super::keys::{self, Tail};
use super::letters::{LetterCounts, LetterRow};
use super::packed;
use super::pools::PoolState;
use super::series::Minute;
use super::summary::{Counters, JobSummary};
use super::totals::Totals;

/// Raised when rows change their form: the folder is then refilled from the history.
const FORM: u32 = 9;

/// Bookkeeping, written with every batch.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Meta {
    form: u32,
    /// Where to read on in the history; none before the first entry.
    pub next_offset: Option<u64>,
    /// The entry before it; none in rows that an earlier version wrote.
    #[serde(default)]
    pub last_read: Option<Mark>,
    /// Number of the next new event.
    pub next_seq: u64,
    /// Entries that could not be decoded, ever.
    pub undecodable: u64,
    /// Those that are still there to be looked at.
    pub undecodable_kept: u64,
    /// Numbers of jobs.
    pub counters: Counters,
    /// Numbers of dead letters.
    pub letters: LetterCounts,
    /// What was counted since the rows began.
    #[serde(default)]
    pub totals: Totals,
}

/// An event with its place in the order of arrival.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// That place.
    pub seq: u64,
    /// The job it is about; none for hosts.
    pub job: Option<JobId>,
    /// The event as a CloudEvent in JSON.
    pub json: Vec<u8>,
}

impl Stored {
    /// As kept in a row.
    pub fn to_row(&self) -> Vec<u8> {
        [&self.seq.to_be_bytes(), packed::pack(&self.json).as_slice()].concat()
    }

    /// From a row.
    fn from_row(key: &[u8], row: &[u8]) -> Result<Self, ReadModelError> {
        let (seq, packed) = row.split_first_chunk::<8>().ok_or_else(|| corrupt("an event's row is too short"))?;
        let json = packed::unpack(packed)?;
        Ok(Self { seq: u64::from_be_bytes(*seq), job: keys::job_of_event(key), json })
    }

    /// The event itself.
    pub fn event(&self) -> Result<Event, ReadModelError> {
        // It was encoded by us, so it has its time: the stand-in is never used.
        Event::decode(&self.json, Time::UNIX_EPOCH).map_err(corrupt)
    }
}

pub(super) fn corrupt(what: impl ToString) -> ReadModelError {
    ReadModelError::Corrupt(what.to_string())
}

/// The tree.
#[derive(Debug, Clone)]
pub struct Store {
    database: Arc<Database>,
    /// Taken to write a batch; who reads several rows that belong together shares it.
    whole: Arc<RwLock<()>>,
}

impl Store {
    /// Opens a folder, emptying it when an older Stoker wrote it in another form.
    pub fn open(dir: &Path) -> Result<(Self, Meta), ReadModelError> {
        let store = Self { database: Arc::new(Database::open(dir)?), whole: Arc::default() };
        let meta = store.read::<Meta>(keys::META).ok().flatten().filter(|m| m.form == FORM);
        if let Some(meta) = meta {
            return Ok((store, meta));
        }
        store.database.rows()?.clear()?;
        Ok((store, Meta { form: FORM, ..Meta::default() }))
    }

    /// Writes everything of a batch or nothing.
    pub fn write(&self, batch: Batch) -> Result<(), ReadModelError> {
        let _alone = self.whole.write().unwrap_or_else(PoisonError::into_inner);
        Ok(self.database.rows()?.apply_batch(batch)?)
    }

    /// No batch is written while this is held.
    pub fn between_batches(&self) -> RwLockReadGuard<'_, ()> {
        self.whole.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pushes what is written towards the disk.
    pub fn flush(&self) -> Result<(), ReadModelError> {
        self.database.flush()
    }

    /// Makes the next start short; see [`Database::reopen`].
    pub fn reopen(&self) -> Result<bool, ReadModelError> {
        self.database.reopen()
    }

    fn read<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, ReadModelError> {
        let Some(row) = self.database.rows()?.get(key)? else { return Ok(None) };
        serde_json::from_slice(&row).map(Some).map_err(corrupt)
    }

    /// A job's row.
    pub fn summary(&self, id: JobId) -> Result<Option<JobSummary>, ReadModelError> {
        let Some(row) = self.database.rows()?.get(keys::job(id))? else { return Ok(None) };
        serde_json::from_slice(&packed::unpack(&row)?).map(Some).map_err(corrupt)
    }

    /// A host's row.
    pub fn host(&self, name: &str) -> Result<Option<HostState>, ReadModelError> {
        self.read(&keys::host(name))
    }

    /// All hosts by name.
    pub fn hosts(&self, limit: usize) -> Result<Vec<(String, HostState)>, ReadModelError> {
        let open = self.database.rows()?;
        let rows = open.scan_prefix(keys::HOSTS).take(limit);
        rows.map(|row| {
            let (key, value) = row?;
            let name = String::from_utf8_lossy(&key[keys::HOSTS.len()..]).into_owned();
            Ok((name, serde_json::from_slice(&value).map_err(corrupt)?))
        })
        .collect()
    }

    /// What was said of a pool.
    pub fn pool(&self, name: &str) -> Result<Option<PoolState>, ReadModelError> {
        self.read(&keys::pool(name))
    }

    /// All pools that something was said of.
    pub fn pools(&self, limit: usize) -> Result<BTreeMap<String, PoolState>, ReadModelError> {
        let open = self.database.rows()?;
        let rows = open.scan_prefix(keys::POOLS).take(limit);
        rows.map(|row| {
            let (key, value) = row?;
            let name = String::from_utf8_lossy(&key[keys::POOLS.len()..]).into_owned();
            Ok((name, serde_json::from_slice(&value).map_err(corrupt)?))
        })
        .collect()
    }

    /// An event by its key.
    pub fn event(&self, key: &[u8]) -> Result<Option<Stored>, ReadModelError> {
        self.database.rows()?.get(key)?.map(|row| Stored::from_row(key, &row)).transpose()
    }

    /// The events of a job, with their keys.
    pub fn events_of(
        &self,
        id: JobId,
    ) -> Result<impl Iterator<Item = Result<(Vec<u8>, Stored), ReadModelError>> + use<'_>, ReadModelError> {
        let rows = Reading::new(self.database.rows()?, |tree| tree.scan_prefix(keys::events_of(id)));
        Ok(rows.map(|row| {
            let (key, value) = row?;
            Ok((key.to_vec(), Stored::from_row(&key, &value)?))
        }))
    }

    /// Events in order of arrival, from a number on.
    pub fn arrived(&self, from: u64, limit: usize) -> Result<Vec<Stored>, ReadModelError> {
        let open = self.database.rows()?;
        // The batch that the number lies in began at it or before.
        let before = open.range(keys::seq(0)..=keys::seq(from)).next_back().transpose()?;
        let first = before.map_or_else(|| keys::seq(from), |(key, _)| key.to_vec());
        let mut events = Vec::new();
        for row in open.range(first..=keys::seq(u64::MAX)) {
            let (key, row) = row?;
            let begin = keys::seq_of(&key).ok_or_else(|| corrupt("a key of arrivals is too short"))?;
            for (seq, key) in (begin..).zip(keys::split_keys(&row)).skip_while(|(seq, _)| *seq < from) {
                if events.len() >= limit {
                    return Ok(events);
                }
                let event = self.event(key)?.ok_or_else(|| corrupt(format!("event {seq} is missing")))?;
                events.push(event);
            }
        }
        Ok(events)
    }

    /// Tails of an index from one to another, that included.
    pub fn index(
        &self,
        prefix: &[u8],
        from: Bound<Tail>,
        to: Tail,
    ) -> Result<impl Iterator<Item = Result<Tail, ReadModelError>> + use<'_>, ReadModelError> {
        let from = match from {
            Bound::Unbounded => Bound::Included(prefix.to_vec()),
            bound => bound.map(|tail| [prefix, &tail].concat()),
        };
        let to = Bound::Included([prefix, &to].concat());
        let keys = Reading::new(self.database.rows()?, |tree| tree.range((from, to)).keys());
        Ok(keys.map(|key| keys::tail_of(&key?).ok_or_else(|| corrupt("an index key is too short"))))
    }

    /// Jobs whose ids lie in a range.
    pub fn ids(&self, low: JobId, high: JobId, limit: usize) -> Result<Vec<JobId>, ReadModelError> {
        let open = self.database.rows()?;
        let keys = open.range(keys::job(low)..=keys::job(high)).keys().take(limit);
        keys.map(|key| keys::job_of_index(&key?).ok_or_else(|| corrupt("a job's key is too short"))).collect()
    }

    /// Jobs in the order in which they are due.
    pub fn due(&self, limit: usize) -> Result<Vec<JobId>, ReadModelError> {
        let open = self.database.rows()?;
        let keys = open.scan_prefix(keys::BY_DUE).keys().take(limit);
        keys.map(|key| keys::job_of_index(&key?).ok_or_else(|| corrupt("a job's key is too short"))).collect()
    }

    /// The job that entered an index first, by the time it is sorted by.
    pub fn oldest(&self, prefix: &[u8]) -> Result<Option<JobId>, ReadModelError> {
        let open = self.database.rows()?;
        let Some(key) = open.scan_prefix(prefix).keys().next_back() else { return Ok(None) };
        Ok(keys::job_of_index(&key?))
    }

    /// What happened in a minute.
    pub fn minute(&self, minute: u64) -> Result<Option<Minute>, ReadModelError> {
        self.read(&keys::minute(minute))
    }

    /// Minutes with something in them, from one to another.
    pub fn minutes(&self, from: u64, to: u64) -> Result<Vec<(u64, Minute)>, ReadModelError> {
        let open = self.database.rows()?;
        let rows = open.range(keys::minute(from)..=keys::minute(to));
        rows.map(|row| {
            let (key, value) = row?;
            let minute = key.get(1..).and_then(|tail| tail.try_into().ok()).map(u64::from_be_bytes);
            let minute = minute.ok_or_else(|| corrupt("a minute's key is too short"))?;
            Ok((minute, serde_json::from_slice(&value).map_err(corrupt)?))
        })
        .collect()
    }

    /// Keys of minutes before one, a few at a time.
    pub fn minutes_before(&self, minute: u64, limit: usize) -> Result<Vec<sled::IVec>, ReadModelError> {
        let open = self.database.rows()?;
        Ok(open.range(keys::minute(0)..keys::minute(minute)).keys().take(limit).collect::<Result<_, _>>()?)
    }

    /// Jobs with a VM too many.
    pub fn crowded(&self, limit: usize) -> Result<Vec<JobId>, ReadModelError> {
        let open = self.database.rows()?;
        let keys = open.scan_prefix(keys::CROWDED).keys().take(limit);
        keys.map(|key| keys::job_of_index(&key?).ok_or_else(|| corrupt("a job's key is too short"))).collect()
    }

    /// A dead letter's row.
    pub fn letter(&self, id: LetterId) -> Result<Option<LetterRow>, ReadModelError> {
        self.read(&keys::letter(id))
    }

    /// The dead letter about a job.
    pub fn letter_of(&self, job: JobId) -> Result<Option<LetterId>, ReadModelError> {
        let Some(row) = self.database.rows()?.get(keys::letter_of(job))? else { return Ok(None) };
        let id = Uuid::from_slice(&row).map_err(|_| corrupt("a dead letter's id has the wrong length"))?;
        Ok(Some(LetterId(id)))
    }

    /// Dead letters that are open, or not, those that died first first.
    pub fn oldest_letters(&self, open: bool, count: usize) -> Result<Vec<LetterId>, ReadModelError> {
        let rows = self.database.rows()?;
        let keys = rows.scan_prefix(keys::letters(open)).keys().rev().take(count);
        keys.map(|key| Ok(LetterId(keys::job_of_index(&key?).ok_or_else(|| corrupt("a letter's key is too short"))?.0)))
            .collect()
    }

    /// Dead letters whose ids lie in a range.
    pub fn letter_ids(&self, low: LetterId, high: LetterId, limit: usize) -> Result<Vec<LetterId>, ReadModelError> {
        let rows = self.database.rows()?;
        let keys = rows.range(keys::letter(low)..=keys::letter(high)).keys().take(limit);
        keys.map(|key| Ok(LetterId(keys::job_of_index(&key?).ok_or_else(|| corrupt("a letter's key is too short"))?.0)))
            .collect()
    }

    /// Jobs that wait for a message that was given up.
    pub fn unsettled(&self, limit: usize) -> Result<Vec<JobId>, ReadModelError> {
        let open = self.database.rows()?;
        let keys = open.scan_prefix(keys::UNSETTLED).keys().take(limit);
        keys.map(|key| keys::job_of_index(&key?).ok_or_else(|| corrupt("a job's key is too short"))).collect()
    }

    /// What a job waits for.
    pub fn awaited(&self, id: JobId) -> Result<Option<AwaitedJob>, ReadModelError> {
        self.read(&keys::awaited(id))
    }

    /// Jobs for which something is to come, those of which nothing was heard longest first, behind a place
    /// in their order. With that of the last one.
    pub fn awaited_after(
        &self,
        is_urgent: bool,
        after: &[u8],
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, AwaitedJob)>, ReadModelError> {
        let open = self.database.rows()?;
        let prefix = keys::by_awaited(is_urgent);
        let from = if after.is_empty() { Bound::Included(prefix.clone()) } else { Bound::Excluded(after.to_vec()) };
        let mut found = Vec::new();
        for key in open.range((from, Bound::Unbounded)).keys().take(limit) {
            let key = key?;
            if !key.starts_with(&prefix) {
                break;
            }
            let id = keys::job_of_index(&key).ok_or_else(|| corrupt("a job's key is too short"))?;
            // Between index and row a batch may have moved the job on.
            if let Some(job) = self.awaited(id)? {
                found.push((key.to_vec(), job));
            }
        }
        Ok(found)
    }

    /// Number of the last event of the latest job of a lane that a host took; 0 for none.
    pub fn passed(&self, pool: &PoolName, lane: Priority) -> Result<u64, ReadModelError> {
        Ok(self.read(&keys::lane(pool, lane))?.unwrap_or(0))
    }

    /// What could not be decoded, the newest first.
    pub fn undecodable<T: DeserializeOwned>(&self, limit: usize) -> Result<Vec<T>, ReadModelError> {
        let open = self.database.rows()?;
        let rows = open.scan_prefix(keys::UNDECODABLE).rev().take(limit);
        rows.map(|row| serde_json::from_slice(&row?.1).map_err(corrupt)).collect()
    }

    /// Keys of the oldest entries that could not be decoded.
    pub fn oldest_undecodable(&self, count: usize) -> Result<Vec<sled::IVec>, ReadModelError> {
        let open = self.database.rows()?;
        Ok(open.scan_prefix(keys::UNDECODABLE).keys().take(count).collect::<Result<_, _>>()?)
    }

    /// Whether there is a row.
    pub fn has(&self, key: &[u8]) -> Result<bool, ReadModelError> {
        Ok(self.database.rows()?.contains_key(key)?)
    }
}
