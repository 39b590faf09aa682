//! What a power cut leaves of the event log.
//!
//! The log is written on an ext4 file system in an image file. At the instant of the last
//! acknowledgement the image is copied: that copy is what the disk would hold had the power failed then.
//! It is mounted and opened, and every acknowledged event must be there. A second test runs the same
//! method without our `fdatasync` and must find loss, so the first one is able to fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use futures_util::future::join_all;
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

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    output.status.success().then_some(()).ok_or_else(|| format!("{program}: {}", said.trim()))
}

/// A mounted image; unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(image: &Path, at: &Path) -> Result<Self, String> {
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

fn new_disk(dir: &Path, megabytes: u64) -> Result<(PathBuf, Mount), String> {
    let image = dir.join("disk.img");
    let file = std::fs::File::create(&image).map_err(|error| error.to_string())?;
    file.set_len(megabytes << 20).map_err(|error| error.to_string())?;
    run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()])?;
    let mount = Mount::new(&image, &dir.join("disk"))?;
    // What is there before the test is on disk before the test.
    run("sync", &["-f", mount.0.to_str().unwrap()])?;
    Ok((image, mount))
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
