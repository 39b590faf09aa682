//! Bytes of one record: a fixed header and the payload.
//!
//! ```text
//! crc32c 4 | payload length 4 | position 8 | stream 16 | version 8 | previous position 8 | hash 16 | payload
//! ```
//! The CRC covers everything after it and finds a flipped bit on every read. The hash chains each
//! record to the one before it, so a record that is sound by itself but in the wrong place (swapped,
//! replaced, restored from elsewhere) is found by the verification. `previous position` leads to the
//! same stream's preceding record, so reading a stream needs no index entry per event.

use bytes::Bytes;
use uuid::Uuid;

use super::error::Damage;
use super::keys::{u32_at, u64_at};

pub(super) const HEADER_BYTES: usize = 64;
const LENGTH_AT: usize = 4;
const POSITION_AT: usize = 8;
const STREAM_AT: usize = 16;
const VERSION_AT: usize = 32;
const PREVIOUS_AT: usize = 40;
const HASH_AT: usize = 48;

/// Hash of a record and, through the chain, of everything before it (BLAKE3, first 16 bytes).
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct ChainHash([u8; 16]);

impl ChainHash {
    pub(super) fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The raw bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl std::fmt::Display for ChainHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for ChainHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// An event as it was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Place in the log, dense from 1.
    pub position: u64,
    /// Stream it belongs to.
    pub stream: Uuid,
    /// Place in the stream, dense from 1.
    pub version: u64,
    /// The bytes that were appended. They share the block they were read from (a few KiB): copy
    /// them to keep one for long.
    pub payload: Bytes,
}

/// An event inside its block: nothing is copied, for replaying many.
#[derive(Debug, Clone, Copy)]
pub struct RecordRef<'a> {
    /// Place in the log, dense from 1.
    pub position: u64,
    /// Stream it belongs to.
    pub stream: Uuid,
    /// Place in the stream, dense from 1.
    pub version: u64,
    /// The bytes that were appended.
    pub payload: &'a [u8],
    pub(super) previous: u64,
    pub(super) hash: ChainHash,
}

impl RecordRef<'_> {
    pub(super) fn to_owned(self, block: &Bytes) -> Recorded {
        let Self { position, stream, version, payload, .. } = self;
        Recorded { position, stream, version, payload: block.slice_ref(payload) }
    }

    /// The hash this record must carry after a record with hash `before`.
    pub(super) fn chained(&self, before: ChainHash) -> ChainHash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&before.0);
        hasher.update(&self.position.to_be_bytes());
        hasher.update(self.stream.as_bytes());
        hasher.update(&self.version.to_be_bytes());
        hasher.update(&self.previous.to_be_bytes());
        hasher.update(self.payload);
        let mut hash = [0; 16];
        hash.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        ChainHash(hash)
    }

    /// Appends the record's bytes to `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        // The length fits: the payload is limited to MAX_EVENT_BYTES before it gets here.
        out.extend_from_slice(&(self.payload.len() as u32).to_be_bytes());
        out.extend_from_slice(&self.position.to_be_bytes());
        out.extend_from_slice(self.stream.as_bytes());
        out.extend_from_slice(&self.version.to_be_bytes());
        out.extend_from_slice(&self.previous.to_be_bytes());
        out.extend_from_slice(&self.hash.0);
        out.extend_from_slice(self.payload);
        let crc = crc32c::crc32c(&out[start + LENGTH_AT..]);
        out[start..start + LENGTH_AT].copy_from_slice(&crc.to_be_bytes());
    }
}

/// Length in bytes of the record that starts `bytes`, by its header.
pub(super) fn encoded_len(bytes: &[u8]) -> Result<usize, Damage> {
    let payload = u32_at(bytes, LENGTH_AT).ok_or(Damage::Short)?;
    Ok(HEADER_BYTES + payload as usize)
}

/// Position of the record that starts `bytes`, unchecked: to skip records cheaply.
pub(super) fn peek_position(bytes: &[u8]) -> Option<u64> {
    u64_at(bytes, POSITION_AT)
}

/// The record that starts `bytes`, with its checksum verified, and the bytes it takes.
pub(crate) fn decode(bytes: &[u8]) -> Result<(RecordRef<'_>, usize), Damage> {
    let len = encoded_len(bytes)?;
    let record = bytes.get(..len).ok_or(Damage::Short)?;
    if u32_at(record, 0) != Some(crc32c::crc32c(&record[LENGTH_AT..])) {
        return Err(Damage::Checksum);
    }
    let mut hash = [0; 16];
    hash.copy_from_slice(&record[HASH_AT..HEADER_BYTES]);
    let fields = RecordRef {
        position: u64_at(record, POSITION_AT).ok_or(Damage::Short)?,
        stream: Uuid::from_slice(&record[STREAM_AT..VERSION_AT]).map_err(|_| Damage::Short)?,
        version: u64_at(record, VERSION_AT).ok_or(Damage::Short)?,
        previous: u64_at(record, PREVIOUS_AT).ok_or(Damage::Short)?,
        hash: ChainHash(hash),
        payload: &record[HEADER_BYTES..],
    };
    Ok((fields, len))
}

/// Stream named by damaged bytes, if there are enough of them: better than nothing in a report.
pub(super) fn peek_stream(bytes: &[u8]) -> Option<Uuid> {
    Uuid::from_slice(bytes.get(STREAM_AT..VERSION_AT)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(payload: &[u8]) -> RecordRef<'_> {
        let mut record = RecordRef {
            position: 7,
            stream: Uuid::from_u128(9),
            version: 3,
            previous: 5,
            hash: ChainHash::default(),
            payload,
        };
        record.hash = record.chained(ChainHash([1; 16]));
        record
    }

    #[test]
    fn round_trip() {
        let mut bytes = Vec::new();
        record(b"hello").encode(&mut bytes);
        record(b"").encode(&mut bytes);
        let (first, used) = decode(&bytes).expect("first");
        assert_eq!((first.position, first.version, first.payload), (7, 3, &b"hello"[..]));
        assert_eq!(first.hash, first.chained(ChainHash([1; 16])));
        let (second, rest) = decode(&bytes[used..]).expect("second");
        assert_eq!((second.payload, used + rest), (&b""[..], bytes.len()));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let mut bytes = Vec::new();
        record(b"some payload").encode(&mut bytes);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged).is_err(), "bit {bit} went unnoticed");
        }
    }
}
