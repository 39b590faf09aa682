//! A fault of the rows that is put in on purpose (see [`stoker_schemas::seeded`]).

use sled::Batch;
use stoker_worker::ports::broker::HistoryEntry;

use super::{ReadModel, ReadModelError, keys, store};

impl ReadModel {
    /// Stores where the history is read on before what was read of it.
    pub(super) fn note_too_early(&self, entries: &[HistoryEntry]) -> Result<(), ReadModelError> {
        let Some(last) = entries.last() else { return Ok(()) };
        let mut meta = self.live().meta.clone();
        (meta.next_offset, meta.last_read) = (Some(last.offset + 1), Some(last.mark()));
        let mut batch = Batch::default();
        batch.insert(keys::META, serde_json::to_vec(&meta).map_err(store::corrupt)?);
        self.store.write(batch)
    }
}
