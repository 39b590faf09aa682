//! Proving that the log is what was written: every record's checksum, the hash chain across all of
//! them, and the index of streams against the records.

use std::ops::ControlFlow;
use std::sync::Arc;

use uuid::Uuid;

use super::block::Block;
use super::error::{Damage, LogError};
use super::index::{Head, OpenStreams};
use super::keys;
use super::read::walk;
use super::record::{ChainHash, RecordRef};

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyReport {
    /// Events found sound, up to the first bad one.
    pub events: u64,
    /// The first event that is damaged, missing or out of place.
    pub first_bad: Option<BadEvent>,
    /// Hash of the last sound event. Equal hashes mean equal histories, so it can be compared with a
    /// copy or written down elsewhere.
    pub head_hash: ChainHash,
}

/// An event that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadEvent {
    /// Its position; 0 if only the index is damaged.
    pub position: u64,
    /// Its stream, as far as it can be read.
    pub stream: Option<Uuid>,
    /// What is wrong.
    pub what: Damage,
}

/// Checks the records `from..=end` against their checksums and the chain.
pub(super) fn chain(tree: &sled::Tree, from: u64, end: u64) -> Result<VerifyReport, LogError> {
    let from = from.max(1);
    let mut report = VerifyReport { events: 0, first_bad: None, head_hash: ChainHash::default() };
    let outcome = anchor(tree, from).and_then(|anchor| {
        report.head_hash = anchor;
        walk(tree, from, end, |record, _| check(record, &mut report))
    });
    note(&mut report, outcome)?;
    Ok(report)
}

fn check(record: RecordRef<'_>, report: &mut VerifyReport) -> ControlFlow<()> {
    if record.chained(report.head_hash) != record.hash {
        let RecordRef { position, stream, .. } = record;
        report.first_bad = Some(BadEvent { position, stream: Some(stream), what: Damage::Chain });
        return ControlFlow::Break(());
    }
    report.events += 1;
    report.head_hash = record.hash;
    ControlFlow::Continue(())
}

/// Hash that the record at `from` continues. A range cannot tell whether its anchor is right; only a
/// verification from the beginning can.
fn anchor(tree: &sled::Tree, from: u64) -> Result<ChainHash, LogError> {
    if from == 1 {
        return Ok(ChainHash::default());
    }
    let missing = LogError::Corrupt { position: from - 1, stream: None, what: Damage::Missing };
    let block = Block::at(tree, from - 1)?.ok_or_else(|| missing.clone())?;
    let hash = block.find(from - 1)?.map(|record| record.hash);
    hash.ok_or(missing)
}

/// Turns damage into a finding; anything else stays an error.
fn note(report: &mut VerifyReport, outcome: Result<(), LogError>) -> Result<(), LogError> {
    match outcome {
        Err(LogError::Corrupt { position, stream, what }) => {
            report.first_bad = Some(BadEvent { position, stream, what });
            Ok(())
        }
        other => other,
    }
}

/// The chain from the beginning, then the index of streams against it.
pub(super) fn everything(tree: &sled::Tree, end: u64) -> Result<VerifyReport, LogError> {
    let mut report = chain(tree, 1, end)?;
    if report.first_bad.is_none() {
        note(&mut report, heads(tree, end).and_then(|()| open_index(tree)))?;
    }
    Ok(report)
}

/// Every head must lead to its stream's last record. Together the heads must account for every event,
/// so a missing head is noticed as well.
fn heads(tree: &sled::Tree, end: u64) -> Result<(), LogError> {
    let mut accounted = 0;
    let mut behind = true;
    for entry in tree.scan_prefix([keys::HEADS]) {
        let (key, value) = entry.map_err(LogError::storage("reading the streams' heads"))?;
        let damaged = |stream| LogError::Corrupt { position: 0, stream, what: Damage::Index };
        let stream = keys::parse_head(&key).ok_or_else(|| damaged(None))?;
        let head = Head::parse(stream, &value)?;
        accounted += head.last_version;
        if head.last_position > end {
            // Appended to while we verify.
            behind = false;
            continue;
        }
        let block = Block::at(tree, head.last_position)?;
        let last = block.as_ref().map(|block| block.find(head.last_position)).transpose()?.flatten();
        if last.is_none_or(|last| (last.stream, last.version) != (stream, head.last_version)) {
            return Err(damaged(Some(stream)));
        }
        if let Some((tag, sort)) = head.open {
            let entry = tree.contains_key(keys::open(tag, sort, stream));
            if !entry.map_err(LogError::storage("reading the index of open streams"))? {
                return Err(damaged(Some(stream)));
            }
        }
    }
    if behind && accounted != end {
        return Err(LogError::Corrupt { position: 0, stream: None, what: Damage::Index });
    }
    Ok(())
}

/// Reading an entry checks that its stream exists.
fn open_index(tree: &sled::Tree) -> Result<(), LogError> {
    OpenStreams::new(Ok(Arc::new(tree.clone())), None).try_for_each(|entry| entry.map(drop))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::log::append::{Append, Expected};
    use crate::log::group::{Group, Tip};
    use crate::log::index::IndexChange;
    use crate::log::record::{HEADER_BYTES, decode, encoded_len};

    /// A forger who rewrites an event and its checksum still breaks the chain, at that very event.
    #[test]
    fn a_rewritten_event_with_a_good_checksum_breaks_the_chain() {
        let db = sled::Config::new().temporary(true).open().expect("sled");
        let mut group = Group::new(Tip::default());
        for n in 0..5 {
            let events = vec![Bytes::from(vec![n; 10])];
            let append =
                Append { stream: Uuid::from_u128(1), expected: Expected::Any, events, index: IndexChange::Keep };
            group.stage(&db, &[append]).expect("staged");
        }
        db.apply_batch(group.into_batch()).expect("applied");
        assert_eq!(everything(&db, 5).expect("readable").first_bad, None);

        let mut block = db.get(keys::event(1, 0)).expect("readable").expect("block").to_vec();
        let third = 2 * encoded_len(&block).expect("length");
        block[third + HEADER_BYTES] ^= 1;
        let end = third + HEADER_BYTES + 10;
        let crc = crc32c::crc32c(&block[third + 4..end]);
        block[third..third + 4].copy_from_slice(&crc.to_be_bytes());
        assert!(decode(&block[third..]).is_ok(), "the checksum alone is content");
        db.insert(keys::event(1, 0), block).expect("written");

        let report = everything(&db, 5).expect("readable");
        let bad = BadEvent { position: 3, stream: Some(Uuid::from_u128(1)), what: Damage::Chain };
        assert_eq!((report.events, report.first_bad), (2, Some(bad)));
    }
}
