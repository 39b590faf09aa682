//! Reading a VM's console, wherever its bytes are kept.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use stoker_schemas::VmId;
use stoker_worker::dirs::Dirs;

/// A piece of a console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleChunk {
    /// Position of the first byte.
    pub from: u64,
    /// The bytes; empty when there is nothing (yet) after `from`.
    pub bytes: Bytes,
    /// Where to read on.
    pub next: u64,
}

/// Where consoles are kept.
#[async_trait]
pub trait ConsoleSource: Send + Sync + 'static {
    /// At most `max` bytes of a VM's console, from a position on; `None` when none is kept here.
    async fn read(&self, vm: VmId, from: u64, max: usize) -> Option<ConsoleChunk>;
}

/// Keeps nothing: for a front without workers in its process.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoConsoles;

#[async_trait]
impl ConsoleSource for NoConsoles {
    async fn read(&self, _: VmId, _: u64, _: usize) -> Option<ConsoleChunk> {
        None
    }
}

/// The consoles in a worker's data folder: of running VMs and those kept of attempts that are gone.
#[derive(Debug, Clone)]
pub struct FolderConsoles(pub Dirs);

#[async_trait]
impl ConsoleSource for FolderConsoles {
    async fn read(&self, vm: VmId, from: u64, max: usize) -> Option<ConsoleChunk> {
        let path = self.0.console(vm);
        // A file's bytes may come from the disk: not on a thread that serves requests.
        tokio::task::spawn_blocking(move || read_at(&path, from, max)).await.ok()?.ok()
    }
}

fn read_at(path: &Path, from: u64, max: usize) -> std::io::Result<ConsoleChunk> {
    let mut file = File::open(path)?;
    // A position beyond the end is not an error: there may be more later.
    let from = from.min(file.metadata()?.len());
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    let read = file.take(u64::try_from(max).unwrap_or(u64::MAX)).read_to_end(&mut bytes)?;
    Ok(ConsoleChunk { from, bytes: bytes.into(), next: from + u64::try_from(read).unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_console_is_read_piece_by_piece_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let consoles = FolderConsoles(Dirs::open(dir.path()).unwrap());
        let vm: VmId = "0192aaaa-0000-7000-8000-000000000001".parse().unwrap();
        assert_eq!(consoles.read(vm, 0, 8).await, None, "no console, no answer");
        let folder = consoles.0.create_vm(vm).unwrap();
        std::fs::write(folder.join("console.log"), "0123456789").unwrap();
        let piece = consoles.read(vm, 4, 4).await.unwrap();
        assert_eq!((piece.bytes.as_ref(), piece.next), (b"4567".as_slice(), 8));
        let end = consoles.read(vm, 99, 4).await.unwrap();
        assert_eq!((end.bytes.len(), end.next), (0, 10));
    }
}
