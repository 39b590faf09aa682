//! The database is opened anew while the log is in use.

use std::ops::ControlFlow;

use bytes::Bytes;
use stoker_worker::log::{Append, EventLog, Expected, IndexChange, LogOptions};
use tempfile::TempDir;

use crate::{any, id, open, runtime, texts};

const OFTEN: usize = 10;

fn reopening(dir: &TempDir) -> EventLog {
    EventLog::open(dir.path().join("log"), LogOptions { reopen_after: OFTEN, ..LogOptions::default() }).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_opened_anew_and_nobody_misses_anything() {
    let dir = TempDir::new().unwrap();
    let log = reopening(&dir);
    let reading = tokio::spawn({
        let log = log.clone();
        async move {
            let mut seen = 0;
            let mut head = log.head();
            while seen < 400 {
                head.wait_for(|head| *head > seen).await.unwrap();
                for record in log.scan(seen + 1, 64).unwrap() {
                    seen += 1;
                    assert_eq!(record.position, seen);
                }
            }
        }
    });
    let mut expected = Vec::new();
    for n in 0..200 {
        let event = format!("event {n}");
        log.set_cursor("reader", n).unwrap();
        log.append(vec![any(id(1), &[&event, &event])]).await.unwrap();
        expected.extend([event.clone(), event]);
    }
    reading.await.unwrap();
    assert_eq!(texts(&log, id(1)), expected);
    assert_eq!(log.cursor("reader").unwrap(), 199);
    assert_eq!(log.verify().unwrap().first_bad, None);
    // sled writes what it starts from when it is opened: its name holds how far that goes.
    let snapshots = std::fs::read_dir(dir.path().join("log")).unwrap().flatten();
    let first = snapshots.map(|e| e.file_name().into_string().unwrap()).find(|name| name.starts_with("snap.")).unwrap();
    assert!(u64::from_str_radix(first.trim_start_matches("snap."), 16).unwrap() > 10_000, "{first}");
    drop(log);
    assert_eq!(texts(&open(dir.path()), id(1)), expected);
}

#[test]
fn who_reads_is_not_cut_off_and_writing_goes_on() {
    let dir = TempDir::new().unwrap();
    let log = reopening(&dir);
    let append = |n: u128| {
        let event = Bytes::from(format!("event {n}"));
        let index = IndexChange::Set(1, 1);
        log.append(vec![Append { stream: id(n), expected: Expected::Any, events: vec![event], index }])
    };
    let runtime = runtime();
    (1..=5).for_each(|n| drop(runtime.block_on(append(n)).unwrap()));
    let mut open = log.open_streams(None);
    assert_eq!(open.next().unwrap().unwrap().stream, id(1));
    let mut walked = 0;
    log.replay(1, |_| {
        walked += 1;
        // Beyond the number at which it would be opened anew, with two readers in the middle of what they read.
        (6..=30).filter(|_| walked == 2).for_each(|n| drop(runtime.block_on(append(n)).unwrap()));
        ControlFlow::Continue(())
    })
    .unwrap();
    // Those that were there at the beginning, and of the others as many as it met.
    assert!(walked == 5 && open.count() >= 4, "{walked}");
    (31..=60).for_each(|n| drop(runtime.block_on(append(n)).unwrap()));
    assert_eq!(log.verify().unwrap().events, 60);
}
