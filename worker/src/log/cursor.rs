//! Named positions of the log's consumers (the outbox, a projection).
//!
//! A cursor moves with every event handled, so it must not cost a sync: moves wait in memory and
//! ride along with the next commit. After a crash a consumer sees a few events again, which it must
//! bear anyway.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::LogError;
use super::keys;
use super::options::{MAX_CURSOR_NAME, MAX_DIRTY_CURSORS};

/// Cursor moves that are not on disk yet.
#[derive(Debug, Clone, Default)]
pub(super) struct DirtyCursors(Arc<Mutex<BTreeMap<String, u64>>>);

impl DirtyCursors {
    pub(super) fn get(&self, tree: &sled::Tree, name: &str) -> Result<u64, LogError> {
        if let Some(position) = self.lock().get(name) {
            return Ok(*position);
        }
        let bytes = tree.get(keys::cursor(name)).map_err(LogError::storage("reading a cursor"))?;
        Ok(bytes.and_then(|bytes| keys::u64_at(&bytes, 0)).unwrap_or(0))
    }

    /// Cursors whose names begin so, in order of their names; those at 0 are left out.
    pub(super) fn named(&self, tree: &sled::Tree, prefix: &str) -> Result<Vec<(String, u64)>, LogError> {
        // Taken first: what is written and forgotten meanwhile is found in the tree.
        let dirty = self.snapshot();
        let mut found = BTreeMap::new();
        for entry in tree.scan_prefix(keys::cursor(prefix)) {
            let (key, bytes) = entry.map_err(LogError::storage("reading the cursors"))?;
            let name = String::from_utf8_lossy(&key[1..]).into_owned();
            found.insert(name, keys::u64_at(&bytes, 0).unwrap_or(0));
        }
        found.extend(dirty.into_iter().filter(|(name, _)| name.starts_with(prefix)));
        found.retain(|_, position| *position > 0);
        Ok(found.into_iter().collect())
    }

    pub(super) fn set(&self, name: &str, position: u64) -> Result<(), LogError> {
        let mut dirty = self.lock();
        let fits = dirty.len() < MAX_DIRTY_CURSORS || dirty.contains_key(name);
        if name.is_empty() || name.len() > MAX_CURSOR_NAME || !fits {
            return Err(LogError::CursorName { name: name.to_owned() });
        }
        dirty.insert(name.to_owned(), position);
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    pub(super) fn snapshot(&self) -> Vec<(String, u64)> {
        self.lock().iter().map(|(name, position)| (name.clone(), *position)).collect()
    }

    /// Forgets moves that are on disk now, unless the cursor moved on meanwhile.
    pub(super) fn written(&self, cursors: &[(String, u64)]) {
        let mut dirty = self.lock();
        for (name, position) in cursors {
            if dirty.get(name) == Some(position) {
                dirty.remove(name);
            }
        }
    }

    /// The map is whole after every statement, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
