//! Reading: by position, by stream, from the end. Never beyond what is durable.

use std::ops::ControlFlow;

use uuid::Uuid;

use super::block::{Block, Blocks};
use super::error::{Damage, LogError};
use super::index::Head;
use super::options::MAX_READ_EVENTS;
use super::record::{RecordRef, Recorded};
use super::verify::BadEvent;

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

/// Events in order, past those that are damaged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scanned {
    /// The sound ones.
    pub records: Vec<Recorded>,
    /// Those that cannot be read.
    pub damaged: Vec<BadEvent>,
    /// Where to read on.
    pub next: u64,
}

impl Scanned {
    fn count(&self) -> usize {
        self.records.len() + self.damaged.len()
    }
}

/// As [`scan`], but what is damaged is named and passed by.
pub(super) fn scan_past(tree: &sled::Tree, from: u64, end: u64, max_events: usize) -> Result<Scanned, LogError> {
    let max_events = max_events.min(MAX_READ_EVENTS);
    let mut scanned = Scanned { next: from.max(1), ..Scanned::default() };
    while scanned.next <= end && scanned.count() < max_events {
        let walked = walk(tree, scanned.next, end, |record, block| {
            scanned.next = record.position + 1;
            scanned.records.push(record.to_owned(&block.bytes));
            if scanned.count() < max_events { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        match walked {
            Ok(()) => break,
            Err(error) if error.is_damage() => step_past(tree, end, max_events, &mut scanned)?,
            Err(error) => return Err(error),
        }
    }
    Ok(scanned)
}

/// Reads one by one, until a block begins that was not looked into yet: within a damaged one, a walk stops at the
/// first bad record.
fn step_past(tree: &sled::Tree, end: u64, max_events: usize, scanned: &mut Scanned) -> Result<(), LogError> {
    loop {
        let position = scanned.next;
        match one(tree, position) {
            Ok(record) => scanned.records.push(record),
            Err(LogError::Corrupt { stream, what, .. }) => scanned.damaged.push(BadEvent { position, stream, what }),
            Err(LogError::Storage { cause, .. }) => {
                scanned.damaged.push(BadEvent { position, stream: None, what: Damage::Storage(cause) });
            }
            Err(error) => return Err(error),
        }
        scanned.next += 1;
        let begins = matches!(Block::at(tree, scanned.next), Ok(Some(block)) if block.first == scanned.next);
        if begins || scanned.next > end || scanned.count() >= max_events {
            return Ok(());
        }
    }
}

fn one(tree: &sled::Tree, position: u64) -> Result<Recorded, LogError> {
    let missing = LogError::Corrupt { position, stream: None, what: Damage::Missing };
    let block = Block::at(tree, position)?.ok_or_else(|| missing.clone())?;
    let record = block.find(position)?.ok_or(missing)?;
    Ok(record.to_owned(&block.bytes))
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

/// The stream's records after a version, in order.
pub(super) fn stream(tree: &sled::Tree, stream: Uuid, after: u64, end: u64) -> Result<Vec<Recorded>, LogError> {
    let mut found = Vec::new();
    back(tree, stream, after, end, &mut found)?;
    found.reverse();
    Ok(found)
}

/// The stream's last records, in order: those behind the last one that is damaged.
pub(super) fn tail(tree: &sled::Tree, stream: Uuid, end: u64) -> Result<Vec<Recorded>, LogError> {
    let mut found = Vec::new();
    match back(tree, stream, 0, end, &mut found) {
        Err(error) if !error.is_damage() => return Err(error),
        _ => found.reverse(),
    }
    Ok(found)
}

/// Follows the stream's records from the last one back.
fn back(tree: &sled::Tree, stream: Uuid, after: u64, end: u64, found: &mut Vec<Recorded>) -> Result<(), LogError> {
    let Some(head) = Head::read(tree, stream)? else { return Ok(()) };
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
    Ok(())
}

fn missing(position: u64, stream: Uuid) -> LogError {
    LogError::Corrupt { position, stream: Some(stream), what: Damage::Missing }
}
