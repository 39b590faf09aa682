//! Reading: by position, by stream, from the end. Never beyond what is durable.

use std::ops::ControlFlow;

use uuid::Uuid;

use super::block::{Block, Blocks};
use super::error::{Damage, LogError};
use super::index::Head;
use super::options::MAX_READ_EVENTS;
use super::record::{RecordRef, Recorded};

/// Calls `visit` with each record of `from..=end` and the block it is in, until it breaks.
pub(super) fn walk(
    tree: &sled::Tree,
    from: u64,
    end: u64,
    mut visit: impl FnMut(RecordRef<'_>, &Block) -> ControlFlow<()>,
) -> Result<(), LogError> {
    let from = from.max(1);
    let mut blocks = Blocks::new(tree, from, end)?;
    let mut next = from;
    while let Some(block) = blocks.next_block()? {
        for record in block.records() {
            let record = record?;
            if record.position < next {
                continue;
            }
            if record.position > end {
                return Ok(());
            }
            next = record.position + 1;
            if visit(record, &block).is_break() {
                return Ok(());
            }
        }
        blocks.advance(next - 1);
    }
    Ok(())
}

pub(super) fn scan(tree: &sled::Tree, from: u64, end: u64, max_events: usize) -> Result<Vec<Recorded>, LogError> {
    let max_events = max_events.min(MAX_READ_EVENTS);
    let mut found = Vec::new();
    if max_events == 0 {
        return Ok(found);
    }
    walk(tree, from, end, |record, block| {
        found.push(record.to_owned(&block.bytes));
        if found.len() < max_events { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(found)
}

/// Follows the stream's records from the last one back, then turns them around.
pub(super) fn stream(tree: &sled::Tree, stream: Uuid, after: u64, end: u64) -> Result<Vec<Recorded>, LogError> {
    let Some(head) = Head::read(tree, stream)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    let mut position = head.last_position;
    let mut block: Option<Block> = None;
    while position > 0 {
        // Neighbours are often in the same block: look there first.
        let current = match block.take() {
            Some(block) if block.find(position)?.is_some() => block,
            _ => Block::at(tree, position)?.ok_or_else(|| missing(position, stream))?,
        };
        let record = current.find(position)?.ok_or_else(|| missing(position, stream))?;
        if record.stream != stream || record.previous >= position {
            return Err(LogError::Corrupt { position, stream: Some(stream), what: Damage::Index });
        }
        if record.version <= after {
            break;
        }
        if position <= end {
            found.push(record.to_owned(&current.bytes));
        }
        position = record.previous;
        block = Some(current);
    }
    found.reverse();
    Ok(found)
}

fn missing(position: u64, stream: Uuid) -> LogError {
    LogError::Corrupt { position, stream: Some(stream), what: Damage::Missing }
}
