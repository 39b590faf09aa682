//! One host under load whose worker dies again and again, while its VMs live on.

use std::time::{Duration, Instant};

use stoker_schemas::Time;
use stoker_worker::clock::Clock;

use crate::{
    load::Load,
    node::Node,
    table::{Row, times},
};

/// Jobs confirmed between two crashes.
const JOBS_BETWEEN: usize = 20;
/// How far clocks are apart.
const HOUR: Duration = Duration::from_secs(3600);

/// Ends it at any point of whatever it does; the next one has this clock.
async fn crash_and_go_on(load: Load, row: &mut Row, clock: Clock) -> Load {
    load.goes_on(JOBS_BETWEEN).await;
    let begun = Instant::now();
    let load = load.crash_and_restart(clock).await;
    row.recovered(load.works_again(begun).await);
    load
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_dies_loses_and_doubles_nothing() {
    let Some(node) = Node::start("a_worker_that_dies_loses_and_doubles_nothing").await else { return };
    let mut row = Row::new("worker ended at any point, its VMs live on");
    let mut load = Load::start_gently(&node.url).await;
    for _ in 0..times("WORKER_DIES", 3, 30) {
        load = crash_and_go_on(load, &mut row, Clock::system()).await;
    }
    row.end(load.end(&node).await);
}

/// This much before or after what the machine says.
fn shifted(by: Duration, back: bool) -> Clock {
    let now = Clock::system().now().unix_micros();
    let by = i64::try_from(by.as_micros()).unwrap();
    Clock::starting_at(Time::from_unix_micros(if back { now - by } else { now + by }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the simulation does it, too; scripts/dev chaos runs it"]
async fn clocks_that_step_by_an_hour_change_nothing() {
    let Some(node) = Node::start("clocks_that_step_by_an_hour_change_nothing").await else { return };
    let mut row = Row::new("worker's clock steps by two hours while it restarts, the producers' the other way");
    let mut load = Load::start_gently(&node.url).await;
    for n in 0..times("CLOCK_STEPS", 2, 10) {
        let back = n % 2 == 0;
        load.set_producers_clock(shifted(HOUR, !back));
        load = crash_and_go_on(load, &mut row, shifted(HOUR, back)).await;
    }
    row.end(load.end(&node).await);
}
