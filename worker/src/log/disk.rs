//! A disk that can fail, for the deterministic simulation: asked before each commit what becomes of it.

use async_trait::async_trait;

/// What becomes of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is written and synced.
    Kept,
    /// Nothing is written, and the writer is told so (disk full).
    Refused,
    /// It is written, but the sync fails: nobody knows whether it is there.
    SyncFails,
}

/// Asked before each commit. It may take its time; a writer that is dropped meanwhile has written nothing.
#[async_trait]
pub trait Disk: std::fmt::Debug + Send + Sync {
    /// What becomes of the next commit.
    async fn fate(&self) -> Fate;
}
