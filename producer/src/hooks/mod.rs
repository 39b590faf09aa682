//! Webhooks in: a delivery is proven genuine, judged by its source's condition and turned into a
//! job. Each leaves a trace, whatever became of it.
//!
//! The way through: `receive` takes the request, [`verify`] proves it, [`mapping`] makes the job,
//! [`store`] keeps the trace; [`config`] is the file that says how.

pub mod config;
pub mod delivery;
pub mod mapping;
pub mod reader;
mod receive;
mod replay;
pub mod secret;
pub mod store;
pub mod verify;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard, Semaphore};

pub use config::{ConfigErrors, HooksConfig, Source};
pub use delivery::{Delivery, Outcome};
pub(crate) use receive::Receipt;
pub use receive::receive;
pub use replay::replay;
pub use store::DeliveryLog;

use crate::http::access::Deliveries;
use crate::webhooks::StoreError;

/// Deliveries in work at once. Each may hold a body, and anybody may send one.
const MAX_IN_WORK: usize = 32;
/// Locks that deliveries share by their ids: as many as may be in work, and some for luck.
const LOCKS: usize = 64;

/// Sources, and the log of what they sent.
pub struct Hooks {
    sources: BTreeMap<String, Source>,
    log: DeliveryLog,
    places: Arc<Semaphore>,
    locks: Vec<Mutex<()>>,
    hasher: RandomState,
    limit: Deliveries,
}

impl Hooks {
    /// With its log in trees of this store.
    pub fn open(db: &sled::Db, sources: BTreeMap<String, Source>) -> Result<Self, StoreError> {
        Ok(Self {
            sources,
            log: DeliveryLog::open(db)?,
            places: Arc::new(Semaphore::new(MAX_IN_WORK)),
            locks: (0..LOCKS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            limit: Deliveries::default(),
        })
    }

    /// The sources by name.
    pub fn sources(&self) -> &BTreeMap<String, Source> {
        &self.sources
    }

    /// The log.
    pub fn log(&self) -> &DeliveryLog {
        &self.log
    }

    /// One at a time of those with the same id: two at once would both be new.
    async fn alone(&self, source: &str, id: &str) -> MutexGuard<'_, ()> {
        let hash = self.hasher.hash_one((source, id));
        let index = usize::try_from(hash % LOCKS as u64).unwrap_or(0);
        self.locks[index].lock().await
    }
}
