//! A small file beside the database that remembers the last acknowledged position.
//!
//! sled recovers up to the first damaged segment and forgets the rest without a word, and a hash
//! chain that lost its end is still a sound chain. The witness turns that silence into an error. It
//! is written after each commit without a sync of its own (a microsecond): it may fall behind in a
//! power cut, and then vouches for less, but it never claims more than was on disk.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::LogError;
use super::keys::{u32_at, u64_at};
use super::record::ChainHash;

const FILE: &str = "acknowledged";
const SLOT_BYTES: usize = 28;
/// Two slots written in turn: a torn write spoils one of them only.
const SLOTS: u64 = 2;

#[derive(Debug)]
pub(super) struct Witness {
    file: File,
    writes: u64,
}

impl Witness {
    /// Opens the file and returns what it vouches for, if anything.
    pub(super) fn open(dir: &Path) -> Result<(Self, Option<(u64, ChainHash)>), LogError> {
        let path = dir.join(FILE);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(LogError::io("opening", &path))?;
        let slots = (0..SLOTS).filter_map(|slot| {
            let mut bytes = [0; SLOT_BYTES];
            file.read_exact_at(&mut bytes, slot * SLOT_BYTES as u64).ok()?;
            decode(&bytes)
        });
        let known = slots.max_by_key(|(position, _)| *position);
        Ok((Self { file, writes: 0 }, known))
    }

    /// Notes an acknowledged position. Losing this note loses no event, so a failure is only logged.
    pub(super) fn note(&mut self, position: u64, hash: ChainHash) {
        self.writes += 1;
        let slot = (self.writes % SLOTS) * SLOT_BYTES as u64;
        if let Err(error) = self.file.write_all_at(&encode(position, hash), slot) {
            tracing::warn!(%error, position, "cannot note the acknowledged position beside the log");
        }
    }
}

impl Witness {
    /// Forgets what it vouched for: an operator accepted the loss.
    pub(super) fn reset(&mut self, position: u64, hash: ChainHash) {
        for _ in 0..SLOTS {
            self.note(position, hash);
        }
    }
}

fn encode(position: u64, hash: ChainHash) -> [u8; SLOT_BYTES] {
    let mut bytes = [0; SLOT_BYTES];
    bytes[4..12].copy_from_slice(&position.to_be_bytes());
    bytes[12..].copy_from_slice(hash.as_bytes());
    let crc = crc32c::crc32c(&bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_be_bytes());
    bytes
}

fn decode(bytes: &[u8; SLOT_BYTES]) -> Option<(u64, ChainHash)> {
    (u32_at(bytes, 0)? == crc32c::crc32c(&bytes[4..])).then_some(())?;
    let mut hash = [0; 16];
    hash.copy_from_slice(&bytes[12..]);
    Some((u64_at(bytes, 4)?, ChainHash::from_bytes(hash)))
}
