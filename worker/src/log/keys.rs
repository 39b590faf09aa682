//! Key layout. One sled tree holds everything, so one batch is one atomic commit without a
//! multi-tree transaction (a third of the cost of a write). The first byte is the key space.

use uuid::Uuid;

/// Blocks of records: `e` position of the first record, number of the piece.
pub(super) const EVENTS: u8 = b'e';
/// Stream heads: `h` stream.
pub(super) const HEADS: u8 = b'h';
/// Open streams: `o` tag, sort, stream.
pub(super) const OPEN: u8 = b'o';
/// Cursors: `c` name.
pub(super) const CURSORS: u8 = b'c';
/// Format version.
pub(super) const FORMAT: &[u8] = b"mformat";
/// Position up to which blocks are packed.
pub(super) const PACKED: &[u8] = b"mpacked";

const EVENT_LEN: usize = 10;
const OPEN_LEN: usize = 26;

pub(super) fn event(first_position: u64, piece: u8) -> [u8; EVENT_LEN] {
    let mut key = [0; EVENT_LEN];
    key[0] = EVENTS;
    key[1..9].copy_from_slice(&first_position.to_be_bytes());
    key[9] = piece;
    key
}

/// First position and piece of a block's key.
pub(super) fn parse_event(key: &[u8]) -> Option<(u64, u8)> {
    let key: &[u8; EVENT_LEN] = key.try_into().ok()?;
    Some((u64_at(key, 1)?, key[9]))
}

pub(super) fn head(stream: Uuid) -> [u8; 17] {
    let mut key = [0; 17];
    key[0] = HEADS;
    key[1..].copy_from_slice(stream.as_bytes());
    key
}

pub(super) fn parse_head(key: &[u8]) -> Option<Uuid> {
    Uuid::from_slice(key.get(1..)?).ok()
}

pub(super) fn open(tag: u8, sort: u64, stream: Uuid) -> [u8; OPEN_LEN] {
    let mut key = [0; OPEN_LEN];
    key[0] = OPEN;
    key[1] = tag;
    key[2..10].copy_from_slice(&sort.to_be_bytes());
    key[10..].copy_from_slice(stream.as_bytes());
    key
}

pub(super) fn parse_open(key: &[u8]) -> Option<(u8, u64, Uuid)> {
    let key: &[u8; OPEN_LEN] = key.try_into().ok()?;
    Some((key[1], u64_at(key, 2)?, Uuid::from_slice(&key[10..]).ok()?))
}

pub(super) fn cursor(name: &str) -> Vec<u8> {
    [&[CURSORS], name.as_bytes()].concat()
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
