//! Follows one console while its VM runs.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{
    signs::{ConsoleEvent, MAX_EVENTS, Parser},
    store::{Bound, next_data},
};
use crate::{ports::vm::ConsoleFeed, vm::files};

/// Between looks while the guest writes: early enough for a stage's time, rare enough for 100 VMs.
/// (Not inotify: its instances are few, and Firecracker writes byte by byte.)
const SHORTEST: Duration = Duration::from_millis(5);
/// Between looks at a silent guest.
const LONGEST: Duration = Duration::from_millis(250);
/// The wait is this part of the silence so far, so what ends it is seen at most 5 % late.
const SILENCE_PART: u32 = 20;
/// Read at once, bytes.
const PIECE_BYTES: usize = 64 * 1024;
/// Pieces read before other tasks get their turn.
const PIECES_AT_ONCE: usize = 16;
/// How long the end of a console is waited for where the VM closes it itself (simulated guests).
const CLOSING: Duration = Duration::from_millis(50);

/// A console being followed. Dropping it ends the following, not the VM's writing.
pub struct Capture {
    /// What it told so far. Holds as many as one console may cause, so none is ever lost.
    pub events: mpsc::Receiver<ConsoleEvent>,
    bytes: Arc<AtomicU64>,
    finish: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
}

impl Capture {
    /// Begins to follow. An empty `dir` keeps no copy of what comes through a channel.
    pub fn start(feed: Option<ConsoleFeed>, dir: &Path) -> Self {
        let (tell, events) = mpsc::channel(MAX_EVENTS);
        let bytes = Arc::new(AtomicU64::new(0));
        let (finish, finished) = oneshot::channel();
        let sink = Sink { parser: Parser::default(), tell, bytes: Arc::clone(&bytes) };
        let task = match feed {
            Some(ConsoleFeed::File(path)) => Some(tokio::spawn(follow_file(path, sink, finished))),
            Some(ConsoleFeed::Channel(channel)) => start_channel(channel, dir, sink, finished),
            None => None,
        };
        Self { events, bytes, finish: Some(finish), task }
    }

    /// Bytes seen so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Reads what is there and ends the following; all events are then in [`Self::events`].
    /// Idempotent.
    pub async fn finish(&mut self) {
        // Either side may be gone already: then it has finished by itself.
        if let Some(finish) = self.finish.take() {
            let _ = finish.send(());
        }
        if let Some(task) = &mut self.task {
            let _ = task.await;
            self.task = None;
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Where bytes go.
struct Sink {
    parser: Parser,
    tell: mpsc::Sender<ConsoleEvent>,
    bytes: Arc<AtomicU64>,
}

impl Sink {
    fn take(&mut self, piece: &[u8]) {
        self.bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
        let tell = &self.tell;
        // Cannot be full: the parser makes no more than it holds. Closed means nobody asks.
        self.parser.feed(piece, &mut |event| drop(tell.try_send(event)));
    }

    fn end(&mut self) {
        let tell = &self.tell;
        self.parser.finish(&mut |event| drop(tell.try_send(event)));
    }
}

/// What has come already is taken at once: a guest whose whole console is there needs no task.
fn start_channel(
    mut channel: mpsc::Receiver<Bytes>,
    dir: &Path,
    mut sink: Sink,
    finished: oneshot::Receiver<()>,
) -> Option<JoinHandle<()>> {
    let mut copy = Copy::open(dir);
    loop {
        match channel.try_recv() {
            Ok(piece) => {
                copy.write(&piece);
                sink.take(&piece);
            }
            Err(mpsc::error::TryRecvError::Disconnected) => {
                sink.end();
                return None;
            }
            Err(mpsc::error::TryRecvError::Empty) => break,
        }
    }
    Some(tokio::spawn(follow_channel(channel, copy, sink, finished)))
}

async fn follow_channel(
    mut channel: mpsc::Receiver<Bytes>,
    mut copy: Copy,
    mut sink: Sink,
    mut finished: oneshot::Receiver<()>,
) {
    let mut closing: Option<Instant> = None;
    loop {
        let piece = tokio::select! {
            biased;
            piece = channel.recv() => piece,
            _ = &mut finished, if closing.is_none() => {
                closing = Some(Instant::now() + CLOSING);
                continue;
            }
            () = tokio::time::sleep_until(closing.unwrap_or_else(Instant::now)), if closing.is_some() => None,
        };
        let Some(piece) = piece else { break };
        copy.write(&piece);
        sink.take(&piece);
    }
    sink.end();
}

/// The copy of a console that comes through a channel, in the place where a VMM would have it.
struct Copy(Option<(File, Bound)>);

impl Copy {
    fn open(dir: &Path) -> Self {
        if dir.as_os_str().is_empty() {
            return Self(None);
        }
        match files::append(dir, files::CONSOLE) {
            Ok(file) => Self(Some((file, Bound::default()))),
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "console is not kept");
                Self(None)
            }
        }
    }

    fn write(&mut self, piece: &[u8]) {
        let Some((file, bound)) = &mut self.0 else { return };
        let written = file.write_all(piece).and_then(|()| bound.apply(file, file.metadata()?.len()));
        if let Err(error) = written {
            tracing::warn!(%error, "console is not kept any further");
            self.0 = None;
        }
    }
}

async fn follow_file(path: PathBuf, mut sink: Sink, mut finished: oneshot::Receiver<()>) {
    let mut follower = Follower { path, file: None, at: 0, bound: Bound::default() };
    let mut last_byte = Instant::now();
    let mut last_look = false;
    loop {
        match follower.read(&mut sink) {
            // There is more: go on, but not before others.
            Ok(Progress::More) => {
                last_byte = Instant::now();
                tokio::task::yield_now().await;
                continue;
            }
            Ok(Progress::Some) => last_byte = Instant::now(),
            Ok(Progress::Nothing) => {}
            Err(error) => {
                tracing::warn!(path = %follower.path.display(), %error, "console cannot be followed");
                break;
            }
        }
        if last_look {
            break;
        }
        let wait = (last_byte.elapsed() / SILENCE_PART).clamp(SHORTEST, LONGEST);
        tokio::select! {
            // An error means the handle is gone, and this task with it.
            _ = &mut finished => last_look = true,
            () = sleep(wait) => {}
        }
    }
    sink.end();
}

/// A place in a growing file.
struct Follower {
    path: PathBuf,
    file: Option<File>,
    at: u64,
    bound: Bound,
}

enum Progress {
    Nothing,
    Some,
    More,
}

impl Follower {
    /// Takes what is new. Reads directly: it was written a moment ago and is in memory, and a turn
    /// of the blocking pool would cost more than the read.
    fn read(&mut self, sink: &mut Sink) -> io::Result<Progress> {
        let Some(file) = open_once(&mut self.file, &self.path)? else {
            return Ok(Progress::Nothing);
        };
        let length = file.metadata()?.len();
        // Cut back: what was before is gone, what comes is new.
        self.at = self.at.min(length);
        if self.at == length {
            return Ok(Progress::Nothing);
        }
        let mut buffer = vec![0; PIECE_BYTES.min(usize::try_from(length - self.at).unwrap_or(PIECE_BYTES))];
        let mut progress = Progress::More;
        for _ in 0..PIECES_AT_ONCE {
            let Some(data) = next_data(file, self.at)? else { break };
            file.seek(SeekFrom::Start(data))?;
            let read = file.read(&mut buffer)?;
            self.at = data + read as u64;
            sink.take(&buffer[..read]);
            if read < buffer.len() || self.at >= length {
                progress = Progress::Some;
                break;
            }
        }
        self.at = self.at.min(self.bound.apply(file, length.max(self.at))?);
        Ok(progress)
    }
}

/// A VMM may create its console a little later than it is followed.
fn open_once<'a>(file: &'a mut Option<File>, path: &Path) -> io::Result<Option<&'a mut File>> {
    if file.is_none() {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(opened) => *file = Some(opened),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(file.as_mut())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    async fn next(capture: &mut Capture) -> ConsoleEvent {
        tokio::time::timeout(DEADLINE, capture.events.recv()).await.unwrap().unwrap()
    }

    fn file_capture(dir: &Path) -> Capture {
        Capture::start(Some(ConsoleFeed::File(dir.join(files::CONSOLE))), dir)
    }

    #[tokio::test]
    async fn a_file_is_followed_from_before_it_exists_to_its_last_line() {
        let dir = tempfile::tempdir().unwrap();
        let mut capture = file_capture(dir.path());
        let mut console = files::append(dir.path(), files::CONSOLE).unwrap();
        console.write_all(b"boot\n[  OK  ] Started A").unwrap();
        assert_eq!(next(&mut capture).await, ConsoleEvent::KernelStarted);
        console.write_all(b".\n").unwrap();
        assert_eq!(next(&mut capture).await, ConsoleEvent::UnitStarted("A".to_owned()));
        console.write_all(b"Kernel panic - not syncing: last words").unwrap();
        capture.finish().await;
        assert_eq!(capture.events.try_recv().unwrap(), ConsoleEvent::KernelPanic("last words".to_owned()));
        assert_eq!(capture.bytes(), console.metadata().unwrap().len());
        capture.finish().await;
    }

    #[tokio::test]
    async fn a_flood_does_not_fill_the_disk_and_hides_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut capture = file_capture(dir.path());
        let mut console = files::append(dir.path(), files::CONSOLE).unwrap();
        for _ in 0..64 {
            console.write_all(&b"noise noise noise\n".repeat(16 * 1024)).unwrap();
            tokio::task::yield_now().await;
        }
        console.write_all(b"[FAILED] Failed to start B.\n").unwrap();
        assert_eq!(next(&mut capture).await, ConsoleEvent::KernelStarted);
        assert_eq!(next(&mut capture).await, ConsoleEvent::UnitFailed("B".to_owned()));
        capture.finish().await;
        let used = console.metadata().unwrap().blocks() * 512;
        assert!(used < 4 << 20, "{used} bytes of {}", console.metadata().unwrap().len());
    }

    #[tokio::test]
    async fn a_channel_is_kept_as_a_file_and_needs_no_task_when_complete() {
        let dir = tempfile::tempdir().unwrap();
        let (write, read) = mpsc::channel(4);
        write.send(Bytes::from_static(b"[  OK  ] Started A.\n")).await.unwrap();
        drop(write);
        let mut capture = Capture::start(Some(ConsoleFeed::Channel(read)), dir.path());
        assert!(capture.task.is_none());
        assert_eq!(next(&mut capture).await, ConsoleEvent::KernelStarted);
        assert_eq!(next(&mut capture).await, ConsoleEvent::UnitStarted("A".to_owned()));
        assert_eq!(std::fs::read(dir.path().join(files::CONSOLE)).unwrap(), b"[  OK  ] Started A.\n");
    }

    #[tokio::test(start_paused = true)]
    async fn finishing_does_not_wait_for_a_guest_that_lives_on() {
        let (write, read) = mpsc::channel(4);
        let mut capture = Capture::start(Some(ConsoleFeed::Channel(read)), Path::new(""));
        write.send(Bytes::from_static(b"You are in emergency mode")).await.unwrap();
        capture.finish().await;
        assert_eq!(capture.events.try_recv().unwrap(), ConsoleEvent::KernelStarted);
        assert_eq!(capture.events.try_recv().unwrap(), ConsoleEvent::EmergencyMode);
        drop(write);
    }
}
