//! The open database, shared by all who read, and opened anew now and then.
//!
//! sled writes what it starts from only when it is opened, and reads everything that was written since: seconds for
//! the log of a host that has run for weeks. So the writer closes and opens it after so many events; then no start has
//! more than those to read. That needs every handle of it back: readers hold theirs for one call, and what they ask
//! for meanwhile waits.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::error::LogError;

/// How long readers may keep it from being opened anew; then it is tried again later.
const READERS_WITHIN: Duration = Duration::from_millis(100);
/// Between two looks at whether they do.
const LOOK: Duration = Duration::from_micros(200);

/// Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Shared(Arc<RwLock<Option<Arc<sled::Tree>>>>);

impl Shared {
    pub(super) fn new(tree: sled::Tree) -> Self {
        Self(Arc::new(RwLock::new(Some(Arc::new(tree)))))
    }

    /// For one call.
    pub(super) fn get(&self) -> Result<Arc<sled::Tree>, LogError> {
        // The place is whole after every statement.
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or(LogError::Closed)
    }

    /// Takes the tree back from all who read, and puts in its place what `open` gives. `false` when one of them kept
    /// it; then nothing was done.
    pub(super) fn renew(&self, open: impl FnOnce() -> Result<sled::Tree, LogError>) -> Result<bool, LogError> {
        let mut place = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let until = Instant::now() + READERS_WITHIN;
        while place.as_ref().is_some_and(|tree| Arc::strong_count(tree) > 1) {
            if Instant::now() > until {
                return Ok(false);
            }
            std::thread::sleep(LOOK);
        }
        *place = None;
        *place = Some(Arc::new(open()?));
        Ok(true)
    }
}
