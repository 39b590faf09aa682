//! Callbacks to be made and made, in one tree, so that what follows from an event is written with
//! the place up to which events were read: all of it or nothing.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sled::{Batch, Tree};
use stoker_schemas::{JobId, Time};

use super::target::Target;
use crate::webhooks::StoreError;

/// Finished callbacks kept.
const MAX_FINISHED: u64 = 10_000;
/// Callbacks that may wait: a day of a large fleet whose receiver is away.
pub const MAX_WAITING: u64 = 100_000;
/// Due callbacks looked through for one whose receiver has a place free.
const MAX_LOOKED_THROUGH: usize = 20_000;
/// Callbacks in one answer.
pub const MAX_PAGE: usize = 200;

const META: &[u8] = b"m";
const CALLS: u8 = b'c';
const DUE: u8 = b'd';
const FINISHED: u8 = b'f';
const BY_ID: u8 = b'i';
const BY_JOB: u8 = b'j';

/// How far a callback is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CallState {
    /// To be tried at `due`.
    Waiting,
    /// Its receiver took it.
    Delivered,
    /// Tried as often as it is.
    GivenUp,
    /// Its receiver wants no more (410).
    Disabled,
    /// Its address may not be called.
    Refused,
}

impl CallState {
    /// Its name, as in data.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Delivered => "delivered",
            Self::GivenUp => "given_up",
            Self::Disabled => "disabled",
            Self::Refused => "refused",
        }
    }
}

/// What the last try came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct LastTry {
    /// When.
    pub at: Time,
    /// HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// Beginning of the answer, or why there was none.
    pub words: String,
}

/// One callback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Its number here; higher is newer.
    pub n: u64,
    /// Its `webhook-id`.
    pub id: String,
    /// Kind (`job.ready`).
    pub kind: String,
    /// About which job.
    pub job: JobId,
    /// Where to. May hold a token: for sending only.
    pub(super) url: String,
    /// What is sent.
    pub(super) body: String,
    /// When it was made.
    pub created: Time,
    /// How far it is.
    pub state: CallState,
    /// Tries so far.
    pub tries: u32,
    /// When it is tried next.
    pub due: Option<Time>,
    /// What the last try came to.
    pub last: Option<LastTry>,
}

impl Call {
    /// Where to, without what may be secret.
    pub fn target(&self) -> String {
        Target::parse(&self.url).map_or_else(|error| format!("({error})"), |target| target.shown())
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Meta {
    /// Number of the next event to be looked at.
    cursor: Option<u64>,
    next_n: u64,
    finished: u64,
    waiting: u64,
}

/// The tree. Writers take turns; readers need not.
#[derive(Debug, Clone)]
pub struct CallStore {
    tree: Tree,
    meta: Arc<Mutex<Meta>>,
}

fn numbered(prefix: u8, n: u64) -> Vec<u8> {
    [&[prefix][..], &n.to_be_bytes()].concat()
}

fn due_key(due: Time, n: u64) -> Vec<u8> {
    let micros = u64::try_from(due.unix_micros()).unwrap_or(0);
    [&[DUE][..], &micros.to_be_bytes(), &n.to_be_bytes()].concat()
}

fn id_key(id: &str) -> Vec<u8> {
    [&[BY_ID][..], id.as_bytes()].concat()
}

fn job_key(job: JobId, n: u64) -> Vec<u8> {
    [&[BY_JOB][..], job.0.as_bytes(), &n.to_be_bytes()].concat()
}

fn last_u64(key: &[u8]) -> Option<u64> {
    key.last_chunk::<8>().map(|tail| u64::from_be_bytes(*tail))
}

impl CallStore {
    /// In a tree of this store.
    pub fn open(db: &sled::Db) -> Result<Self, StoreError> {
        let tree = db.open_tree("callbacks")?;
        let meta = tree.get(META)?.map(|row| serde_json::from_slice(&row).map_err(StoreError::damaged));
        Ok(Self { tree, meta: Arc::new(Mutex::new(meta.transpose()?.unwrap_or_default())) })
    }

    /// Changes rows and bookkeeping together; on error neither.
    fn write(&self, change: impl FnOnce(&mut Batch, &mut Meta) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let mut meta = self.meta.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut batch, mut after) = (Batch::default(), meta.clone());
        change(&mut batch, &mut after)?;
        self.trim(&mut batch, &mut after)?;
        batch.insert(META, serde_json::to_vec(&after).map_err(StoreError::damaged)?);
        self.tree.apply_batch(batch)?;
        *meta = after;
        Ok(())
    }

    /// Where events are read on; none before the first time.
    pub fn cursor(&self) -> Option<u64> {
        self.meta.lock().unwrap_or_else(PoisonError::into_inner).cursor
    }

    /// How many wait.
    pub fn waiting(&self) -> u64 {
        self.meta.lock().unwrap_or_else(PoisonError::into_inner).waiting
    }

    /// Adds callbacks and moves the cursor. Their numbers are given here.
    pub fn add(&self, calls: Vec<Call>, cursor: u64) -> Result<(), StoreError> {
        self.write(|batch, meta| {
            meta.cursor = Some(cursor);
            for mut call in calls {
                call.n = meta.next_n;
                meta.next_n += 1;
                batch.insert(id_key(&call.id), &call.n.to_be_bytes());
                batch.insert(job_key(call.job, call.n), &[]);
                put(batch, meta, None, &call)?;
            }
            Ok(())
        })
    }

    /// Replaces rows by what became of them.
    pub fn update(&self, changes: &[(Call, Call)]) -> Result<(), StoreError> {
        self.write(|batch, meta| changes.iter().try_for_each(|(before, after)| put(batch, meta, Some(before), after)))
    }

    fn trim(&self, batch: &mut Batch, meta: &mut Meta) -> Result<(), StoreError> {
        let surplus = usize::try_from(meta.finished.saturating_sub(MAX_FINISHED)).unwrap_or(usize::MAX);
        for key in self.tree.scan_prefix([FINISHED]).keys().take(surplus) {
            let key = key?;
            let Some(n) = last_u64(&key) else { continue };
            if let Some(call) = self.get(n)? {
                batch.remove(id_key(&call.id));
                batch.remove(job_key(call.job, n));
            }
            batch.remove(numbered(CALLS, n));
            batch.remove(key);
            meta.finished = meta.finished.saturating_sub(1);
        }
        Ok(())
    }

    /// A callback by its number.
    pub fn get(&self, n: u64) -> Result<Option<Call>, StoreError> {
        let row = self.tree.get(numbered(CALLS, n))?;
        row.map(|row| serde_json::from_slice(&row).map_err(StoreError::damaged)).transpose()
    }

    /// Whether there is one with this id.
    pub fn has(&self, id: &str) -> Result<bool, StoreError> {
        Ok(self.tree.contains_key(id_key(id))?)
    }

    /// Those about a job, the oldest first.
    pub fn of_job(&self, job: JobId) -> Result<Vec<Call>, StoreError> {
        let prefix = [&[BY_JOB][..], job.0.as_bytes()].concat();
        let calls = self.tree.scan_prefix(prefix).keys().filter_map(|key| match key {
            Ok(key) => last_u64(&key).and_then(|n| self.get(n).transpose()),
            Err(error) => Some(Err(error.into())),
        });
        calls.collect()
    }

    /// The first that is due and wanted (by its number and receiver).
    pub fn due(&self, now: Time, wanted: impl Fn(u64, &str) -> bool) -> Result<Option<Call>, StoreError> {
        for row in self.tree.range(vec![DUE]..due_key(now, u64::MAX)).take(MAX_LOOKED_THROUGH) {
            let (key, receiver) = row?;
            if let Some(n) = last_u64(&key)
                && wanted(n, &String::from_utf8_lossy(&receiver))
            {
                return self.get(n);
            }
        }
        Ok(None)
    }

    /// When the next one is due.
    pub fn next_due(&self) -> Result<Option<Time>, StoreError> {
        let Some(key) = self.tree.scan_prefix([DUE]).keys().next() else { return Ok(None) };
        let key = key?;
        let micros = key.get(1..9).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes);
        Ok(Some(Time::from_unix_micros(i64::try_from(micros).unwrap_or(i64::MAX))))
    }

    /// The newest with a number below `before`.
    pub fn list(&self, before: u64, limit: usize) -> Result<Vec<Call>, StoreError> {
        let rows = self.tree.range(numbered(CALLS, 0)..numbered(CALLS, before)).rev().take(limit.min(MAX_PAGE));
        rows.map(|row| serde_json::from_slice(&row?.1).map_err(StoreError::damaged)).collect()
    }
}

/// A row with its places in the indexes.
fn put(batch: &mut Batch, meta: &mut Meta, before: Option<&Call>, after: &Call) -> Result<(), StoreError> {
    let n = after.n;
    if let Some(due) = before.and_then(|call| call.due) {
        batch.remove(due_key(due, n));
        meta.waiting = meta.waiting.saturating_sub(1);
    }
    match after.due {
        Some(due) => {
            batch.insert(due_key(due, n), after.target().as_bytes());
            meta.waiting += 1;
        }
        None => {
            batch.insert(numbered(FINISHED, n), &[]);
            meta.finished += 1;
        }
    }
    batch.insert(numbered(CALLS, n), serde_json::to_vec(after).map_err(StoreError::damaged)?);
    Ok(())
}
