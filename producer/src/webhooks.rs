//! Webhooks in both directions and the store that they share: a folder of its own, because unlike
//! the read model's it cannot be refilled from the history.

use std::path::Path;
use std::sync::Arc;

use stoker_worker::snapshots;

use crate::callbacks::Callbacks;
use crate::hooks::{Hooks, HooksConfig};

/// Folder of the store, below the data folder.
pub const FOLDER: &str = "webhooks";
/// Memory sled may use for pages; the rows are few and small.
const CACHE_BYTES: u64 = 16 << 20;

/// What can go wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Its folder cannot be read or written.
    #[error("webhook store failed: {0}; is the disk full, or the folder in use by another stoker?")]
    Sled(#[from] sled::Error),
    /// A row is not what we wrote.
    #[error("webhook store is damaged: {0}; stop stoker and remove its webhooks folder, the delivery log begins anew")]
    Damaged(String),
}

impl StoreError {
    /// A row is not what we wrote.
    pub(crate) fn damaged(what: impl ToString) -> Self {
        Self::Damaged(what.to_string())
    }
}

/// Webhooks in, callbacks out. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct Webhooks {
    /// Deliveries in.
    pub hooks: Arc<Hooks>,
    /// Callbacks out; none without their settings.
    pub callbacks: Option<Callbacks>,
}

impl Webhooks {
    /// Opens (or makes) the store in a folder.
    pub fn open(dir: &Path, config: HooksConfig) -> Result<Self, StoreError> {
        let db = snapshots::open(&sled::Config::new().path(dir).cache_capacity(CACHE_BYTES), dir)?;
        let callbacks = config.callbacks.map(|callbacks| Callbacks::open(&db, callbacks)).transpose()?;
        Ok(Self { hooks: Arc::new(Hooks::open(&db, config.sources)?), callbacks })
    }
}
