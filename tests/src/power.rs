//! Cutting the power of a process that writes the event log, again and again at moments that nobody chose.
//!
//! The log is on an ext4 file system in an image file, and a process of its own appends to it. At some moment that
//! process is stopped, between two system calls of each of its threads; what it had acknowledged is noted, and the image
//! is copied: that is what the disk would hold had the power failed then. The process goes on while the copy is mounted
//! and opened. Every acknowledged event must be in it, byte by byte.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use stoker_worker::log::{Append, EventLog, Expected, IndexChange, LogError, LogOptions, SyncMode};
use uuid::Uuid;

/// Cuts of one process on one disk; then both are made anew, so that a log's creation is cut as well.
const CUTS_PER_DISK: u32 = 10;
/// A process writes for so long at most between two cuts.
const LONGEST_MS: u64 = 120;
const IMAGE_MIB: u64 = 256;
/// Callers of the process, each with a stream of its own.
const CALLERS: u128 = 12;
/// Largest event: three blocks of the log.
const LARGEST_EVENT: usize = 5_000;
/// Opened anew so often that cuts come in the middle of it.
const REOPENED_AFTER: usize = 700;
/// A stopped process has stopped within this.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(1);

type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
type Acknowledged = HashMap<Uuid, u64>;

/// Runs a program to its end.
///
/// # Errors
/// What it said, if it failed or is not there.
pub fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    output.status.success().then_some(()).ok_or_else(|| format!("{program}: {}", said.trim()))
}

/// A mounted image; unmounted when dropped.
pub struct Mount(pub PathBuf);

impl Mount {
    /// Mounts an image.
    ///
    /// # Errors
    /// Why it cannot be: rights, or no loop devices.
    pub fn new(image: &Path, at: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(at).map_err(|error| error.to_string())?;
        // No commit of the file system's own within the test: only what is asked for reaches the image.
        run("mount", &["-o", "loop,commit=300", image.to_str().unwrap(), at.to_str().unwrap()])?;
        Ok(Self(at.to_path_buf()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = run("umount", &[self.0.to_str().unwrap()]) {
            eprintln!("{error}");
        }
    }
}

/// A new file system in an image file, mounted.
///
/// # Errors
/// Why there is none: no `mkfs.ext4`, no rights to mount.
pub fn new_disk(dir: &Path, megabytes: u64) -> Result<(PathBuf, Mount), String> {
    let image = dir.join("disk.img");
    let file = std::fs::File::create(&image).map_err(|error| error.to_string())?;
    file.set_len(megabytes << 20).map_err(|error| error.to_string())?;
    run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()])?;
    let mount = Mount::new(&image, &dir.join("disk"))?;
    // What is there before the test is on disk before the test.
    run("sync", &["-f", mount.0.to_str().unwrap()])?;
    Ok((image, mount))
}

/// What a stream's event of this version holds: nothing that another one has.
fn payload(stream: Uuid, version: u64) -> Bytes {
    let mut random = fastrand::Rng::with_seed(stream.as_u128() as u64 ^ (version << 32));
    let length = if random.u8(..) < 200 { random.usize(50..800) } else { random.usize(800..LARGEST_EVENT) };
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes.into()
}

/// The process: appends until it is killed, one line for each acknowledged call. Never returns.
///
/// # Panics
/// When the log takes no more.
pub fn write_until_killed(dir: &Path, sync: SyncMode) {
    let options = LogOptions { sync, reopen_after: REOPENED_AFTER, ..LogOptions::default() };
    let log = EventLog::open(dir, options).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    for caller in 1..=CALLERS {
        let log = log.clone();
        runtime.spawn(async move {
            let stream = Uuid::from_u128(caller);
            let mut version = log.read_stream(stream).unwrap().len() as u64;
            loop {
                let events: Vec<_> = (1..=fastrand::u64(1..4)).map(|next| payload(stream, version + next)).collect();
                version += events.len() as u64;
                let index = if version.is_multiple_of(3) { IndexChange::Remove } else { IndexChange::Set(1, version) };
                log.append(vec![Append { stream, expected: Expected::Any, events, index }]).await.unwrap();
                log.set_cursor("reader", version).unwrap();
                let line = format!("ACK {stream} {version}\n");
                std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
            }
        });
    }
    // What was acknowledged long ago is rewritten meanwhile.
    runtime.block_on(async {
        loop {
            log.compact(200).await.unwrap();
        }
    });
}

/// What cuts came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Cuts.
    pub cuts: u32,
    /// Events acknowledged before them, all together.
    pub acknowledged: u64,
    /// Of those, the ones that were gone or others.
    pub missing: u64,
    /// Events found that were on their way: written, and not acknowledged yet.
    pub on_their_way: u64,
    /// Logs that could not be opened, or whose chain was broken.
    pub unusable: u32,
    /// Cuts before the log was made.
    pub before_the_log: u32,
}

/// Cuts the power so often. `writer` is the command of a process that calls [`write_until_killed`] with this folder.
///
/// # Errors
/// Why it cannot be tried here, or what of the attempt itself went wrong.
pub fn cut(times: u32, writer: impl Fn(&Path) -> Command) -> Fallible<Outcome> {
    let mut outcome = Outcome::default();
    while outcome.cuts < times {
        let dir = tempfile::Builder::new().prefix("st-power-").tempdir()?;
        let (image, mount) = new_disk(dir.path(), IMAGE_MIB)?;
        let mut writing = Writing::start(writer(&mount.0.join("log")))?;
        for _ in 0..CUTS_PER_DISK.min(times - outcome.cuts) {
            writing.run_for(Duration::from_millis(fastrand::u64(..LONGEST_MS)))?;
            let copy = dir.path().join("cut.img");
            let acknowledged = writing.stopped(|| {
                let copy = copy.to_str().unwrap_or_default();
                run("cp", &["--sparse=always", image.to_str().unwrap_or_default(), copy])
            })?;
            outcome.cuts += 1;
            judge(&Mount::new(&copy, &dir.path().join("cut"))?.0.join("log"), &acknowledged, &mut outcome);
            std::fs::remove_file(&copy)?;
        }
        drop(writing);
        drop(mount);
    }
    Ok(outcome)
}

/// Compares what is there with what was acknowledged.
fn judge(dir: &Path, acknowledged: &Acknowledged, outcome: &mut Outcome) {
    let all: u64 = acknowledged.values().sum();
    outcome.acknowledged += all;
    if !dir.exists() {
        outcome.before_the_log += 1;
        outcome.missing += all;
        return;
    }
    match found(dir, acknowledged) {
        Ok((missing, on_their_way)) => {
            outcome.missing += missing;
            outcome.on_their_way += on_their_way;
        }
        Err(error) => {
            eprintln!("after a power cut: {error}");
            outcome.unusable += 1;
            outcome.missing += all;
        }
    }
}

/// Events that are missing, and events beyond those that were acknowledged.
fn found(dir: &Path, acknowledged: &Acknowledged) -> Result<(u64, u64), LogError> {
    let log = EventLog::open(dir, LogOptions::default())?;
    let (mut missing, mut on_their_way) = (0, 0);
    for stream in (1..=CALLERS).map(Uuid::from_u128) {
        let records = log.read_stream(stream)?;
        let sound = records.iter().zip(1..).take_while(|(record, version)| record.payload == payload(stream, *version));
        let (sound, known) = (sound.count() as u64, acknowledged.get(&stream).copied().unwrap_or(0));
        missing += known.saturating_sub(sound);
        on_their_way += sound.saturating_sub(known);
    }
    match log.verify()?.first_bad {
        None => Ok((missing, on_their_way)),
        Some(bad) => Err(LogError::Corrupt { position: bad.position, stream: bad.stream, what: bad.what }),
    }
}

/// A process that writes; killed when dropped.
struct Writing {
    process: Child,
    acknowledged: Arc<Mutex<Acknowledged>>,
}

impl Writing {
    fn start(mut command: Command) -> Fallible<Self> {
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let acknowledged = Arc::<Mutex<Acknowledged>>::default();
        if let Some(said) = process.stdout.take() {
            let acknowledged = acknowledged.clone();
            std::thread::spawn(move || note(said, &acknowledged));
        }
        Ok(Self { process, acknowledged })
    }

    fn run_for(&mut self, time: Duration) -> Fallible<()> {
        // The moment of a cut is a moment in time: there is nothing to wait for.
        std::thread::sleep(time);
        match self.process.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("the writing process ended with {status}").into()),
        }
    }

    /// Calls this while the process stands still; what it had acknowledged by then.
    fn stopped(&self, copy: impl FnOnce() -> Result<(), String>) -> Fallible<Acknowledged> {
        self.signal("-STOP")?;
        self.stands_still()?;
        let acknowledged = lock(&self.acknowledged).clone();
        copy()?;
        self.signal("-CONT")?;
        Ok(acknowledged)
    }

    fn signal(&self, signal: &str) -> Result<(), String> {
        run("kill", &[signal, &self.process.id().to_string()])
    }

    /// A system call that is under way ends before its thread stops.
    fn stands_still(&self) -> Fallible<()> {
        let (tasks, until) = (format!("/proc/{}/task", self.process.id()), Instant::now() + PATIENCE);
        loop {
            let mut states = std::fs::read_dir(&tasks)?.flatten().map(|task| state(&task.path().join("stat")));
            if states.all(|state| matches!(state.as_deref(), Some("T") | None)) {
                return Ok(());
            }
            if Instant::now() > until {
                return Err("the writing process does not stop".into());
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// A thread's state, by its letter; `None` when it is gone.
fn state(stat: &Path) -> Option<String> {
    let stat = std::fs::read_to_string(stat).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').next().map(str::to_owned)
}

impl Drop for Writing {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn note(said: impl Read, acknowledged: &Mutex<Acknowledged>) {
    for line in BufReader::new(said).lines().map_while(Result::ok) {
        let Some((stream, version)) = line.strip_prefix("ACK ").and_then(|ack| ack.split_once(' ')) else { continue };
        if let (Ok(stream), Ok(version)) = (stream.parse(), version.parse()) {
            lock(acknowledged).insert(stream, version);
        }
    }
}

fn lock(acknowledged: &Mutex<Acknowledged>) -> MutexGuard<'_, Acknowledged> {
    // Whole after every statement.
    acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
}
