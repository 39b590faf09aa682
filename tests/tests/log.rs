//! The event log against a real disk: commits, versions, the index, damage, a killed process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "log/crash.rs"]
mod crash;
#[path = "log/damage.rs"]
mod damage;
#[path = "log/model.rs"]
mod model;
#[path = "log/reopened.rs"]
mod reopened;

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use stoker_worker::log::{
    Append, EventLog, Expected, IndexChange, LogError, LogOptions, MAX_CALL_EVENTS, MAX_EVENT_BYTES, SyncMode,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use uuid::Uuid;

/// Its database is opened anew every few events, which must change nothing.
fn open(dir: &Path) -> EventLog {
    EventLog::open(dir.join("log"), LogOptions { reopen_after: 20, ..LogOptions::default() }).unwrap()
}

/// The database behind the log's back. sled's lock may outlive its last handle by a moment.
fn sled_at(dir: &Path) -> sled::Db {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match sled::open(dir.join("log")) {
            Err(sled::Error::Io(_)) if Instant::now() < deadline => std::thread::yield_now(),
            other => return other.unwrap(),
        }
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn append(stream: Uuid, expected: Expected, events: &[&str], index: IndexChange) -> Append {
    let events = events.iter().map(|event| Bytes::copy_from_slice(event.as_bytes())).collect();
    Append { stream, expected, events, index }
}

fn any(stream: Uuid, events: &[&str]) -> Append {
    append(stream, Expected::Any, events, IndexChange::Keep)
}

fn texts(log: &EventLog, stream: Uuid) -> Vec<String> {
    let records = log.read_stream(stream).unwrap();
    records.iter().map(|record| String::from_utf8(record.payload.to_vec()).unwrap()).collect()
}

#[tokio::test]
async fn positions_and_versions_are_dense_across_a_restart() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    let done = log.append(vec![any(id(1), &["a", "b"]), any(id(2), &["x"])]).await.unwrap();
    assert_eq!((done[0].last_position, done[0].version, done[0].events), (2, 2, 2));
    assert_eq!((done[1].last_position, done[1].version), (3, 1));
    drop(log);
    let log = open(dir.path());
    assert_eq!(*log.head().borrow(), 3);
    let done = log.append(vec![any(id(1), &["c"])]).await.unwrap();
    assert_eq!((done[0].last_position, done[0].version), (4, 3));
    assert_eq!(texts(&log, id(1)), ["a", "b", "c"]);
    assert_eq!(log.read_stream_after(id(1), 2).unwrap().len(), 1);
    assert_eq!(texts(&log, id(9)), [""; 0]);
    let last = log.last(2).unwrap();
    assert_eq!(last.iter().map(|record| record.position).collect::<Vec<_>>(), [3, 4]);
}

#[tokio::test]
async fn a_wrong_version_rejects_its_call_and_no_other() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    let at = |version, event| append(id(1), Expected::Version(version), &[event], IndexChange::Keep);
    let calls = vec![
        vec![at(0, "first")],
        vec![any(id(2), &["not written"]), at(0, "late")],
        vec![at(1, "second"), at(2, "third")],
        vec![any(id(3), &["neighbour"])],
    ];
    let results = join_all(calls.into_iter().map(|call| log.append(call))).await;
    let rejected = results[1].as_ref().unwrap_err();
    assert!(
        matches!(rejected, LogError::WrongVersion { stream, expected: 0, actual: 1 } if *stream == id(1)),
        "{rejected}"
    );
    assert!(results.iter().enumerate().all(|(call, result)| result.is_ok() || call == 1), "{results:?}");
    assert_eq!(texts(&log, id(1)), ["first", "second", "third"]);
    assert_eq!(texts(&log, id(2)), [""; 0], "a rejected call leaves nothing behind");
    assert_eq!(log.verify().unwrap().events, 4);
}

#[tokio::test]
async fn callers_share_commits() {
    const CALLERS: u128 = 400;
    let dir = TempDir::new().unwrap();
    // Every commit after the fortieth fails: 400 calls succeed only if they are grouped.
    let options = LogOptions { sync: SyncMode::FailAfter(40), ..LogOptions::default() };
    let log = EventLog::open(dir.path().join("log"), options).unwrap();
    let results = join_all((1..=CALLERS).map(|n| log.append(vec![any(id(n), &["event"])]))).await;
    let mut positions: Vec<u64> = results.into_iter().map(|result| result.unwrap()[0].last_position).collect();
    positions.sort_unstable();
    assert_eq!(positions, (1..=CALLERS as u64).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_small_queue_makes_callers_wait_and_loses_nothing() {
    let dir = TempDir::new().unwrap();
    let options = LogOptions { queue_calls: 1, max_batch: 1, ..LogOptions::default() };
    let log = EventLog::open(dir.path().join("log"), options).unwrap();
    let results = join_all((1..=50).map(|n| log.append(vec![any(id(n), &["event"])]))).await;
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(log.scan(1, 100).unwrap().len(), 50);
}

#[tokio::test]
async fn a_failed_write_is_never_acknowledged_and_stops_the_log() {
    let dir = TempDir::new().unwrap();
    let options = LogOptions { sync: SyncMode::FailAfter(1), ..LogOptions::default() };
    let log = EventLog::open(dir.path().join("log"), options).unwrap();
    log.append(vec![any(id(1), &["kept"])]).await.unwrap();
    for _ in 0..2 {
        let error = log.append(vec![any(id(1), &["unsure"])]).await.unwrap_err();
        assert!(matches!(&error, LogError::Poisoned { cause } if cause.contains("injected")), "{error}");
        assert_eq!(log.writable().map_err(|e| e.to_string()), Err(error.to_string()));
    }
    assert_eq!(*log.head().borrow(), 1);
    assert_eq!(log.scan(1, 10).unwrap().len(), 1, "what is not durable is not read");
    assert_eq!(texts(&log, id(1)), ["kept"]);
    drop(log);
    assert_eq!(texts(&open(dir.path()), id(1))[0], "kept");
}

#[tokio::test]
async fn sizes_are_limited() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    let sized = |bytes, count| Append { events: vec![Bytes::from(vec![7; bytes]); count], ..any(id(1), &[]) };
    let error = log.append(vec![sized(MAX_EVENT_BYTES + 1, 1)]).await.unwrap_err();
    assert!(matches!(error, LogError::EventTooLarge { .. }), "{error}");
    let error = log.append(vec![sized(1, MAX_CALL_EVENTS + 1)]).await.unwrap_err();
    assert!(matches!(error, LogError::CallTooLarge { .. }), "{error}");
    let error = log.append(vec![sized(1, 0)]).await.unwrap_err();
    assert!(matches!(error, LogError::UnknownStream { .. }), "{error}");
    let error = log.set_cursor("", 1).unwrap_err();
    assert!(matches!(error, LogError::CursorName { .. }), "{error}");
    assert_eq!(*log.head().borrow(), 0);
}

/// sled moves large pages out of its log into blob files, which our sync does not cover.
#[tokio::test]
async fn the_largest_events_stay_in_the_synced_file() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    for n in 0..12_u8 {
        let sizes = [MAX_EVENT_BYTES, 6 * 1024, 5 * 1024, MAX_EVENT_BYTES - usize::from(n)];
        let events = (0..40).map(|event| Bytes::from(vec![n; sizes[event % 4]])).collect();
        log.append(vec![Append { events, ..any(id(1), &[]) }]).await.unwrap();
    }
    while log.compact(1000).await.unwrap().up_to < 480 {}
    assert_eq!(std::fs::read_dir(dir.path().join("log/blobs")).unwrap().count(), 0);
    let records = log.read_stream(id(1)).unwrap();
    assert_eq!(records.len(), 480);
    assert!(
        records.iter().all(|record| record.payload.iter().all(|byte| u64::from(*byte) == (record.position - 1) / 40))
    );
    drop(log);
    let log = open(dir.path());
    assert_eq!(log.verify().unwrap().first_bad, None);
    assert_eq!(log.append(vec![any(id(1), &["next"])]).await.unwrap()[0].last_position, 481);
}

#[tokio::test]
async fn a_second_owner_is_refused() {
    let dir = TempDir::new().unwrap();
    let _log = open(dir.path());
    let error = EventLog::open(dir.path().join("log"), LogOptions::default()).unwrap_err();
    assert!(matches!(error, LogError::Locked { .. }), "{error}");
}

#[test]
fn another_format_is_refused() {
    let dir = TempDir::new().unwrap();
    drop(open(dir.path()));
    let db = sled_at(dir.path());
    db.insert("mformat", &2_u32.to_be_bytes()).unwrap();
    drop(db);
    let error = EventLog::open(dir.path().join("log"), LogOptions::default()).unwrap_err();
    assert!(matches!(error, LogError::Format { found: 2, supported: 1 }), "{error}");
}

#[tokio::test]
async fn an_interrupted_creation_is_started_over() {
    let dir = TempDir::new().unwrap();
    let draft = dir.path().join("log.creating");
    std::fs::create_dir(&draft).unwrap();
    // What a power cut leaves of sled's creation (facts of a real cut): files without content.
    std::fs::write(draft.join("conf"), "").unwrap();
    std::fs::write(draft.join("db"), "").unwrap();
    let log = open(dir.path());
    log.append(vec![any(id(1), &["works"])]).await.unwrap();
    assert!(!draft.exists());
}

#[tokio::test]
async fn the_index_lists_open_streams_in_order() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    let set = |n, tag, sort| append(id(n), Expected::Any, &["event"], IndexChange::Set(tag, sort));
    log.append(vec![set(1, 2, 5), set(2, 1, 9), set(3, 1, 300), set(4, 1, 10)]).await.unwrap();
    log.append(vec![append(id(4), Expected::Any, &[], IndexChange::Remove), set(1, 1, 1), any(id(2), &["more"])])
        .await
        .unwrap();
    drop(log);
    let log = open(dir.path());
    let order = |tag| log.open_streams(tag).map(|open| open.unwrap()).collect::<Vec<_>>();
    let all = order(None);
    assert_eq!(all.iter().map(|open| open.stream).collect::<Vec<_>>(), [id(1), id(2), id(3)]);
    assert_eq!((all[1].tag, all[1].sort, all[1].first_position, all[1].last_version), (1, 9, 2, 2));
    assert_eq!(order(Some(2)), []);
    assert_eq!(order(Some(1)).len(), 3);
}

#[tokio::test]
async fn cursors_ride_along_and_survive() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    assert_eq!(log.cursor("outbox").unwrap(), 0);
    log.set_cursor("outbox", 7).unwrap();
    log.set_cursor("view", 8).unwrap();
    assert_eq!(log.cursor("outbox").unwrap(), 7);
    log.append(vec![any(id(1), &["event"])]).await.unwrap();
    log.set_cursor("outbox", 3).unwrap();
    log.flush_cursors().await.unwrap();
    log.set_cursor("view", 9).unwrap();
    drop(log);
    let log = open(dir.path());
    assert_eq!((log.cursor("outbox").unwrap(), log.cursor("view").unwrap()), (3, 9), "rewound, and written at close");
    assert_eq!(*log.head().borrow(), 1);
}

#[tokio::test]
async fn the_head_advances_for_those_who_tail() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    let mut head = log.head();
    let appending = tokio::spawn(log.append(vec![any(id(1), &["a", "b"])]));
    let seen = *head.wait_for(|position| *position >= 2).await.unwrap();
    assert_eq!(log.scan(1, 10).unwrap().len() as u64, seen);
    appending.await.unwrap().unwrap();
}

#[tokio::test]
async fn compaction_keeps_every_byte_and_readers_going() {
    const EVENTS: u64 = 600;
    let dir = TempDir::new().unwrap();
    let log = EventLog::open(dir.path().join("log"), LogOptions { sync: SyncMode::FlushOnly, ..LogOptions::default() })
        .unwrap();
    for n in 0..EVENTS {
        let text = format!("event {n} {}", "x".repeat(n as usize % 700));
        log.append(vec![any(id(u128::from(n % 7)), &[&text])]).await.unwrap();
    }
    let before = (log.scan(1, 10_000).unwrap(), log.read_stream(id(3)).unwrap(), log.verify().unwrap());
    // Compact in the middle of a walk: the reader must not miss the blocks that moved.
    let mut seen = 0;
    let walking = log.clone();
    walking
        .replay(1, |record| {
            seen += 1;
            assert_eq!(record.position, seen);
            if seen == 100 {
                let log = log.clone();
                let moved =
                    std::thread::spawn(move || runtime().block_on(log.compact(10_000)).unwrap()).join().unwrap();
                assert!(moved.events > 400, "{moved:?}");
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen, EVENTS);
    drop((walking, log));
    let log = open(dir.path());
    assert_eq!((log.scan(1, 10_000).unwrap(), log.read_stream(id(3)).unwrap(), log.verify().unwrap()), before);
    assert!((blocks(dir.path(), log) as u64) < EVENTS / 3, "the blocks were merged");
}

fn blocks(dir: &Path, log: EventLog) -> usize {
    drop(log);
    sled_at(dir).scan_prefix("e").count()
}

/// Prints how long a start takes with a million events; the numbers are for people to judge.
#[tokio::test]
async fn a_million_events_open_quickly() {
    const STREAMS: u128 = 50_000;
    const OPEN: u128 = 1_000;
    const EVENTS: usize = 20;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("log");
    let log = EventLog::open(&path, LogOptions { sync: SyncMode::FlushOnly, ..LogOptions::default() }).unwrap();
    let events = vec![Bytes::from(vec![b'e'; 300]); EVENTS];
    for first in (1..=STREAMS).step_by(50) {
        let index = if first <= OPEN { IndexChange::Set(1, first as u64) } else { IndexChange::Remove };
        let call = (first..first + 50).map(|n| Append { events: events.clone(), index, ..any(id(n), &[]) }).collect();
        log.append(call).await.unwrap();
    }
    drop(log);
    let start = Instant::now();
    let log = EventLog::open(&path, LogOptions::default()).unwrap();
    let opened = start.elapsed();
    let open: Vec<_> = log.open_streams(None).map(Result::unwrap).collect();
    assert_eq!(open.len() as u128, OPEN);
    for stream in &open {
        assert_eq!(log.read_stream(stream.stream).unwrap().len(), EVENTS);
    }
    println!("1 M events: open {opened:?}, with the {OPEN} open streams read {:?}", start.elapsed());
    assert_eq!(*log.head().borrow() as usize, STREAMS as usize * EVENTS);
}
