//! One group commit in the making: calls are checked and staged one by one, each as a whole or not
//! at all, into a single atomic batch.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use uuid::Uuid;

use super::append::{Append, Appended, Expected};
use super::block::BlockBuilder;
use super::error::LogError;
use super::index::Head;
use super::keys;
use super::record::{ChainHash, RecordRef};

/// The end of the log: what the next record continues.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tip {
    pub(super) position: u64,
    pub(super) hash: ChainHash,
}

#[derive(Default)]
pub(super) struct Group {
    pub(super) tip: Tip,
    pub(super) events: usize,
    batch: sled::Batch,
    blocks: BlockBuilder,
    heads: HashMap<Uuid, Head>,
}

impl Group {
    pub(super) fn new(tip: Tip) -> Self {
        Self { tip, ..Self::default() }
    }

    /// Stages a call, or refuses it and leaves the group as it was.
    pub(super) fn stage(&mut self, tree: &sled::Tree, appends: &[Append]) -> Result<Vec<Appended>, LogError> {
        self.check(tree, appends)?;
        Ok(appends.iter().map(|append| self.apply(append)).collect())
    }

    /// Checks every append of a call before any is applied. Loads the heads that `apply` needs.
    fn check(&mut self, tree: &sled::Tree, appends: &[Append]) -> Result<(), LogError> {
        let mut earlier_in_call: HashMap<Uuid, u64> = HashMap::new();
        for append in appends {
            let stream = append.stream;
            let committed = match self.heads.entry(stream) {
                Entry::Occupied(head) => head.get().last_version,
                Entry::Vacant(place) => place.insert(Head::read(tree, stream)?.unwrap_or_default()).last_version,
            };
            let version = earlier_in_call.entry(stream).or_insert(committed);
            match append.expected {
                Expected::Version(expected) if expected != *version => {
                    return Err(LogError::WrongVersion { stream, expected, actual: *version });
                }
                Expected::Version(_) | Expected::Any => *version += append.events.len() as u64,
            }
            if *version == 0 {
                return Err(LogError::UnknownStream { stream });
            }
        }
        Ok(())
    }

    fn apply(&mut self, append: &Append) -> Appended {
        let stream = append.stream;
        let mut head = self.heads.get(&stream).copied().unwrap_or_default();
        for payload in &append.events {
            self.push(stream, &mut head, payload);
        }
        head.change_index(stream, append.index, &mut self.batch);
        self.batch.insert(&keys::head(stream)[..], &head.encode()[..]);
        self.heads.insert(stream, head);
        let Head { last_position, last_version: version, .. } = head;
        Appended { stream, last_position, version, events: append.events.len() as u64 }
    }

    fn push(&mut self, stream: Uuid, head: &mut Head, payload: &[u8]) {
        let position = self.tip.position + 1;
        let version = head.last_version + 1;
        let previous = head.last_position;
        let mut record = RecordRef { position, stream, version, previous, payload, hash: ChainHash::default() };
        record.hash = record.chained(self.tip.hash);
        self.tip = Tip { position, hash: record.hash };
        self.events += 1;
        if head.first_position == 0 {
            head.first_position = position;
        }
        (head.last_position, head.last_version) = (position, version);
        self.blocks.push(record, &mut self.batch);
    }

    /// A cursor at 0 says nothing, so nothing is kept of it.
    pub(super) fn set_cursor(&mut self, name: &str, position: u64) {
        if position == 0 {
            self.batch.remove(keys::cursor(name));
        } else {
            self.batch.insert(keys::cursor(name), &position.to_be_bytes());
        }
    }

    pub(super) fn into_batch(mut self) -> sled::Batch {
        self.blocks.finish(&mut self.batch);
        self.batch
    }
}
