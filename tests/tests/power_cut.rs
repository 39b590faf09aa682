//! What a power cut leaves of the event log.
//!
//! The log is written on an ext4 file system in an image file. At the instant of the last
//! acknowledgement, or at any moment between two, the image is copied: that copy is what the disk would hold had
//! the power failed then. It is mounted and opened, and every acknowledged event must be there. Both are tried
//! without our `fdatasync`, too, and must find loss then, so the tests are able to fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::io::Write;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use futures_util::future::join_all;
use stoker_tests::power::{self, Mount, Outcome, new_disk};
use stoker_worker::log::{Append, EventLog, Expected, IndexChange, LogError, LogOptions, SyncMode};
use tempfile::TempDir;
use uuid::Uuid;

/// Tells people, and the summary file of the test run if there is one, that a test could not run.
fn skipped(test: &str, reason: &str) {
    let line = format!("SKIPPED {test}: {reason}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("STOKER_TEST_SUMMARY") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).unwrap();
    }
}

fn call(stream: u128, bytes: usize) -> Vec<Append> {
    let events = vec![Bytes::from(vec![b'e'; bytes])];
    vec![Append { stream: Uuid::from_u128(stream), expected: Expected::Any, events, index: IndexChange::Set(1, 7) }]
}

fn options(sync: SyncMode) -> LogOptions {
    LogOptions { sync, ..LogOptions::default() }
}

/// Appends `events` from eight callers, cuts the power, and returns what the log says afterwards.
async fn cut_after(dir: &Path, events: u64, sync: SyncMode) -> Result<Result<u64, LogError>, String> {
    let (image, mount) = new_disk(dir, 64)?;
    let log = EventLog::open(mount.0.join("log"), options(sync)).unwrap();
    let mut acknowledged = 0;
    while acknowledged < events {
        let callers = (events - acknowledged).min(8);
        let results = join_all((0..callers).map(|n| log.append(call(u128::from(n) + 1, 300)))).await;
        results.into_iter().for_each(|result| drop(result.unwrap()));
        acknowledged += callers;
    }
    let copy = dir.join("cut.img");
    std::fs::copy(&image, &copy).unwrap();
    drop((log, mount));

    let cut = Mount::new(&copy, &dir.join("cut"))?;
    Ok(survived(&cut.0.join("log")))
}

fn survived(dir: &Path) -> Result<u64, LogError> {
    if !dir.exists() {
        return Ok(0);
    }
    let log = EventLog::open(dir, LogOptions::default())?;
    let report = log.verify()?;
    assert_eq!(report.first_bad, None);
    Ok(report.events)
}

#[tokio::test]
async fn a_power_cut_loses_no_acknowledged_event() {
    // One: the creation itself must be on disk. Several segments' worth: the file grows.
    for events in [1, 9, 500, 5000] {
        let dir = TempDir::new().unwrap();
        match cut_after(dir.path(), events, SyncMode::Data).await {
            Ok(survived) => assert_eq!(survived.unwrap(), events),
            Err(reason) => return skipped("a_power_cut_loses_no_acknowledged_event", &reason),
        }
    }
}

#[tokio::test]
async fn without_the_sync_the_method_finds_the_loss() {
    const EVENTS: u64 = 500;
    let dir = TempDir::new().unwrap();
    match cut_after(dir.path(), EVENTS, SyncMode::FlushOnly).await {
        Ok(Ok(survived)) => assert!(survived < EVENTS, "nothing was lost: the power cut test proves nothing"),
        Ok(Err(error)) => println!("the log does not even open: {error}"),
        Err(reason) => skipped("without_the_sync_the_method_finds_the_loss", &reason),
    }
}

const WRITER_DIR: &str = "STOKER_POWER_CHILD_DIR";
const WRITER_SYNCS: &str = "STOKER_POWER_CHILD_SYNCS";
const WRITER: &str = "cuts_at_any_moment_lose_no_acknowledged_event";

/// The process whose power is cut is this program again.
fn writer(sync: SyncMode) -> impl Fn(&Path) -> Command {
    move |log| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", WRITER, "--nocapture"]).env(WRITER_DIR, log);
        if sync == SyncMode::Data {
            command.env(WRITER_SYNCS, "1");
        }
        command
    }
}

#[test]
fn cuts_at_any_moment_lose_no_acknowledged_event() {
    if let Some(dir) = std::env::var_os(WRITER_DIR) {
        let syncs = std::env::var_os(WRITER_SYNCS).is_some();
        return power::write_until_killed(Path::new(&dir), if syncs { SyncMode::Data } else { SyncMode::FlushOnly });
    }
    let scratch = TempDir::new().unwrap();
    if let Err(reason) = new_disk(scratch.path(), 16) {
        return skipped(WRITER, &reason);
    }
    let Outcome { cuts, acknowledged, missing, unusable, .. } = power::cut(10, writer(SyncMode::Data)).unwrap();
    assert_eq!((cuts, missing, unusable), (10, 0, 0), "of {acknowledged} events");
    assert!(acknowledged > 0, "nothing was written");
    let careless = power::cut(5, writer(SyncMode::FlushOnly)).unwrap();
    assert!(careless.missing > 0, "without the sync nothing was lost: these cuts prove nothing; {careless:?}");
}

#[tokio::test]
async fn a_full_disk_stops_the_log_and_loses_nothing() {
    let dir = TempDir::new().unwrap();
    let (_image, mount) = match new_disk(dir.path(), 24) {
        Ok(disk) => disk,
        Err(reason) => return skipped("a_full_disk_stops_the_log_and_loses_nothing", &reason),
    };
    let ballast = mount.0.join("ballast");
    std::fs::write(&ballast, vec![7; 6 << 20]).unwrap();
    let path = mount.0.join("log");
    let log = EventLog::open(&path, LogOptions::default()).unwrap();
    let mut acknowledged = 0;
    let error = loop {
        match log.append(call(1, 30_000)).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 2000, "the disk never filled up");
    };
    assert!(matches!(error, LogError::Poisoned { .. }), "{error}");
    assert!(acknowledged > 0);
    assert!(matches!(log.append(call(2, 10)).await, Err(LogError::Poisoned { .. })));
    drop(log);

    std::fs::remove_file(&ballast).unwrap();
    let log = EventLog::open(&path, LogOptions::default()).unwrap();
    assert!(log.read_stream(Uuid::from_u128(1)).unwrap().len() >= acknowledged);
    assert_eq!(log.verify().unwrap().first_bad, None);
    log.append(call(2, 10)).await.unwrap();
}
