//! Damage behind the log's back: flipped bits, swapped, missing and lost records, a broken index.

use std::path::{Path, PathBuf};

use stoker_producer::{clock, readmodel::ReadModel};

use stoker_worker::log::{Damage, EventLog, Expected, IndexChange, LogError, LogOptions};
use tempfile::TempDir;

use crate::{any, append, id, open, sled_at};

/// A log with six events, each a block of its own, and its blocks changed behind its back.
async fn damaged(
    change: impl FnOnce(&sled::Db, Vec<(sled::IVec, sled::IVec)>),
) -> (TempDir, Result<EventLog, LogError>) {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    for n in 1..=6 {
        log.append(vec![append(id(n % 2 + 10), Expected::Any, &["payload"], IndexChange::Set(1, 1))]).await.unwrap();
    }
    assert_eq!(log.verify().unwrap().first_bad, None);
    drop(log);
    let db = sled_at(dir.path());
    let events = db.scan_prefix("e").map(Result::unwrap).collect();
    change(&db, events);
    drop(db);
    let log = EventLog::open(dir.path().join("log"), LogOptions::default());
    (dir, log)
}

/// What a full disk or a kill leaves of a start.
#[tokio::test]
async fn a_snapshot_that_was_not_finished_keeps_no_log_and_no_rows_closed() {
    let dir = TempDir::new().unwrap();
    for left in ["", "half of a snapshot that was being written"] {
        let log = open(dir.path());
        log.append(vec![append(id(1), Expected::Any, &["payload"], IndexChange::Set(1, 1))]).await.unwrap();
        let head = log.durable();
        drop(log);
        let unfinished = dir.path().join("log").join("snap.FFFFFFFFFFFFFFFF.generating");
        std::fs::write(&unfinished, left).unwrap();
        let log = open(dir.path());
        assert_eq!((log.durable(), log.verify().unwrap().first_bad), (head, None));
        assert!(!unfinished.exists());
    }

    let rows = dir.path().join("rows");
    drop(ReadModel::open(&rows, clock::system()).unwrap());
    let database = database_below(&rows);
    std::fs::write(database.join("snap.FFFFFFFFFFFFFFFF.generating"), "").unwrap();
    ReadModel::open(&rows, clock::system()).unwrap();
}

/// The folder that holds sled's files.
fn database_below(dir: &Path) -> PathBuf {
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        if folder.join("conf").exists() {
            return folder;
        }
        folders.extend(std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).filter(|at| at.is_dir()));
    }
    panic!("no database below {}", dir.display())
}

#[tokio::test]
async fn a_flipped_bit_is_found_and_named() {
    for byte in [0, 5, 12, 20, 39, 47, 50, 65] {
        let (_dir, log) = damaged(|db, events| {
            let (key, mut value) = events[2].clone();
            value[byte] ^= 4;
            db.insert(key, value).unwrap();
        })
        .await;
        let log = log.unwrap();
        let report = log.verify().unwrap();
        let bad = report.first_bad.unwrap_or_else(|| panic!("flip in byte {byte} not found"));
        assert_eq!((bad.position, report.events), (3, 2), "byte {byte}: {bad:?}");
        assert!(bad.stream == Some(id(11)) || byte == 20, "byte {byte}: {bad:?}");
        assert!(matches!(log.scan(1, 10), Err(LogError::Corrupt { position: 3, .. })));
        assert!(matches!(log.read_stream(id(11)), Err(LogError::Corrupt { .. })));
        assert_eq!(log.read_stream(id(10)).unwrap().len(), 3, "the other stream is not affected");
        assert_eq!(log.verify_range(5, 6).unwrap().first_bad, None);
    }
}

#[tokio::test]
async fn swapped_and_missing_records_are_found() {
    let (_dir, log) = damaged(|db, events| {
        db.insert(&events[1].0, &events[3].1).unwrap();
        db.insert(&events[3].0, &events[1].1).unwrap();
    })
    .await;
    let bad = log.unwrap().verify().unwrap().first_bad.unwrap();
    assert_eq!((bad.position, bad.what), (2, Damage::Chain));

    let (_dir, log) = damaged(|db, events| drop(db.remove(&events[3].0).unwrap())).await;
    let bad = log.unwrap().verify().unwrap().first_bad.unwrap();
    assert_eq!((bad.position, bad.what), (4, Damage::Missing));
}

#[tokio::test]
async fn a_lost_end_is_noticed_at_the_next_start() {
    let (dir, log) = damaged(|db, events| drop(db.remove(&events[5].0).unwrap())).await;
    let error = log.unwrap_err();
    assert!(matches!(error, LogError::Truncated { acknowledged: 6, found: 5 }), "{error}");
    let options = LogOptions { accept_truncation: true, ..LogOptions::default() };
    drop(EventLog::open(dir.path().join("log"), options).unwrap());
    let log = open(dir.path());
    assert_eq!(log.scan(1, 10).unwrap().len(), 5, "accepted once, it opens as usual");
}

#[tokio::test]
async fn a_damaged_index_is_found() {
    for prefix in ["h", "o"] {
        let (_dir, log) = damaged(|db, _| {
            let (key, _) = db.scan_prefix(prefix).next().unwrap().unwrap();
            db.remove(key).unwrap();
        })
        .await;
        let bad = log.unwrap().verify().unwrap().first_bad.unwrap();
        assert_eq!(bad.what, Damage::Index, "{prefix}");
    }
}

/// Bits flipped in sled's own file. Most land in bytes that nobody reads again; the others must be
/// found by sled, by the verification or by the witness. Nothing may be lost without a word.
#[tokio::test]
async fn no_bit_of_the_file_flips_without_a_word() {
    let dir = TempDir::new().unwrap();
    let log = open(dir.path());
    for n in 0..40 {
        let events: Vec<String> = (0..25).map(|event| format!("event {n} {event} {}", "y".repeat(200))).collect();
        let events: Vec<&str> = events.iter().map(String::as_str).collect();
        log.append(vec![any(id(n % 5), &events)]).await.unwrap();
    }
    let original = log.scan(1, 2000).unwrap();
    drop(log);
    let file = std::fs::read(dir.path().join("log/db")).unwrap();
    let mut found = 0;
    for round in 0..=60_usize {
        let copy = TempDir::new().unwrap();
        copy_log(&dir.path().join("log"), &copy.path().join("log"));
        let used = file.iter().rposition(|byte| *byte != 0).unwrap();
        let at = (round * 2_654_435_761) % used;
        let mut bytes = file.clone();
        if round > 0 {
            bytes[at] ^= 1 << (round % 8);
        }
        std::fs::write(copy.path().join("log/db"), bytes).unwrap();
        let silent = std::panic::catch_unwind(|| {
            let log = EventLog::open(copy.path().join("log"), LogOptions::default()).ok()?;
            let report = log.verify().ok()?;
            report.first_bad.is_none().then(|| log.scan(1, 2000).ok())?
        });
        match silent {
            Ok(Some(records)) => assert!(records == original, "flip at {at} changed the log without a word"),
            Ok(None) | Err(_) if round > 0 => found += 1,
            Ok(None) | Err(_) => panic!("the copy without a flip must be fine"),
        }
    }
    println!("60 flips: {found} found, the rest in bytes that nobody reads");
    assert!(found > 0);
}

fn copy_log(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.join("blobs")).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}
