//! Settings of the log and the limits that keep it bounded.

use std::sync::Arc;

use super::disk::Disk;

/// Largest payload of one event. Events describe steps; anything bigger (a console, an image) is a
/// file that an event points to.
pub const MAX_EVENT_BYTES: usize = 64 * 1024;

/// Most events in one `append` call: a call is one atomic unit, so this bounds the largest commit.
pub const MAX_CALL_EVENTS: usize = 1024;

/// Most payload bytes in one `append` call, for the same reason.
pub const MAX_CALL_BYTES: usize = 4 * 1024 * 1024;

/// Most events one `scan`, `last` or `compact` call handles, so that no caller can ask for the whole
/// log in memory or keep the writer busy for long.
pub const MAX_READ_EVENTS: usize = 16 * 1024;

/// Longest name of a cursor.
pub const MAX_CURSOR_NAME: usize = 128;

/// Most cursors waiting in memory for the next commit; there is one per consumer of the log.
pub const MAX_DIRTY_CURSORS: usize = 1024;

/// Events after which the database is opened anew, unless set otherwise.
const REOPEN_AFTER: usize = 1_000_000;

/// How to open an [`EventLog`](super::EventLog).
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// sled's page cache. Its own default (1 GiB) is the host's memory that should run VMs. A walk through
    /// a whole large log may hold some 200 MB more for a while (see `block`).
    pub cache_bytes: u64,
    /// A group commit stops collecting once it holds this many events.
    pub max_batch: usize,
    /// Calls that may wait for the writer; the next one awaits its turn (back-pressure).
    pub queue_calls: usize,
    /// The database is opened anew after so many events, so that a start has no more than those to go through; what is
    /// asked for meanwhile waits for some tenths of a second.
    pub reopen_after: usize,
    /// Open a log that lost acknowledged events anyway. For an operator who read what
    /// [`LogError::Truncated`](super::LogError::Truncated) says and has no better copy.
    pub accept_truncation: bool,
    /// What a commit waits for. Anything but the default exists so that tests can fail.
    #[doc(hidden)]
    pub sync: SyncMode,
    /// Write in a task of the runtime instead of a thread, and ask this before each commit (simulation).
    #[doc(hidden)]
    pub disk: Option<Arc<dyn Disk>>,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 64 * 1024 * 1024,
            max_batch: 512,
            queue_calls: 1024,
            reopen_after: REOPEN_AFTER,
            accept_truncation: false,
            sync: SyncMode::Data,
            disk: None,
        }
    }
}

/// What a commit waits for before it is acknowledged.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncMode {
    /// sled's flush, then `fdatasync`: survives a power cut.
    Data,
    /// sled's flush only: shows that the power-cut test finds the loss.
    FlushOnly,
    /// As `Data`, but every commit after the first `n` fails: shows that the log goes read-only.
    FailAfter(u64),
}
