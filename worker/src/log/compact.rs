//! Merging the small blocks of quiet times into full ones.
//!
//! This is the log's archive: history ends up as dense, immutable blocks of the same record bytes,
//! read by the same code. A worker that commits one event at a time leaves a block per event; packed
//! (five events of 300 bytes to a block), they replay two to four times faster. Moving a closed *stream* into a
//! separate tree would buy neither: start-up reads the open streams only (see `index`), sled
//! keeps all trees in one file and one page cache, and reading by position would have to merge two trees.

use super::block::{BLOCK_BYTES, Block, BlockBuilder, Blocks};
use super::error::LogError;
use super::keys;
use super::options::MAX_READ_EVENTS;

/// What one step of the compaction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    /// Events that moved into fuller blocks.
    pub events: u64,
    /// Everything up to this position is packed.
    pub up_to: u64,
}

pub(super) struct Plan {
    pub(super) batch: Option<sled::Batch>,
    pub(super) done: Compacted,
}

/// Plans one step: a run of blocks after the packed part, merged in one atomic batch.
///
/// The newest events stay as they are until there are enough for a full block, so a step that finds
/// nothing to do writes nothing.
pub(super) fn compact(tree: &sled::Tree, tip: u64, max_events: usize) -> Result<Plan, LogError> {
    let packed = tree.get(keys::PACKED).map_err(LogError::storage("reading the compaction's place"))?;
    let packed = packed.and_then(|bytes| keys::u64_at(&bytes, 0)).unwrap_or(0);
    let run = collect(tree, packed + 1, tip, max_events.clamp(1, MAX_READ_EVENTS) as u64)?;
    let Some(last) = run.last().and_then(last_position) else {
        return Ok(Plan { batch: None, done: Compacted { events: 0, up_to: packed } });
    };
    let mut batch = sled::Batch::default();
    let events = if worthwhile(&run) { merge(&run, &mut batch)? } else { 0 };
    batch.insert(keys::PACKED, &last.to_be_bytes());
    Ok(Plan { batch: Some(batch), done: Compacted { events, up_to: last } })
}

/// Busy times fill their blocks themselves; rewriting those would only wear the disk.
fn worthwhile(run: &[Block]) -> bool {
    let bytes: usize = run.iter().map(|block| block.bytes.len()).sum();
    4 * bytes.div_ceil(BLOCK_BYTES) < 3 * run.len()
}

fn merge(run: &[Block], batch: &mut sled::Batch) -> Result<u64, LogError> {
    for block in run {
        // Removed first: the builder overwrites the keys that stay in use.
        batch.remove(&keys::event(block.first, 0)[..]);
    }
    let mut builder = BlockBuilder::default();
    let mut events = 0;
    for record in run.iter().flat_map(Block::records) {
        builder.push(record?, batch);
        events += 1;
    }
    builder.finish(batch);
    Ok(events)
}

/// Whole blocks from `from` on: at least one full block's worth, at most about `max_events` events.
/// A record in pieces ends the run before it, and a run of its own steps over it.
fn collect(tree: &sled::Tree, from: u64, tip: u64, max_events: u64) -> Result<Vec<Block>, LogError> {
    let mut blocks = Blocks::new(tree, from, tip)?;
    let mut run = Vec::new();
    let mut bytes = 0;
    let mut full = false;
    while let Some(block) = blocks.next_block()? {
        let Some(last) = last_position(&block) else { break };
        if block.pieces > 1 {
            full = true;
            if run.is_empty() {
                run.push(block);
            }
            break;
        }
        blocks.advance(last);
        bytes += block.bytes.len();
        run.push(block);
        full = bytes >= BLOCK_BYTES;
        if full && last - from + 1 >= max_events {
            break;
        }
    }
    if full { Ok(run) } else { Ok(Vec::new()) }
}

fn last_position(block: &Block) -> Option<u64> {
    let records = block.records().count() as u64;
    (records > 0).then(|| block.first + records - 1)
}
