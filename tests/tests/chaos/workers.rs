//! Real workers under load: killed, frozen, without room for their log, with a log that cannot be written, without
//! files to open.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use stoker_tests::{setting, within};

use crate::{
    disk::Disk,
    fleet::Fleet,
    node::Node,
    table::{Row, times},
};

/// Jobs confirmed between two faults.
const JOBS_BETWEEN: usize = 30;
/// How long a fault lasts that a worker may survive.
const LASTS: Duration = Duration::from_secs(5);
/// Starts of a worker before its disk is mended: it meets the fault at its start, too.
const STARTS: usize = 3;
/// The usual limit of a process, and one that it is beyond from the start.
const FILES: u64 = 1024;
const NO_FILES: u64 = 3;

async fn needs(test: &str) -> Option<(PathBuf, Node)> {
    let programs = setting(test, "STOKER_TEST_BIN_DIR")?;
    Some((programs, Node::start(test).await?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_killed_loses_nothing() {
    let Some((programs, node)) = needs("a_worker_that_is_killed_loses_nothing").await else { return };
    let mut row = Row::new("worker killed (kill -9) and started again, its VMs die with it");
    let data = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&programs, &node.url, &[data.path()]).await;
    for _ in 0..times("WORKER_KILLED", 2, 10) {
        fleet.goes_on(JOBS_BETWEEN).await;
        let begun = Instant::now();
        fleet.workers[0].signal("-KILL").await;
        assert!(fleet.workers[0].ends_within(LASTS).await, "it lives");
        row.recovered(fleet.works_again(begun).await);
    }
    row.end(fleet.end(&node).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; scripts/dev chaos runs it"]
async fn a_worker_that_freezes_holds_up_nothing_and_doubles_nothing() {
    let test = "a_worker_that_freezes_holds_up_nothing_and_doubles_nothing";
    let Some((programs, node)) = needs(test).await else { return };
    let mut row = Row::new("one of two workers frozen beyond the heartbeat, then thawed");
    let data = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let fleet = Fleet::start(&programs, &node.url, &[data[0].path(), data[1].path()]).await;
    for _ in 0..times("WORKER_FROZEN", 1, 3) {
        fleet.goes_on(JOBS_BETWEEN).await;
        let begun = Instant::now();
        fleet.workers[0].signal("-STOP").await;
        within("RabbitMQ gives up the frozen worker", node.has_no_consumer("stoker.host.w-1")).await;
        row.recovered(fleet.works_again(begun).await);
        fleet.workers[0].signal("-CONT").await;
    }
    fleet.goes_on(JOBS_BETWEEN).await;
    row.end(fleet.end(&node).await);
}

/// `error` is what the worker must meet.
async fn fails_on(disk: Disk, error: &str, programs: PathBuf, node: Node, mut row: Row, times: usize) {
    let fleet = Fleet::start(&programs, &node.url, &[&disk.path]).await;
    for _ in 0..times {
        fleet.goes_on(JOBS_BETWEEN).await;
        disk.fail();
        // It may end, and be started again and again, or wait; both are right, as long as it comes back.
        while fleet.workers[0].ends_within(LASTS).await && fleet.workers[0].starts() % STARTS != 0 {}
        disk.recover();
        row.recovered(fleet.works_again(Instant::now()).await);
    }
    let said = fleet.workers[0].said();
    assert!(said.contains(error), "the disk did not fail as it was to: {said}");
    row.end(fleet.end(&node).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_loses_nothing() {
    let test = "a_full_disk_loses_nothing";
    let Some((programs, node)) = needs(test).await else { return };
    let Some(disk) = Disk::that_fills_up(test) else { return };
    fails_on(
        disk,
        "(os error 28)",
        programs,
        node,
        Row::new("disk of the log full (ENOSPC)"),
        times("DISK_FULL", 1, 5),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "as with a full disk; scripts/dev chaos runs it"]
async fn a_disk_that_fails_loses_nothing() {
    let test = "a_disk_that_fails_loses_nothing";
    let Some((programs, node)) = needs(test).await else { return };
    let Some(disk) = Disk::that_fails(test) else { return };
    fails_on(
        disk,
        "(os error 28)",
        programs,
        node,
        Row::new("disk below the log full (ENOSPC when written back)"),
        times("DISK_FAILS", 1, 5),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_without_files_to_open_comes_back() {
    let Some((programs, node)) = needs("a_worker_without_files_to_open_comes_back").await else { return };
    let mut row = Row::new("no file left to open (RLIMIT_NOFILE) while the broker's connections end");
    let data = tempfile::tempdir().unwrap();
    let fleet = Fleet::start(&programs, &node.url, &[data.path()]).await;
    for _ in 0..times("NO_FILES", 1, 4) {
        fleet.goes_on(JOBS_BETWEEN).await;
        fleet.workers[0].limit_files(NO_FILES).await;
        node.ctl(&["close_all_connections", "chaos"]).await;
        let ended = fleet.workers[0].ends_within(LASTS).await;
        eprintln!("the worker {}", if ended { "ended" } else { "waits" });
        if !ended {
            fleet.workers[0].limit_files(FILES).await;
        }
        row.recovered(fleet.works_again(Instant::now()).await);
    }
    row.end(fleet.end(&node).await);
}
