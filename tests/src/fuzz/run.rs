//! Feeds a parser for a while. What makes it panic, take too long or grow is kept in a file.

use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use stoker_schemas::fuzz::Target;

use super::Mutator;

/// One input may take this long: a thousand times what it does on a slow machine.
const HANGS_AFTER: Duration = Duration::from_secs(20);
/// A parser may make the process grow by this much, MiB. Inputs are smaller than 0.1 MiB.
const MAX_GROWTH_MIB: u64 = 256;
/// Stack of the thread that parses: that of the runtime's threads.
const STACK_BYTES: usize = 2 << 20;
/// Inputs between two looks at the memory.
const LOOK_EVERY: u64 = 64;
/// Time spent on making a failing input smaller.
const SHRINKS_FOR: Duration = Duration::from_secs(5);
/// Of a failing input, bytes that are shown.
const SHOWN_BYTES: usize = 2_000;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Inputs that were tried.
    pub inputs: u64,
}

/// A broken promise.
#[derive(Debug, thiserror::Error)]
#[error("{target}: {what}\n  input, also in {}: {}", kept.display(), shown(input))]
pub struct Failure {
    /// Of which target.
    pub target: &'static str,
    /// The panic's words, or what was exceeded.
    pub what: String,
    /// The input, as small as it could be made.
    pub input: Vec<u8>,
    /// Where it was saved.
    pub kept: PathBuf,
}

fn shown(input: &[u8]) -> String {
    let more = if input.len() > SHOWN_BYTES { " …" } else { "" };
    format!("b\"{}\"{more}", input[..input.len().min(SHOWN_BYTES)].escape_ascii())
}

/// Where failing inputs of a target are kept and looked for: `STOKER_FUZZ_DIR`, or a folder for temporary files.
pub fn input_folder(target: &Target) -> PathBuf {
    let base = env::var_os("STOKER_FUZZ_DIR").map_or_else(|| env::temp_dir().join("stoker-fuzz"), PathBuf::from);
    base.join(target.name)
}

/// Tries the inputs that failed before, the valid ones and then others for this long.
///
/// # Errors
/// The first input that breaks a promise of the parser.
pub fn fuzz(target: Target, seed: u64, time: Duration) -> Result<Report, Failure> {
    let current = Arc::new(Mutex::new(Vec::new()));
    let (done, finished) = channel();
    let shared = Arc::clone(&current);
    let feeder = move || drop(done.send(feed(target, seed, time, &shared)));
    let spawned = thread::Builder::new().stack_size(STACK_BYTES).spawn(feeder);
    let worker = spawned.map_err(|e| failure(target, &format!("no thread: {e}"), Vec::new()))?;
    loop {
        let before = current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match finished.recv_timeout(HANGS_AFTER) {
            Ok(result) => {
                let _ = worker.join();
                return result;
            }
            Err(RecvTimeoutError::Disconnected) => return Err(failure(target, "its thread ended", before)),
            Err(RecvTimeoutError::Timeout) => {
                let now = current.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if now == before {
                    return Err(failure(target, &format!("no end within {HANGS_AFTER:?}"), now));
                }
            }
        }
    }
}

fn feed(target: Target, seed: u64, time: Duration, current: &Mutex<Vec<u8>>) -> Result<Report, Failure> {
    let started = Instant::now();
    let samples = (target.samples)();
    let known = kept_before(&target).into_iter().chain(samples.clone());
    let mut mutator = Mutator::new(samples, seed);
    let first: Vec<_> = known.collect();
    let others = std::iter::from_fn(|| Some(mutator.input()));
    let at_start = memory_mib();
    // What ends the process, such as a stack that overflows, leaves its input here for the next run.
    let folder = input_folder(&target);
    let running = folder.join(format!("running-{}", process::id()));
    // One open file: to replace it each time would wait for the disk.
    let note = fs::create_dir_all(&folder).and_then(|()| fs::File::create(&running)).ok();
    let mut inputs = 0;
    for input in first.iter().cloned().chain(others) {
        current.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&input);
        if let Some(note) = &note {
            let _ = note.set_len(input.len() as u64).and_then(|()| note.write_all_at(&input, 0));
        }
        if let Some(what) = panics(target, &input) {
            let _ = fs::remove_file(&running);
            return Err(failure(target, &what, smaller(target, input)));
        }
        inputs += 1;
        let growth = if inputs % LOOK_EVERY == 0 { memory_mib().saturating_sub(at_start) } else { 0 };
        if growth > MAX_GROWTH_MIB {
            let what = format!("grew by {growth} MiB within the last {LOOK_EVERY} inputs, of which this is the last");
            return Err(failure(target, &what, input));
        }
        if inputs >= first.len() as u64 && started.elapsed() >= time {
            break;
        }
    }
    let _ = fs::remove_file(&running);
    Ok(Report { inputs })
}

fn kept_before(target: &Target) -> Vec<Vec<u8>> {
    let Ok(folder) = fs::read_dir(input_folder(target)) else { return Vec::new() };
    let mut paths: Vec<_> = folder.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths.into_iter().filter_map(|path| fs::read(path).ok()).collect()
}

/// The words of its panic.
fn panics(target: Target, input: &[u8]) -> Option<String> {
    let panic = catch_unwind(AssertUnwindSafe(|| (target.run)(input))).err()?;
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
    Some(text.unwrap_or_else(|| "a panic without words".to_owned()))
}

/// Takes pieces away for as long as it still panics.
fn smaller(target: Target, mut input: Vec<u8>) -> Vec<u8> {
    let started = Instant::now();
    let mut piece = input.len() / 2;
    while piece > 0 {
        let mut from = 0;
        while from < input.len() && started.elapsed() < SHRINKS_FOR {
            let mut less = input.clone();
            less.drain(from..input.len().min(from + piece));
            if panics(target, &less).is_some() {
                input = less;
            } else {
                from += piece;
            }
        }
        piece /= 2;
    }
    input
}

fn failure(target: Target, what: &str, input: Vec<u8>) -> Failure {
    let folder = input_folder(&target);
    let kept = folder.join(format!("{:08x}", crc32c::crc32c(&input)));
    let saved = fs::create_dir_all(&folder).and_then(|()| fs::write(&kept, &input));
    let what = saved.err().map_or_else(|| what.to_owned(), |e| format!("{what} (not saved: {e})"));
    Failure { target: target.name, what, input, kept }
}

/// What this process has in memory, MiB.
fn memory_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}
