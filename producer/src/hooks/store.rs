//! The log of deliveries: bounded, newest first. What anybody can cause (refused before it was
//! known to be genuine, sent again) is kept apart, so that it never drives out what is genuine.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sled::{Db, Tree};

use super::delivery::{Delivery, Outcome};
use crate::webhooks::StoreError;

/// Genuine deliveries kept: months of a busy repository.
const MAX_ORIGINALS: u64 = 10_000;
/// Others kept: enough to see what is wrong with a sender.
const MAX_OTHERS: u64 = 2_000;
/// Largest body kept; what is larger cannot be replayed.
const MAX_KEPT_BYTES: usize = 64 * 1024;
/// Deliveries in one answer.
pub const MAX_PAGE: usize = 200;

/// How many deliveries there are of each source and outcome.
type Counts = BTreeMap<(String, Outcome), u64>;

/// Rows by number, and how many there are: counted once, when they are opened.
#[derive(Debug, Clone)]
struct Bounded {
    rows: Tree,
    counts: Arc<Mutex<Counts>>,
}

impl Bounded {
    fn open(db: &Db, name: &str) -> Result<Self, StoreError> {
        let rows = Self { rows: db.open_tree(name)?, counts: Arc::default() };
        for delivery in rows.before(u64::MAX) {
            rows.counts().entry(delivery?.kind()).and_modify(|n| *n += 1).or_insert(1);
        }
        Ok(rows)
    }

    /// Nothing panics while holding them.
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, n: u64) -> Result<Option<Delivery>, StoreError> {
        let row = self.rows.get(n.to_be_bytes())?;
        row.map(|row| serde_json::from_slice(&row).map_err(StoreError::damaged)).transpose()
    }

    fn put(&self, delivery: &Delivery) -> Result<(), StoreError> {
        let row = serde_json::to_vec(delivery).map_err(StoreError::damaged)?;
        if self.rows.insert(delivery.n.to_be_bytes(), row)?.is_none() {
            *self.counts().entry(delivery.kind()).or_default() += 1;
        }
        Ok(())
    }

    /// Removes the oldest beyond `max`.
    fn trim(&self, max: u64, mut removed: impl FnMut(Delivery) -> Result<(), StoreError>) -> Result<(), StoreError> {
        while self.counts().values().sum::<u64>() > max {
            let Some((_, row)) = self.rows.pop_min()? else { break };
            let old: Delivery = serde_json::from_slice(&row).map_err(StoreError::damaged)?;
            self.counts().entry(old.kind()).and_modify(|n| *n = n.saturating_sub(1));
            removed(old)?;
        }
        Ok(())
    }

    fn before(&self, n: u64) -> impl Iterator<Item = Result<Delivery, StoreError>> {
        self.rows.range(..n.to_be_bytes()).rev().map(|row| serde_json::from_slice(&row?.1).map_err(StoreError::damaged))
    }
}

/// The log.
#[derive(Debug, Clone)]
pub struct DeliveryLog {
    db: Db,
    originals: Bounded,
    others: Bounded,
    bodies: Tree,
    /// (source, delivery id) -> number of the delivery that settled it.
    settled: Tree,
}

impl DeliveryLog {
    /// In trees of this store.
    pub fn open(db: &Db) -> Result<Self, StoreError> {
        Ok(Self {
            db: db.clone(),
            originals: Bounded::open(db, "deliveries")?,
            others: Bounded::open(db, "deliveries.others")?,
            bodies: db.open_tree("deliveries.bodies")?,
            settled: db.open_tree("deliveries.settled")?,
        })
    }

    /// Writes a delivery down under a new number, which is returned with it.
    pub fn add(&self, mut delivery: Delivery, body: &[u8]) -> Result<Delivery, StoreError> {
        // Numbers begin at 1; they only grow, also over restarts.
        delivery.n = self.db.generate_id()? + 1;
        if !delivery.is_original() {
            self.others.put(&delivery)?;
            self.others.trim(MAX_OTHERS, |_| Ok(()))?;
            return Ok(delivery);
        }
        if body.len() <= MAX_KEPT_BYTES {
            delivery.replayable = true;
            self.bodies.insert(delivery.n.to_be_bytes(), body)?;
        }
        self.originals.put(&delivery)?;
        if let Some(key) = settled_key(&delivery).filter(|_| delivery.is_settled()) {
            // The first stays: a replay does not change what the sender's delivery made.
            let _ = self.settled.compare_and_swap(key, None::<&[u8]>, Some(&delivery.n.to_be_bytes()))?;
        }
        self.originals.trim(MAX_ORIGINALS, |old| {
            self.bodies.remove(old.n.to_be_bytes())?;
            if let Some(key) = settled_key(&old) {
                // Unless a later one has settled the same.
                let _ = self.settled.compare_and_swap(key, Some(&old.n.to_be_bytes()), None::<&[u8]>)?;
            }
            Ok(())
        })?;
        Ok(delivery)
    }

    /// Counts a replay.
    pub fn update(&self, delivery: &Delivery) -> Result<(), StoreError> {
        self.originals.put(delivery)
    }

    /// A delivery by its number.
    pub fn get(&self, n: u64) -> Result<Option<Delivery>, StoreError> {
        Ok(self.originals.get(n)?.or(self.others.get(n)?))
    }

    /// Its body, if it is kept.
    pub fn body(&self, n: u64) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.bodies.get(n.to_be_bytes())?.map(|body| body.to_vec()))
    }

    /// The delivery that settled this one before.
    pub fn settled(&self, source: &str, id: &str) -> Result<Option<Delivery>, StoreError> {
        let Some(n) = self.settled.get(key(source, id))? else { return Ok(None) };
        let n = n.as_ref().try_into().map(u64::from_be_bytes).map_err(StoreError::damaged)?;
        self.originals.get(n)
    }

    /// The newest with a number below `before`, of one source or of all.
    pub fn list(&self, source: Option<&str>, before: u64, limit: usize) -> Result<Vec<Delivery>, StoreError> {
        let wanted = |row: &Result<Delivery, StoreError>| {
            row.as_ref().map_or(true, |delivery| source.is_none_or(|source| source == delivery.source))
        };
        let limit = limit.min(MAX_PAGE);
        let mut found: Vec<_> = self.originals.before(before).filter(wanted).take(limit).collect::<Result<_, _>>()?;
        for other in self.others.before(before).filter(wanted).take(limit) {
            found.push(other?);
        }
        found.sort_by_key(|delivery| std::cmp::Reverse(delivery.n));
        found.truncate(limit);
        Ok(found)
    }

    /// How many are kept of a source, with this outcome.
    pub fn count(&self, source: &str, outcome: Outcome) -> u64 {
        let kind = (source.to_owned(), outcome);
        [&self.originals, &self.others].into_iter().filter_map(|rows| rows.counts().get(&kind).copied()).sum()
    }
}

fn settled_key(delivery: &Delivery) -> Option<Vec<u8>> {
    delivery.id.as_deref().map(|id| key(&delivery.source, id))
}

/// Neither has a zero byte in it.
fn key(source: &str, id: &str) -> Vec<u8> {
    [source.as_bytes(), b"\0", id.as_bytes()].concat()
}
