//! The sled database under the rows, which is opened anew now and then.
//!
//! sled writes its snapshot, from which it starts, only when it is opened, and then reads everything
//! that was written since the one before: seconds for a million events. So that whoever restarts
//! a control plane does not wait for it, the database is closed and opened while nobody does. That
//! needs every handle of it back: readers hold a [`Rows`] for as long as they read, and reopening
//! never waits for them with the lock asked for, because a reader may ask for a second one.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{LockResult, PoisonError, RwLock, RwLockReadGuard, TryLockError};
use std::time::{Duration, Instant};

use sled::{Db, Tree};
use stoker_worker::snapshots;

use super::ReadModelError;

/// Memory sled may use for pages. Its own default, 1 GiB, is more than a whole front should take.
const CACHE_BYTES: u64 = 64 << 20;
/// How long readers may keep it from being reopened: pages read for tens of milliseconds.
const READERS_WITHIN: Duration = Duration::from_secs(2);
/// How long the file's lock may outlive the database: threads of sled's own end a little later.
const UNLOCKED_WITHIN: Duration = Duration::from_secs(5);
/// Between two looks at either.
const LOOK: Duration = Duration::from_millis(2);

/// The database.
#[derive(Debug)]
pub(super) struct Database {
    dir: PathBuf,
    /// None when opening it anew failed.
    open: RwLock<Option<Db>>,
}

/// The open database, for as long as this is held.
pub(super) struct Rows<'a>(RwLockReadGuard<'a, Option<Db>>);

impl Database {
    pub fn open(dir: &Path) -> Result<Self, ReadModelError> {
        Ok(Self { dir: dir.to_owned(), open: RwLock::new(Some(open(dir)?)) })
    }

    /// For reading and writing rows.
    pub fn rows(&self) -> Result<Rows<'_>, ReadModelError> {
        let rows = Rows(match self.open.try_read() {
            Ok(open) => open,
            Err(TryLockError::Poisoned(open)) => open.into_inner(),
            Err(TryLockError::WouldBlock) => without_blocking_others(|| self.open.read()),
        });
        if rows.0.is_some() { Ok(rows) } else { Err(ReadModelError::Closed) }
    }

    /// Pushes what is written towards the disk.
    pub fn flush(&self) -> Result<(), ReadModelError> {
        self.rows()?.flush()?;
        Ok(())
    }

    /// Closes and opens it, so that the next start has little to read. `false` when readers left no
    /// moment for it. It blocks, and who wants to read meanwhile waits.
    pub fn reopen(&self) -> Result<bool, ReadModelError> {
        let until = Instant::now() + READERS_WITHIN;
        let mut place = loop {
            // Never a waiting writer: it would stop a reader's second look, which the first waits for.
            match self.open.try_write() {
                Ok(place) => break place,
                Err(TryLockError::Poisoned(place)) => break place.into_inner(),
                Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(LOOK),
                Err(TryLockError::WouldBlock) => return Ok(false),
            }
        };
        // While it is still open: on a full disk the old one goes on.
        if let Some(db) = place.as_ref() {
            db.flush()?;
        }
        drop(place.take());
        *place = Some(open(&self.dir)?);
        Ok(true)
    }
}

/// Waits on a thread whose other tasks go on elsewhere, where the runtime has such threads.
fn without_blocking_others<'a, T>(wait: impl FnOnce() -> LockResult<RwLockReadGuard<'a, T>>) -> RwLockReadGuard<'a, T> {
    let flavor = tokio::runtime::Handle::try_current().map(|runtime| runtime.runtime_flavor());
    let guard = match flavor {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(wait),
        _ => wait(),
    };
    guard.unwrap_or_else(PoisonError::into_inner)
}

fn open(dir: &Path) -> Result<Db, ReadModelError> {
    let until = Instant::now() + UNLOCKED_WITHIN;
    loop {
        match snapshots::open(&sled::Config::new().path(dir).cache_capacity(CACHE_BYTES), dir) {
            Err(sled::Error::Io(error)) if is_locked(&error) && Instant::now() < until => std::thread::sleep(LOOK),
            opened => return Ok(opened?),
        }
    }
}

/// sled wraps the refusal of the lock in words of its own.
fn is_locked(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::WouldBlock || error.to_string().contains("acquire lock")
}

impl Deref for Rows<'_> {
    type Target = Tree;

    fn deref(&self) -> &Tree {
        match self.0.as_ref() {
            Some(db) => db,
            // Looked at in `Database::rows`, and no writer can have come since: the guard is held.
            None => unreachable!("a database that is not open was handed out"),
        }
    }
}

/// Rows as they are read one by one; the database stays open meanwhile.
pub(super) struct Reading<'a, I> {
    // Before the guard, so that it is dropped before it: it holds the database, too.
    rows: I,
    _open: Rows<'a>,
}

impl<'a, I> Reading<'a, I> {
    pub fn new(open: Rows<'a>, rows: impl FnOnce(&Tree) -> I) -> Self {
        Self { rows: rows(&open), _open: open }
    }
}

impl<I: Iterator> Iterator for Reading<'_, I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<Self::Item> {
        self.rows.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_there_when_it_was_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(dir.path()).unwrap();
        for round in 0u8..3 {
            database.rows().unwrap().insert([round], &[round]).unwrap();
            assert!(database.reopen().unwrap());
            let rows = database.rows().unwrap();
            assert_eq!(rows.iter().count(), usize::from(round) + 1);
        }
    }

    /// One thread for all: a reader that blocked it would keep the other task from its word.
    #[test]
    fn who_waits_for_the_rows_keeps_nobody_else_from_working() {
        let dir = tempfile::tempdir().unwrap();
        let database = std::sync::Arc::new(Database::open(dir.path()).unwrap());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let reopening = database.open.write().unwrap();
        let (word, heard) = std::sync::mpsc::channel();
        runtime.spawn({
            let database = database.clone();
            async move { database.rows().map(|rows| rows.len()) }
        });
        runtime.spawn(async move { word.send(()) });
        let heard = heard.recv_timeout(Duration::from_secs(10));
        drop(reopening);
        heard.expect("a reader blocked the runtime's only thread");
    }

    #[test]
    fn who_reads_is_not_cut_off_and_may_look_twice() {
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(dir.path()).unwrap();
        database.rows().unwrap().insert(b"a", b"1").unwrap();
        let mut reading = Reading::new(database.rows().unwrap(), Tree::iter);
        std::thread::scope(|scope| {
            let reopened = scope.spawn(|| database.reopen().unwrap());
            // A second look while the first is open and somebody wants to reopen.
            while !reopened.is_finished() {
                assert!(database.rows().unwrap().contains_key(b"a").unwrap());
            }
            assert!(!reopened.join().unwrap(), "it was reopened under a reader");
        });
        assert!(reading.next().unwrap().is_ok());
        drop(reading);
        assert!(database.reopen().unwrap());
    }
}
