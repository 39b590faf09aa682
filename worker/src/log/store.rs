//! The sled database under the log: creating it so that it survives a power cut, opening it with
//! clear errors, and making a commit durable.
//!
//! sled 0.34's `flush` ends in `sync_file_range`, which leaves the growth of the file to the kernel:
//! after a power cut everything it "flushed" may be gone. So each commit is followed by an
//! `fdatasync` of sled's `db` file through a descriptor of our own, and creation syncs the `conf`
//! file and the folders. sled is unmaintained and panics on some kinds of corruption; this module is
//! where that stays.

use std::fs::{File, TryLockError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::LogError;
use super::keys;
use super::options::{LogOptions, SyncMode};
use crate::snapshots;

/// Version of the layout on disk.
const FORMAT_VERSION: u32 = 1;

/// Whoever has the log open holds a lock on it.
const OWNER: &str = "owner";

/// How long to wait for a lock that somebody is about to release.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// The same while the log is ours and only sled's own threads can hold it: on a busy machine they may take their time.
const REOPEN_PATIENCE: Duration = Duration::from_secs(30);
const LOCK_RETRY: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct Store {
    /// `None` when it could not be opened anew.
    db: Option<sled::Db>,
    data: File,
    path: PathBuf,
    cache_bytes: u64,
    sync: SyncMode,
    commits: u64,
    sync_fails: bool,
    /// Locked: sled's own lock is free for a moment while the database is opened anew.
    _owner: File,
}

impl Store {
    /// Opens the store at `dir`, creating it if there is none.
    pub(super) fn open(dir: &Path, options: &LogOptions) -> Result<Self, LogError> {
        if !dir.join("conf").exists() {
            create(dir, options)?;
        }
        let owner = own(dir)?;
        let db = open_sled(dir, options.cache_bytes, LOCK_PATIENCE)?;
        check_format(&db)?;
        let path = dir.join("db");
        let data = File::open(&path).map_err(LogError::io("opening", &path))?;
        let (db, cache_bytes) = (Some(db), options.cache_bytes);
        Ok(Self { db, data, path, cache_bytes, sync: options.sync, commits: 0, sync_fails: false, _owner: owner })
    }

    pub(super) fn tree(&self) -> Result<sled::Tree, LogError> {
        Ok((**self.db()?).clone())
    }

    fn db(&self) -> Result<&sled::Db, LogError> {
        self.db.as_ref().ok_or(LogError::Closed)
    }

    /// Closes the database and opens it anew. Nobody else may hold it.
    pub(super) fn reopen(&mut self) -> Result<sled::Tree, LogError> {
        // Every commit was synced: nothing waits to be written.
        self.db = None;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        self.db = Some(open_sled(dir, self.cache_bytes, REOPEN_PATIENCE)?);
        self.tree()
    }

    /// The next commit is written, but not known to be (simulation).
    pub(super) fn fail_next_sync(&mut self) {
        self.sync_fails = true;
    }

    /// Applies the batch and returns when it is on disk.
    pub(super) fn commit(&mut self, batch: sled::Batch) -> Result<(), LogError> {
        let db = self.db()?;
        db.apply_batch(batch).map_err(LogError::storage("writing"))?;
        db.flush().map_err(LogError::storage("flushing"))?;
        self.commits += 1;
        match self.sync {
            SyncMode::FlushOnly => return Ok(()),
            _ if self.sync_fails => {
                return Err(LogError::io("syncing", &self.path)(std::io::Error::other("injected failure")));
            }
            SyncMode::FailAfter(commits) if self.commits > commits => {
                return Err(LogError::io("syncing", &self.path)(std::io::Error::other("injected failure")));
            }
            SyncMode::FailAfter(_) | SyncMode::Data => {}
        }
        self.data.sync_data().map_err(LogError::io("syncing", &self.path))
    }
}

/// Creates the database beside its final place and renames it there once it is on disk, so that a
/// crash in between leaves no half-made log (sled refuses to open one whose `conf` is empty).
fn create(dir: &Path, options: &LogOptions) -> Result<(), LogError> {
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(LogError::io("creating", parent))?;
    let mut name = dir.file_name().unwrap_or_default().to_os_string();
    name.push(".creating");
    let draft = parent.join(name);
    let db = match open_sled(&draft, options.cache_bytes, LOCK_PATIENCE) {
        Err(LogError::Storage { .. }) => {
            // Left by a creation that was cut off before anything could be acknowledged.
            std::fs::remove_dir_all(&draft).map_err(LogError::io("removing", &draft))?;
            open_sled(&draft, options.cache_bytes, LOCK_PATIENCE)?
        }
        other => other?,
    };
    db.insert(keys::FORMAT, &FORMAT_VERSION.to_be_bytes()).map_err(LogError::storage("creating the log"))?;
    db.flush().map_err(LogError::storage("creating the log"))?;
    for path in [draft.join("db"), draft.join("conf"), draft.clone()] {
        sync(&path)?;
    }
    std::fs::rename(&draft, dir).map_err(LogError::io("renaming the new log to", dir))?;
    sync(parent)
}

fn sync(path: &Path) -> Result<(), LogError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(LogError::io("syncing", path))
}

/// Makes the log ours until this file is closed, waiting a moment for whoever is about to let go of it.
fn own(dir: &Path) -> Result<File, LogError> {
    let path = dir.join(OWNER);
    let file = File::options().write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(LogError::io("opening", &path))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_RETRY),
            Err(TryLockError::WouldBlock) => return Err(LogError::Locked { path: dir.to_path_buf() }),
            Err(TryLockError::Error(error)) => return Err(LogError::io("locking", &path)(error)),
        }
    }
}

/// Opens sled, waiting a moment for the lock: sled's background threads may hold the files for a few
/// milliseconds after the last handle is gone, and a process that is being replaced is still ending.
fn open_sled(dir: &Path, cache_bytes: u64, patience: Duration) -> Result<sled::Db, LogError> {
    let deadline = Instant::now() + patience;
    loop {
        match try_open_sled(dir, cache_bytes) {
            Err(LogError::Locked { .. }) if Instant::now() < deadline => std::thread::sleep(LOCK_RETRY),
            other => return other,
        }
    }
}

fn try_open_sled(dir: &Path, cache_bytes: u64) -> Result<sled::Db, LogError> {
    // Without sled's background flusher: every write here is flushed at once, by us.
    let config = sled::Config::new().path(dir).cache_capacity(cache_bytes).flush_every_ms(None);
    // sled answers some damaged files with a panic instead of an error.
    let opened = catch_unwind(AssertUnwindSafe(|| snapshots::open(&config, dir)));
    match opened {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(sled::Error::Io(error))) if is_lock(&error) => Err(LogError::Locked { path: dir.to_path_buf() }),
        Ok(Err(error)) => Err(LogError::storage("opening the log")(error)),
        Err(panic) => Err(LogError::Storage { action: "opening the log", cause: panic_message(panic.as_ref()) }),
    }
}

/// sled wraps the lock's `WouldBlock` into an error of kind `Other` with this text.
fn is_lock(error: &std::io::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

fn check_format(db: &sled::Db) -> Result<(), LogError> {
    let found = db.get(keys::FORMAT).map_err(LogError::storage("reading the format version"))?;
    let found = found.and_then(|bytes| keys::u32_at(&bytes, 0)).unwrap_or(0);
    if found == FORMAT_VERSION { Ok(()) } else { Err(LogError::Format { found, supported: FORMAT_VERSION }) }
}

pub(super) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic without a message".to_owned())
}
