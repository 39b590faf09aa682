//! The console file within bounds: its beginning and its end are kept, the middle is given back to
//! the file system.
//!
//! The VMM appends to the file; Stoker punches a hole into its middle. Nothing is copied, nothing is
//! lost between a read and a truncation, and offsets stay what they were, so readers can go on from
//! where they stopped, across worker restarts too.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

use rustix::{fs::FallocateFlags, io::Errno};

use crate::vm::files::CONSOLE;

/// Kept of the beginning, bytes: kernel and early systemd.
pub const HEAD_BYTES: u64 = 256 * 1024;
/// Kept of the end, bytes: what happened last.
pub const TAIL_BYTES: u64 = 768 * 1024;
/// The most that one [`read_range`] gives, bytes.
pub const MAX_SLICE_BYTES: usize = 1024 * 1024;
/// How far a file may grow beyond head and tail before the middle is given back.
const SLACK_BYTES: u64 = 256 * 1024;
/// Holes are made of whole blocks; all common block sizes divide this.
const BLOCK_BYTES: u64 = 64 * 1024;
/// A file this long (mostly hole) is cut back to its head before file systems' limits are near.
const MAX_LENGTH: u64 = 1 << 40;

/// The bound of one console file.
#[derive(Debug, Default)]
pub(super) struct Bound {
    punched_to: u64,
}

impl Bound {
    /// Gives back the middle of the file if it has grown beyond its bound. Returns the file's
    /// length afterwards: shorter only where holes cannot be made.
    pub(super) fn apply(&mut self, file: &File, length: u64) -> io::Result<u64> {
        let from = self.punched_to.max(HEAD_BYTES);
        if length < from + TAIL_BYTES + SLACK_BYTES {
            return Ok(length);
        }
        let to = (length - TAIL_BYTES) / BLOCK_BYTES * BLOCK_BYTES;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(file, flags, from, to - from) {
            Ok(()) if length < MAX_LENGTH => {
                self.punched_to = to;
                Ok(length)
            }
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                // The VMM's descriptor is O_APPEND, so it goes on at the new end.
                file.set_len(HEAD_BYTES)?;
                self.punched_to = 0;
                Ok(HEAD_BYTES)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Where the file has data at or after `offset`; `None` when there is only hole or end.
pub(super) fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(offset)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        // A file system without holes has data everywhere.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(offset)),
        Err(error) => Err(error.into()),
    }
}

/// A piece of a console.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConsoleSlice {
    /// Where the piece begins: at or after what was asked for.
    pub from: u64,
    /// The bytes as the guest wrote them.
    pub bytes: Vec<u8>,
    /// Where to go on reading.
    pub next: u64,
    /// Bytes between what was asked for and `from` that were not kept.
    pub left_out: u64,
}

/// Reads up to `max` bytes (at most [`MAX_SLICE_BYTES`]) of an attempt's console from an offset on.
/// Works while the VM runs and as long as the attempt's directory exists. Reads the disk: not for
/// an async task.
pub fn read_range(dir: &Path, from: u64, max: usize) -> io::Result<ConsoleSlice> {
    read_file(&mut File::open(dir.join(CONSOLE))?, from, max.min(MAX_SLICE_BYTES))
}

/// As [`read_range`], of a console that [`keep`] has copied.
pub fn read_kept(path: &Path, from: u64, max: usize) -> io::Result<ConsoleSlice> {
    read_file(&mut File::open(path)?, from, max.min(MAX_SLICE_BYTES))
}

/// The last `max` bytes (at most [`MAX_SLICE_BYTES`]) of an attempt's console: sought from the
/// file's end, whatever its length. Reads the disk, too.
pub fn read_tail(dir: &Path, max: usize) -> io::Result<ConsoleSlice> {
    tail_of(&mut File::open(dir.join(CONSOLE))?, max)
}

/// As [`read_tail`], of a console that [`keep`] has copied.
pub fn read_kept_tail(path: &Path, max: usize) -> io::Result<ConsoleSlice> {
    tail_of(&mut File::open(path)?, max)
}

/// A file is given a hole only when it is longer than head and tail together, so the last piece
/// never reaches across one: it begins behind the hole, or just after it.
fn tail_of(file: &mut File, max: usize) -> io::Result<ConsoleSlice> {
    let max = max.min(MAX_SLICE_BYTES);
    let from = file.metadata()?.len().saturating_sub(max as u64);
    read_file(file, from, max)
}

fn read_file(file: &mut File, asked: u64, max: usize) -> io::Result<ConsoleSlice> {
    let length = file.metadata()?.len();
    if asked >= length {
        return Ok(ConsoleSlice { from: asked, next: asked, ..ConsoleSlice::default() });
    }
    let from = next_data(file, asked)?.unwrap_or(length);
    let hole = match rustix::fs::seek(&*file, rustix::fs::SeekFrom::Hole(from)) {
        Ok(hole) => hole,
        Err(_) => length,
    };
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(from))?;
    file.take((max as u64).min(hole.saturating_sub(from))).read_to_end(&mut bytes)?;
    Ok(ConsoleSlice { from, next: from + bytes.len() as u64, bytes, left_out: from - asked })
}

/// Copies what there is of an attempt's console to `to`, which outlives the attempt's directory;
/// what is missing in the middle is said in a line of its own. Not for an async task either.
pub fn keep(dir: &Path, to: &Path) -> io::Result<()> {
    let mut from = File::open(dir.join(CONSOLE))?;
    let mut copy = OpenOptions::new().create(true).write(true).truncate(true).open(to)?;
    // Bounded: a guest that writes while it is copied must not keep us here.
    let length = from.metadata()?.len();
    let mut offset = 0;
    while offset < length {
        let slice = read_file(&mut from, offset, MAX_SLICE_BYTES)?;
        if slice.left_out > 0 {
            writeln!(copy, "\r\n[… {} bytes were not kept …]\r", slice.left_out)?;
        }
        if slice.bytes.is_empty() {
            break;
        }
        copy.write_all(&slice.bytes)?;
        offset = slice.next;
    }
    copy.sync_data()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn flooded(dir: &Path, bytes: usize) -> File {
        let path = dir.join(CONSOLE);
        let mut file = OpenOptions::new().create(true).append(true).read(true).open(path).unwrap();
        let mut bound = Bound::default();
        let line = b"0123456789abcde\n".repeat(64 * 1024);
        let mut written = 0;
        while written < bytes {
            file.write_all(&line).unwrap();
            written += line.len();
            bound.apply(&file, file.metadata().unwrap().len()).unwrap();
        }
        file
    }

    #[test]
    fn a_flood_keeps_head_and_tail_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = flooded(dir.path(), 20 << 20);
        let most = HEAD_BYTES + TAIL_BYTES + 2 * SLACK_BYTES + (1 << 20);
        assert!(file.metadata().unwrap().blocks() * 512 <= most, "{} blocks", file.metadata().unwrap().blocks());

        let head = read_range(dir.path(), 0, MAX_SLICE_BYTES).unwrap();
        assert!(head.bytes.starts_with(b"0123456789abcde\n"));
        assert_eq!(head.left_out, 0);
        let tail = read_range(dir.path(), head.next, MAX_SLICE_BYTES).unwrap();
        // Where holes cannot be made there is no tail beyond the head.
        if tail.left_out > 0 {
            assert!(tail.bytes.ends_with(b"abcde\n"));
            assert!(tail.bytes.iter().all(|&b| b != 0), "a hole was shown as text");
        }
    }

    #[test]
    fn the_tail_is_the_end_of_a_short_a_long_and_a_kept_console() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(CONSOLE), "short").unwrap();
        let all = read_tail(dir.path(), 100).unwrap();
        assert_eq!((all.from, all.bytes.as_slice(), all.next), (0, b"short".as_slice(), 5));
        assert_eq!(read_tail(dir.path(), 2).unwrap().bytes, b"rt");
        let none = read_tail(dir.path(), 0).unwrap();
        assert_eq!((none.from, none.bytes.len(), none.next), (5, 0, 5));

        std::fs::remove_file(dir.path().join(CONSOLE)).unwrap();
        let file = flooded(dir.path(), 20 << 20);
        let length = file.metadata().unwrap().len();
        // As much as there can be, from the middle of the hole on; and a little.
        for max in [MAX_SLICE_BYTES, 31] {
            let tail = read_tail(dir.path(), max).unwrap();
            assert_eq!(tail.next, length);
            assert!(tail.bytes.ends_with(b"0123456789abcde\n") && tail.bytes.iter().all(|&b| b != 0));
            assert!(tail.bytes.len() <= max);
        }
        let copy = dir.path().join("kept");
        keep(dir.path(), &copy).unwrap();
        assert_eq!(read_kept_tail(&copy, 16).unwrap().bytes, b"0123456789abcde\n");
    }

    #[test]
    fn a_kept_copy_says_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        drop(flooded(dir.path(), 8 << 20));
        let copy = dir.path().join("kept");
        keep(dir.path(), &copy).unwrap();
        let text = std::fs::read_to_string(copy).unwrap();
        assert!(text.len() as u64 <= HEAD_BYTES + TAIL_BYTES + 2 * SLACK_BYTES + (1 << 20));
        assert!(!text.contains('\0'));
    }

    #[test]
    fn reading_past_the_end_gives_nothing_yet() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(CONSOLE), "abc").unwrap();
        let slice = read_range(dir.path(), 3, 10).unwrap();
        assert_eq!((slice.bytes.len(), slice.next), (0, 3));
        assert_eq!(read_range(dir.path(), 1, 1).unwrap().bytes, b"b");
    }
}
