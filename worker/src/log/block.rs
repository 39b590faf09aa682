//! Records are stored in blocks: runs of consecutive records under the position of the first.
//!
//! sled keeps about 8-16 values per page, so one value per event costs a page read for every dozen
//! events and nearly doubles the bytes on disk. A group commit therefore writes its events as few
//! blocks, and [`compact`](super::EventLog::compact) merges the small blocks of quiet times.
//!
//! Pages must stay small for two reasons. sled moves a page above 128 KiB out of its log into a blob
//! file, which our `fdatasync` would not cover. And its cache notices an access only after 64 of them on
//! the same of its 256 shards, so up to 16,384 pages stay in memory whatever the cache's limit says.
//! [`BLOCK_BYTES`] bounds the page; a larger record is cut into pieces, each under its own key.

use bytes::Bytes;
use sled::IVec;

use super::error::{Damage, LogError};
use super::keys;
use super::record::{RecordRef, decode, encoded_len, peek_position, peek_stream};

/// Twenty values (sixteen, and four more while sled merges two pages) stay far below sled's blob limit.
/// With 6 KiB a replay was no more than twice as fast and held 100 MB more.
pub(super) const BLOCK_BYTES: usize = 2 * 1024;

/// Collects records into blocks and puts them into a batch.
#[derive(Debug, Default)]
pub(super) struct BlockBuilder {
    first: u64,
    bytes: Vec<u8>,
}

impl BlockBuilder {
    pub(super) fn push(&mut self, record: RecordRef<'_>, batch: &mut sled::Batch) {
        let before = self.bytes.len();
        if before == 0 {
            self.first = record.position;
        }
        record.encode(&mut self.bytes);
        if before > 0 && self.bytes.len() > BLOCK_BYTES {
            let overflow = self.bytes.split_off(before);
            self.finish(batch);
            self.first = record.position;
            self.bytes = overflow;
        }
    }

    /// Writes what is left, so that the batch is complete.
    pub(super) fn finish(&mut self, batch: &mut sled::Batch) {
        // A piece number fits u8: MAX_EVENT_BYTES is 33 pieces.
        for (piece, chunk) in (0u8..).zip(self.bytes.chunks(BLOCK_BYTES)) {
            batch.insert(&keys::event(self.first, piece)[..], chunk);
        }
        self.bytes.clear();
    }
}

/// A block in memory, its records not yet checked.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) first: u64,
    pub(super) bytes: Bytes,
    /// More than one piece, so exactly one record.
    pub(super) pieces: usize,
}

impl Block {
    /// The block whose first piece is `value`, with its further pieces if it has any.
    pub(super) fn load(tree: &sled::Tree, first: u64, value: IVec) -> Result<Self, LogError> {
        let expected = encoded_len(&value).unwrap_or(0);
        if value.len() < BLOCK_BYTES || expected <= value.len() {
            return Ok(Self { first, bytes: Bytes::from_owner(value), pieces: 1 });
        }
        let mut bytes = value.to_vec();
        let mut pieces = 1;
        for piece in 1u8.. {
            if bytes.len() >= expected {
                break;
            }
            let Some(more) = tree.get(keys::event(first, piece)).map_err(LogError::storage("reading an event"))? else {
                break;
            };
            bytes.extend_from_slice(&more);
            pieces += 1;
        }
        Ok(Self { first, bytes: bytes.into(), pieces })
    }

    /// The block that holds `position`, or would.
    pub(super) fn at(tree: &sled::Tree, position: u64) -> Result<Option<Self>, LogError> {
        let range = keys::event(0, 0)..=keys::event(position, 0);
        let Some(entry) = tree.range(range).next_back() else { return Ok(None) };
        let (key, value) = entry.map_err(LogError::storage("finding an event"))?;
        match keys::parse_event(&key) {
            Some((first, 0)) => Self::load(tree, first, value).map(Some),
            // The last piece of a large record before `position`: nothing starts at or after it.
            _ => Ok(None),
        }
    }

    /// The block at the end of the log.
    pub(super) fn last(tree: &sled::Tree) -> Result<Option<Self>, LogError> {
        let Some(entry) = tree.scan_prefix([keys::EVENTS]).next_back() else { return Ok(None) };
        let (key, _) = entry.map_err(LogError::storage("finding the last event"))?;
        let first = keys::parse_event(&key).map_or(0, |(first, _)| first);
        let value = tree.get(keys::event(first, 0)).map_err(LogError::storage("reading the last event"))?;
        let missing = LogError::Corrupt { position: first, stream: None, what: Damage::Missing };
        Self::load(tree, first, value.ok_or(missing)?).map(Some)
    }

    pub(super) fn records(&self) -> Records<'_> {
        Records { rest: &self.bytes, next: self.first }
    }

    /// The record at `position`, its checksum verified; `None` if the block does not hold it.
    pub(super) fn find(&self, position: u64) -> Result<Option<RecordRef<'_>>, LogError> {
        let mut rest: &[u8] = &self.bytes;
        while !rest.is_empty() {
            if peek_position(rest) == Some(position) {
                return decode(rest).map(|(record, _)| Some(record)).map_err(|what| corrupt(position, rest, what));
            }
            let len = encoded_len(rest).map_err(|what| corrupt(position, rest, what))?;
            rest = rest.get(len..).unwrap_or_default();
        }
        Ok(None)
    }

    /// The record at its end. Those before are not verified: one of them may be damaged, and the log goes on all the same.
    pub(super) fn end(&self) -> Result<RecordRef<'_>, LogError> {
        let mut rest: &[u8] = &self.bytes;
        loop {
            let len = encoded_len(rest).map_err(|what| corrupt(self.first, rest, what))?;
            match rest.get(len..) {
                Some(more) if !more.is_empty() => rest = more,
                _ => return decode(rest).map(|(record, _)| record).map_err(|what| corrupt(self.first, rest, what)),
            }
        }
    }
}

/// Records of one block in order, each verified against its checksum and its place.
pub(super) struct Records<'a> {
    rest: &'a [u8],
    next: u64,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<RecordRef<'a>, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.rest);
        Some(match decode(bytes) {
            Ok((record, used)) if record.position == self.next => {
                self.rest = &bytes[used..];
                self.next += 1;
                Ok(record)
            }
            Ok((record, _)) => {
                Err(LogError::Corrupt { position: self.next, stream: Some(record.stream), what: Damage::Chain })
            }
            Err(what) => Err(corrupt(self.next, bytes, what)),
        })
    }
}

fn corrupt(position: u64, bytes: &[u8], what: Damage) -> LogError {
    LogError::Corrupt { position, stream: peek_stream(bytes), what }
}

/// Walks the blocks from a position on, with no gap between them.
pub(super) struct Blocks<'a> {
    tree: &'a sled::Tree,
    entries: sled::Iter,
    next: u64,
    end: u64,
}

impl<'a> Blocks<'a> {
    /// Blocks that hold `from..=end`; the first may begin before `from`.
    pub(super) fn new(tree: &'a sled::Tree, from: u64, end: u64) -> Result<Self, LogError> {
        let from = from.max(1);
        let start = Block::at(tree, from)?.map_or(from, |block| block.first);
        Ok(Self { tree, entries: tree.range(keys::event(start, 0)..=keys::event(end, u8::MAX)), next: from, end })
    }

    /// The next block. The caller says through `advance` how far it got.
    pub(super) fn next_block(&mut self) -> Result<Option<Block>, LogError> {
        while self.next <= self.end {
            let Some(entry) = self.entries.next() else {
                return self.seek().map(Some);
            };
            let (key, value) = entry.map_err(|error| self.unreadable(&error))?;
            match keys::parse_event(&key) {
                Some((first, 0)) if first <= self.next => return Block::load(self.tree, first, value).map(Some),
                Some((_, 0)) => return self.seek().map(Some),
                _ => {}
            }
        }
        Ok(None)
    }

    pub(super) fn advance(&mut self, last_seen: u64) {
        self.next = last_seen + 1;
    }

    /// A compaction may have merged the expected block into an earlier one while we walked: look once
    /// more from where we are. Positions are dense, so what is then not found is missing.
    fn seek(&mut self) -> Result<Block, LogError> {
        let missing = LogError::Corrupt { position: self.next, stream: None, what: Damage::Missing };
        let block = Block::at(self.tree, self.next)?.ok_or_else(|| missing.clone())?;
        if block.find(self.next)?.is_none() {
            return Err(missing);
        }
        self.entries = self.tree.range(keys::event(block.first, 1)..=keys::event(self.end, u8::MAX));
        Ok(block)
    }

    fn unreadable(&self, error: &sled::Error) -> LogError {
        LogError::Corrupt { position: self.next, stream: None, what: Damage::Storage(error.to_string()) }
    }
}
