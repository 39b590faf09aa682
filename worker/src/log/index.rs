//! Heads of streams, and the index of those that are open.
//!
//! Start-up reads the open streams only: a million finished jobs cost nothing, and a long queue of
//! waiting ones stays on disk, in order, until somebody asks for the next few.

use std::sync::Arc;

use uuid::Uuid;

use super::error::{Damage, LogError};
use super::keys::{self, u32_at, u64_at};

/// What an append does to its stream's entry in the index of open streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IndexChange {
    /// Leave it as it is.
    #[default]
    Keep,
    /// The stream is open, in group `tag`, at place `sort`.
    Set(u8, u64),
    /// The stream is closed.
    Remove,
}

/// One entry of the index of open streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenStream {
    /// The stream.
    pub stream: Uuid,
    /// Its group.
    pub tag: u8,
    /// Its place in the group.
    pub sort: u64,
    /// Position of its first event.
    pub first_position: u64,
    /// Version of its last event.
    pub last_version: u64,
}

/// Where a stream begins and ends, and where it stands in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Head {
    pub(super) first_position: u64,
    pub(super) last_position: u64,
    pub(super) last_version: u64,
    pub(super) open: Option<(u8, u64)>,
}

const HEAD_BYTES: usize = 38;

impl Head {
    pub(super) fn encode(&self) -> [u8; HEAD_BYTES] {
        let (tag, sort) = self.open.unwrap_or_default();
        let mut bytes = [0; HEAD_BYTES];
        bytes[4..12].copy_from_slice(&self.first_position.to_be_bytes());
        bytes[12..20].copy_from_slice(&self.last_position.to_be_bytes());
        bytes[20..28].copy_from_slice(&self.last_version.to_be_bytes());
        bytes[28] = u8::from(self.open.is_some());
        bytes[29] = tag;
        bytes[30..].copy_from_slice(&sort.to_be_bytes());
        let crc = crc32c::crc32c(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEAD_BYTES] = bytes.try_into().ok()?;
        (u32_at(bytes, 0)? == crc32c::crc32c(&bytes[4..])).then_some(())?;
        Some(Self {
            first_position: u64_at(bytes, 4)?,
            last_position: u64_at(bytes, 12)?,
            last_version: u64_at(bytes, 20)?,
            open: (bytes[28] == 1).then_some((bytes[29], u64_at(bytes, 30)?)),
        })
    }

    pub(super) fn parse(stream: Uuid, bytes: &[u8]) -> Result<Self, LogError> {
        Self::decode(bytes).ok_or(LogError::Corrupt { position: 0, stream: Some(stream), what: Damage::Index })
    }

    pub(super) fn read(tree: &sled::Tree, stream: Uuid) -> Result<Option<Self>, LogError> {
        let bytes = tree.get(keys::head(stream)).map_err(LogError::storage("reading a stream's head"))?;
        bytes.map(|bytes| Self::parse(stream, &bytes)).transpose()
    }

    /// Moves the stream in the index.
    pub(super) fn change_index(&mut self, stream: Uuid, change: IndexChange, batch: &mut sled::Batch) {
        let target = match change {
            IndexChange::Keep => return,
            IndexChange::Set(tag, sort) => Some((tag, sort)),
            IndexChange::Remove => None,
        };
        if target == self.open {
            return;
        }
        if let Some((tag, sort)) = self.open {
            batch.remove(&keys::open(tag, sort, stream)[..]);
        }
        if let Some((tag, sort)) = target {
            batch.insert(&keys::open(tag, sort, stream)[..], &[]);
        }
        self.open = target;
    }
}

/// Open streams in order of (tag, sort), read as the iterator advances.
///
/// Not a snapshot: a stream that moves in the index while the iteration runs may be seen at its new
/// place or not at all. At start-up nothing moves.
pub struct OpenStreams {
    /// As long as it is held, the database is not opened anew.
    tree: Result<Arc<sled::Tree>, Option<LogError>>,
    entries: Option<sled::Iter>,
}

impl OpenStreams {
    pub(super) fn new(tree: Result<Arc<sled::Tree>, LogError>, tag: Option<u8>) -> Self {
        let entries = tree.as_ref().ok().map(|tree| match tag {
            Some(tag) => tree.scan_prefix([keys::OPEN, tag]),
            None => tree.scan_prefix([keys::OPEN]),
        });
        Self { tree: tree.map_err(Some), entries }
    }

    fn entry(&self, key: &[u8]) -> Result<Option<OpenStream>, LogError> {
        let Ok(tree) = &self.tree else { return Ok(None) };
        let damaged = |stream| LogError::Corrupt { position: 0, stream, what: Damage::Index };
        let (tag, sort, stream) = keys::parse_open(key).ok_or_else(|| damaged(None))?;
        let head = Head::read(tree, stream)?.ok_or_else(|| damaged(Some(stream)))?;
        let Head { first_position, last_version, open, .. } = head;
        Ok((open == Some((tag, sort))).then_some(OpenStream { stream, tag, sort, first_position, last_version }))
    }
}

impl Iterator for OpenStreams {
    type Item = Result<OpenStream, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Err(error) = &mut self.tree {
                return error.take().map(Err);
            }
            let key = self.entries.as_mut()?.next()?.map_err(LogError::storage("reading the index of open streams"));
            match key.and_then(|(key, _)| self.entry(&key)) {
                Ok(Some(open)) => return Some(Ok(open)),
                Ok(None) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl std::fmt::Debug for OpenStreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenStreams").finish_non_exhaustive()
    }
}
