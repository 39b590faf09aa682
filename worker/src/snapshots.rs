//! Opening a sled database whose last snapshot was not finished.
//!
//! sled writes a snapshot when it opens a database, into a file that gets its name once it is whole. One that is cut off
//! by a full disk or a kill stays, and sled 0.34 takes it for the newest snapshot and calls the database corrupt, at
//! each start for ever. It holds nothing that is not in the database.

use std::path::Path;

/// End of the name of a snapshot that is being written.
const UNFINISHED: &str = ".generating";

/// Opens the database of these settings at `dir`, without snapshots that were not finished.
///
/// # Errors
/// As sled's own.
pub fn open(config: &sled::Config, dir: &Path) -> sled::Result<sled::Db> {
    match config.open() {
        // Not before: another process may be writing one. Who is told of corruption had the lock.
        Err(sled::Error::Corruption { .. }) if remove_unfinished(dir) => config.open(),
        opened => opened,
    }
}

/// Whether there were any, and all are gone.
fn remove_unfinished(dir: &Path) -> bool {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let unfinished = |name: &str| name.starts_with("snap.") && name.ends_with(UNFINISHED);
    let mut found = entries.filter(|entry| entry.file_name().to_str().is_some_and(unfinished)).peekable();
    let any = found.peek().is_some();
    let all_gone = found.all(|entry| {
        tracing::warn!(file = %entry.path().display(), "a snapshot that was not finished is removed");
        std::fs::remove_file(entry.path()).is_ok()
    });
    any && all_gone
}
