//! What can go wrong with the log, each with what to do about it.

use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;

use super::options::{MAX_CALL_BYTES, MAX_CALL_EVENTS, MAX_CURSOR_NAME, MAX_EVENT_BYTES};

/// Error of the event log.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// Somebody else holds the log.
    #[error("the event log {path} is in use by another process; stop it, or give this one its own directory")]
    Locked {
        /// Directory of the log.
        path: PathBuf,
    },
    /// Written by another version of Stoker.
    #[error("the event log has format {found}, this build reads {supported}; use the build that wrote it")]
    Format {
        /// Version found on disk.
        found: u32,
        /// Version this build reads and writes.
        supported: u32,
    },
    /// The stream moved on: somebody else appended first. Read it again and decide again.
    #[error("stream {stream} is at version {actual}, not {expected}; read it again and decide again")]
    WrongVersion {
        /// The stream.
        stream: Uuid,
        /// Version the caller had seen.
        expected: u64,
        /// Version it has.
        actual: u64,
    },
    /// An index change without events for a stream that has none.
    #[error("stream {stream} has no events, so it cannot be indexed; append its first event in the same call")]
    UnknownStream {
        /// The stream.
        stream: Uuid,
    },
    /// One event over [`MAX_EVENT_BYTES`].
    #[error("an event of {bytes} bytes exceeds {MAX_EVENT_BYTES}; keep the bulk in a file and its path in the event")]
    EventTooLarge {
        /// Size of the payload.
        bytes: usize,
    },
    /// One call over [`MAX_CALL_EVENTS`] or [`MAX_CALL_BYTES`].
    #[error(
        "a call of {events} events, {bytes} bytes exceeds {MAX_CALL_EVENTS} events, {MAX_CALL_BYTES} bytes; split it"
    )]
    CallTooLarge {
        /// Events in the call.
        events: usize,
        /// Sum of their payloads.
        bytes: usize,
    },
    /// A cursor's name is empty or too long, or there are too many cursors.
    #[error("cursor name {name:?} is not allowed: 1 to {MAX_CURSOR_NAME} bytes, and few of them")]
    CursorName {
        /// The name.
        name: String,
    },
    /// A write failed earlier, so what is on disk is unknown: the log only reads from then on.
    #[error("the event log is read-only since a write failed: {cause}; free or repair the disk, then restart")]
    Poisoned {
        /// The first failure.
        cause: Arc<str>,
    },
    /// The log ends before an event that was acknowledged.
    #[error(
        "the event log ends at position {found} but {acknowledged} was acknowledged: the disk lost data; \
         restore a copy, or accept the loss explicitly (accept_truncation)"
    )]
    Truncated {
        /// Highest position known to have been acknowledged.
        acknowledged: u64,
        /// Last position present.
        found: u64,
    },
    /// A record is damaged or missing.
    #[error("event {position} is damaged: {what}; run the verification, restore a copy")]
    Corrupt {
        /// Position of the event.
        position: u64,
        /// Stream, as far as it can be read.
        stream: Option<Uuid>,
        /// What is wrong.
        what: Damage,
    },
    /// sled cannot open or read its files.
    #[error("{action} failed in sled: {cause}; if the disk is sound, restore a copy of the log")]
    Storage {
        /// What was being done.
        action: &'static str,
        /// sled's message.
        cause: String,
    },
    /// The operating system refused.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The writer is gone: the log is being closed.
    #[error("the event log is closed")]
    Closed,
}

impl LogError {
    /// Is it about one event or stream, so that others can be read?
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Corrupt { .. })
    }

    pub(super) fn storage(action: &'static str) -> impl FnOnce(sled::Error) -> Self {
        move |source| Self::Storage { action, cause: source.to_string() }
    }

    pub(super) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source: Arc::new(source) }
    }
}

/// What is wrong with a damaged event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// The bytes do not match their CRC-32C: a flipped bit.
    #[error("its bytes do not match their checksum")]
    Checksum,
    /// The record is cut short.
    #[error("it is cut short")]
    Short,
    /// There is no record at this position.
    #[error("it is missing")]
    Missing,
    /// The record is sound, but not the one that belongs here: swapped, replaced or reordered.
    #[error("it does not continue the hash chain (swapped, replaced, or an earlier event was)")]
    Chain,
    /// The index of the stream does not lead to the stream's last event.
    #[error("the stream's index entry does not match its events")]
    Index,
    /// sled cannot read the page.
    #[error("the storage cannot read it ({0})")]
    Storage(String),
}
