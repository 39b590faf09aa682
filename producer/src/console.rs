//! Reading a VM's console, wherever its bytes are kept.

use async_trait::async_trait;
use bytes::Bytes;
use stoker_schemas::{JobState, VmId};
use stoker_worker::console::ConsoleSlice;
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

impl From<ConsoleSlice> for ConsoleChunk {
    fn from(slice: ConsoleSlice) -> Self {
        Self { from: slice.from, bytes: Bytes::from(slice.bytes), next: slice.next }
    }
}

/// Where consoles are kept.
#[async_trait]
pub trait ConsoleSource: Send + Sync + 'static {
    /// At most `max` bytes of a VM's console, from a position on; `None` when none is kept here.
    async fn read(&self, vm: VmId, from: u64, max: usize) -> Option<ConsoleChunk>;

    /// At most the last `max` bytes of a VM's console, without reading what stands before them;
    /// `next` is then how long it is.
    async fn tail(&self, vm: VmId, max: usize) -> Option<ConsoleChunk>;
}

/// The VM of an attempt, or of the latest one that had a VM.
pub fn vm_of(state: &JobState, attempt: Option<u32>) -> Option<VmId> {
    let asked = state.attempts.iter().rev().filter(|(epoch, _)| attempt.is_none_or(|n| n == epoch.attempt));
    asked.filter_map(|(_, a)| a.started.as_ref()).map(|s| s.value.vm).next()
}

/// The end of the latest attempt's console as text, where it is kept within reach.
pub async fn last_words(consoles: &dyn ConsoleSource, state: &JobState, max: usize) -> Option<String> {
    let tail = consoles.tail(vm_of(state, None)?, max).await?;
    Some(String::from_utf8_lossy(&tail.bytes).into_owned())
}

/// Keeps nothing: for a front without workers in its process.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoConsoles;

#[async_trait]
impl ConsoleSource for NoConsoles {
    async fn read(&self, _: VmId, _: u64, _: usize) -> Option<ConsoleChunk> {
        None
    }

    async fn tail(&self, _: VmId, _: usize) -> Option<ConsoleChunk> {
        None
    }
}

/// The consoles in a worker's data folder: of running VMs and those kept of attempts that are gone.
#[derive(Debug, Clone)]
pub struct FolderConsoles(pub Dirs);

#[async_trait]
impl ConsoleSource for FolderConsoles {
    async fn read(&self, vm: VmId, from: u64, max: usize) -> Option<ConsoleChunk> {
        let dirs = self.0.clone();
        // A file's bytes may come from the disk: not on a thread that serves requests.
        let slice = tokio::task::spawn_blocking(move || dirs.read_console(vm, from, max)).await.ok()?.ok()?;
        Some(slice.into())
    }

    async fn tail(&self, vm: VmId, max: usize) -> Option<ConsoleChunk> {
        let dirs = self.0.clone();
        let slice = tokio::task::spawn_blocking(move || dirs.tail_console(vm, max)).await.ok()?.ok()?;
        Some(slice.into())
    }
}
