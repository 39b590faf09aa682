//! A process killed while it appends.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use stoker_worker::log::{EventLog, LogOptions};
use tempfile::TempDir;
use uuid::Uuid;

use crate::{any, id, open};

const CHILD_DIR: &str = "STOKER_LOG_CHILD_DIR";

/// Child half of the test below: appends until it is killed, one line per acknowledged event.
fn append_until_killed(dir: &Path) {
    let options = LogOptions { reopen_after: 300, ..LogOptions::default() };
    let log = EventLog::open(dir.join("log"), options).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    for task in 0..16_u128 {
        let log = log.clone();
        runtime.spawn(async move {
            let stream = id(task + 1);
            loop {
                let event = "z".repeat(100);
                let done = log.append(vec![any(stream, &[&event, &event])]).await.unwrap();
                let line = format!("ACK {stream} {}\n", done[0].version);
                std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
            }
        });
    }
    // Compaction rewrites what was acknowledged long ago, so it is killed as well.
    runtime.block_on(async {
        loop {
            log.compact(100).await.unwrap();
        }
    });
}

#[test]
fn kill_nine_loses_no_acknowledged_event() {
    const ROUNDS: usize = 20;
    if let Some(dir) = std::env::var_os(CHILD_DIR) {
        return append_until_killed(Path::new(&dir));
    }
    let dir = TempDir::new().unwrap();
    let mut acknowledged: HashMap<Uuid, u64> = HashMap::new();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::kill_nine_loses_no_acknowledged_event", "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut acks = 0;
        for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
            let Some((stream, version)) = line.strip_prefix("ACK ").and_then(|ack| ack.split_once(' ')) else {
                continue;
            };
            acknowledged.insert(stream.parse().unwrap(), version.parse().unwrap());
            acks += 1;
            if acks == 50 + round * 37 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let log = open(dir.path());
        for (stream, version) in &acknowledged {
            let records = log.read_stream(*stream).unwrap();
            assert!(records.len() as u64 >= *version, "round {round}: {stream} lost events");
            assert_eq!(records.len() % 2, 0, "a call of two events is whole or absent");
        }
        assert_eq!(log.verify().unwrap().first_bad, None, "round {round}");
    }
    assert_eq!(acknowledged.len(), 16);
}
