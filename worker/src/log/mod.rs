//! The event log: what this host knows, durable before anything happens.
//!
//! One thread writes (`writer`), anybody reads. Appends are grouped into one atomic sled batch, one
//! flush and one `fdatasync` (`store` says why sled's flush alone is not enough), and are answered only then.
//! Every record carries a checksum and a link in a hash chain (`record`), records lie in blocks
//! (`block`, `compact`), streams and the open ones among them are indexed (`index`), and a witness beside the
//! database notices when its end is lost (`witness`).
//!
//! The payload is opaque here: meaning lives in `schemas`.

mod append;
mod block;
mod compact;
mod cursor;
mod disk;
mod error;
mod group;
mod head;
mod index;
mod keys;
mod open;
mod options;
mod read;
pub(crate) mod record;
mod shared;
mod store;
mod verify;
mod witness;
mod writer;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use uuid::Uuid;

use crate::counts::LOG_APPENDS;

pub use append::{Append, Appended, Expected};
pub use compact::Compacted;
#[doc(hidden)]
pub use disk::{Disk, Fate};
pub use error::{Damage, LogError};
pub use index::{IndexChange, OpenStream, OpenStreams};
pub use options::{
    LogOptions, MAX_CALL_BYTES, MAX_CALL_EVENTS, MAX_CURSOR_NAME, MAX_DIRTY_CURSORS, MAX_EVENT_BYTES, MAX_READ_EVENTS,
    SyncMode,
};
pub use read::Scanned;
pub use record::{ChainHash, RecordRef, Recorded};
pub use verify::{BadEvent, VerifyReport};

use cursor::DirtyCursors;
use head::Heads;
use shared::Shared;
use store::Store;
use witness::Witness;
use writer::{Command, Poison, Reply, Writer};

/// Handle to the log; clones share it. Dropping the last one waits for the writer to finish.
///
/// Reading methods block on the disk when a page is not cached: call those that read much from
/// `spawn_blocking`.
#[derive(Debug, Clone)]
pub struct EventLog {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tree: Shared,
    heads: Heads,
    cursors: DirtyCursors,
    poison: Poison,
    streams_read: AtomicU64,
    /// `None` once dropping has begun, which is what ends the writer.
    queue: Option<mpsc::Sender<Command>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl EventLog {
    /// Opens the log in `dir`, creating it if there is none.
    ///
    /// # Errors
    /// [`LogError::Locked`] if another process has it open, [`LogError::Format`] if another version
    /// wrote it, [`LogError::Truncated`] if it lost acknowledged events.
    pub fn open(dir: impl AsRef<Path>, options: LogOptions) -> Result<Self, LogError> {
        let dir = dir.as_ref();
        let store = Store::open(dir, &options)?;
        let tree = store.tree()?;
        let tip = open::tip(&tree)?;
        let (mut witness, known) = Witness::open(dir)?;
        open::check_witness(&tree, &mut witness, known, tip, options.accept_truncation)?;

        // The writer opens it anew, and must have it back for that.
        let tree = Shared::new(tree);
        let heads = Heads::new(tip.position);
        let (queue, receiver) = mpsc::channel(options.queue_calls.max(1));
        let cursors = DirtyCursors::default();
        let poison: Poison = Arc::new(OnceLock::new());
        let writer = Writer {
            store,
            tree: tree.clone(),
            witness,
            tip,
            max_batch: options.max_batch.max(1),
            reopen_after: options.reopen_after.max(1),
            unopened: 0,
            heads: heads.clone(),
            cursors: cursors.clone(),
            poison: Arc::clone(&poison),
        };
        let thread = match options.disk {
            Some(disk) => {
                tokio::spawn(writer.run_as_task(receiver, disk));
                None
            }
            None => {
                let thread = std::thread::Builder::new().name("log-writer".into()).spawn(move || writer.run(receiver));
                Some(thread.map_err(LogError::io("starting the writer of", dir))?)
            }
        };
        let writer = Mutex::new(thread);
        let streams_read = AtomicU64::new(0);
        let inner = Inner { tree, heads, cursors, poison, streams_read, queue: Some(queue), writer };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Appends events and resolves when they are on disk. A call is atomic: all of it, or none.
    ///
    /// Awaits a place in the queue first, so a caller that outruns the disk is slowed down. Dropping
    /// the future after that does not undo the append.
    ///
    /// # Errors
    /// [`LogError::WrongVersion`] rejects this call only; [`LogError::Poisoned`] all from then on.
    pub fn append(&self, appends: Vec<Append>) -> impl Future<Output = Result<Vec<Appended>, LogError>> + Send + use<> {
        let log = self.clone();
        async move {
            append::check_size(&appends)?;
            let asked = Instant::now();
            let appended = log.ask(|reply| Command::Append { appends, reply }).await?;
            LOG_APPENDS.add(asked.elapsed());
            Ok(appended)
        }
    }

    /// Merges small blocks of old events into full ones: one bounded step of about `max_events`. To be
    /// called in the background until it reports no events; what `compact` buys, its module says.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] if the events to move are damaged (nothing is changed then), or as `append`.
    pub async fn compact(&self, max_events: usize) -> Result<Compacted, LogError> {
        self.ask(|reply| Command::Compact { max_events, reply }).await
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, LogError> {
        let (reply, answer) = oneshot::channel();
        let queue = self.inner.queue.as_ref().ok_or(LogError::Closed)?;
        queue.send(command(reply)).await.map_err(|_| LogError::Closed)?;
        // The writer drops a call unanswered only when it panicked, and then says why here.
        answer.await.map_err(|_| match self.inner.poison.get() {
            Some(cause) => LogError::Poisoned { cause: Arc::clone(cause) },
            None => LogError::Closed,
        })?
    }

    /// Position of the last durable event, now and as it advances: for tailing the log.
    #[must_use]
    pub fn head(&self) -> watch::Receiver<u64> {
        self.inner.heads.subscribe()
    }

    /// Position of the last durable event.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.inner.heads.position()
    }

    /// All events of a stream, in order; none if there is no such stream.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] if one of them is damaged or missing.
    pub fn read_stream(&self, stream: Uuid) -> Result<Vec<Recorded>, LogError> {
        self.read_stream_after(stream, 0)
    }

    /// The events of a stream after a version, without reading those before.
    ///
    /// # Errors
    /// As [`EventLog::read_stream`].
    pub fn read_stream_after(&self, stream: Uuid, version: u64) -> Result<Vec<Recorded>, LogError> {
        self.inner.streams_read.fetch_add(1, Ordering::Relaxed);
        read::stream(&*self.inner.tree.get()?, stream, version, self.durable())
    }

    /// The last events of a stream that is damaged, in order: those behind the damage.
    ///
    /// # Errors
    /// [`LogError::Storage`] if sled fails altogether.
    pub fn read_stream_tail(&self, stream: Uuid) -> Result<Vec<Recorded>, LogError> {
        read::tail(&*self.inner.tree.get()?, stream, self.durable())
    }

    /// How many streams were read since the log was opened: what a caller costs that reads again and again.
    #[must_use]
    pub fn streams_read(&self) -> u64 {
        self.inner.streams_read.load(Ordering::Relaxed)
    }

    /// Up to `max_events` events (at most [`MAX_READ_EVENTS`]) from a position on.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] if one of them is damaged or missing.
    pub fn scan(&self, from_position: u64, max_events: usize) -> Result<Vec<Recorded>, LogError> {
        read::scan(&*self.inner.tree.get()?, from_position, self.durable(), max_events)
    }

    /// As [`EventLog::scan`], past events that are damaged: for those who read of all jobs, and must not stop at one.
    ///
    /// # Errors
    /// [`LogError::Storage`] if sled fails altogether.
    pub fn scan_past(&self, from_position: u64, max_events: usize) -> Result<Scanned, LogError> {
        let scanned = read::scan_past(&*self.inner.tree.get()?, from_position, self.durable(), max_events)?;
        for BadEvent { position, stream, what } in &scanned.damaged {
            tracing::error!(position, ?stream, %what, "event in the log is damaged, passed by; stoker log verify shows more");
        }
        Ok(scanned)
    }

    /// Whether it still takes events.
    ///
    /// # Errors
    /// [`LogError::Poisoned`] since a write failed, whoever made it.
    pub fn writable(&self) -> Result<(), LogError> {
        match self.inner.poison.get() {
            Some(cause) => Err(LogError::Poisoned { cause: Arc::clone(cause) }),
            None => Ok(()),
        }
    }

    /// The last `count` events, oldest first.
    ///
    /// # Errors
    /// As [`EventLog::scan`].
    pub fn last(&self, count: usize) -> Result<Vec<Recorded>, LogError> {
        let end = self.durable();
        let count = count.min(MAX_READ_EVENTS);
        read::scan(&*self.inner.tree.get()?, end.saturating_sub(count as u64) + 1, end, count)
    }

    /// Calls `visit` with every event from a position on, copying nothing, until it breaks.
    ///
    /// # Errors
    /// As [`EventLog::scan`].
    pub fn replay(
        &self,
        from_position: u64,
        mut visit: impl FnMut(RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), LogError> {
        read::walk(&*self.inner.tree.get()?, from_position, self.durable(), |record, _| visit(record))
    }

    /// Streams that are open, of one group or of all, in order of (tag, sort). Reads as it goes, so
    /// taking the first few of a million is quick; keeps the log open as long as it lives.
    #[must_use]
    pub fn open_streams(&self, tag: Option<u8>) -> OpenStreams {
        OpenStreams::new(self.inner.tree.get(), tag)
    }

    /// Where a consumer is; 0 if it has never said.
    ///
    /// # Errors
    /// [`LogError::Storage`].
    pub fn cursor(&self, name: &str) -> Result<u64, LogError> {
        self.inner.cursors.get(&*self.inner.tree.get()?, name)
    }

    /// Cursors whose names begin with `prefix`, in order of their names, without those at 0.
    ///
    /// # Errors
    /// [`LogError::Storage`].
    pub fn cursors(&self, prefix: &str) -> Result<Vec<(String, u64)>, LogError> {
        self.inner.cursors.named(&*self.inner.tree.get()?, prefix)
    }

    /// Moves a consumer's cursor, backwards too; 0 removes it. Those moved between two commits are kept together
    /// or not at all. On disk with the next commit, [`EventLog::flush_cursors`]
    /// or when the log is closed; after a crash it may be where it was before.
    ///
    /// # Errors
    /// [`LogError::CursorName`].
    pub fn set_cursor(&self, name: &str, position: u64) -> Result<(), LogError> {
        self.inner.cursors.set(name, position)
    }

    /// Makes the cursors durable now.
    ///
    /// # Errors
    /// As [`EventLog::append`].
    pub async fn flush_cursors(&self) -> Result<(), LogError> {
        self.ask(|reply| Command::FlushCursors { reply }).await
    }

    /// Verifies everything: checksums, hash chain, index. Reads the whole log.
    ///
    /// # Errors
    /// [`LogError::Storage`] if sled fails outside the records; damage is a finding, not an error.
    pub fn verify(&self) -> Result<VerifyReport, LogError> {
        verify::everything(&*self.inner.tree.get()?, self.durable())
    }

    /// Verifies the events `from..=to` against their checksums and the chain.
    ///
    /// # Errors
    /// As [`EventLog::verify`].
    pub fn verify_range(&self, from: u64, to: u64) -> Result<VerifyReport, LogError> {
        verify::chain(&*self.inner.tree.get()?, from, to.min(self.durable()))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue = None;
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the writer of the event log panicked");
        }
    }
}
