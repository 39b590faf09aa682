//! Jobs while their broker dies (kill -9), freezes or falls apart: under load, again and again, what was confirmed is
//! booted, once; a node that lost its history by it stops no work; and who enqueues over HTTP meanwhile
//! gets a clear answer.
//!
//! The suite does each a few times. `scripts/dev chaos` does it often (`STOKER_CHAOS_TIMES`) and prints the table.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a failed expectation is a failed test")]

#[path = "chaos/cluster.rs"]
mod cluster;
#[path = "chaos/cluster_nodes.rs"]
mod cluster_nodes;
#[path = "chaos/crashes.rs"]
mod crashes;
#[path = "chaos/creeping.rs"]
mod creeping;
#[path = "chaos/dead_letters.rs"]
mod dead_letters;
#[path = "chaos/disk.rs"]
mod disk;
#[path = "chaos/fleet.rs"]
mod fleet;
#[path = "chaos/full_queue.rs"]
mod full_queue;
#[path = "chaos/guests.rs"]
mod guests;
#[path = "chaos/host.rs"]
mod host;
#[path = "chaos/kills.rs"]
mod kills;
#[path = "chaos/last_word.rs"]
mod last_word;
#[path = "chaos/load.rs"]
mod load;
#[path = "chaos/lost_history.rs"]
mod lost_history;
#[path = "chaos/node.rs"]
mod node;
#[path = "chaos/outages.rs"]
mod outages;
#[path = "chaos/producers.rs"]
mod producers;
#[path = "chaos/server.rs"]
mod server;
#[path = "e2e/stage.rs"]
#[allow(dead_code, reason = "each suite uses its part")]
mod stage;
#[path = "chaos/table.rs"]
mod table;
#[path = "chaos/unusable.rs"]
mod unusable;
#[path = "chaos/upgrade.rs"]
mod upgrade;
#[path = "chaos/worker.rs"]
mod worker;
#[path = "chaos/workers.rs"]
mod workers;

use std::time::Duration;

use tracing_subscriber::{
    Layer as _,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

/// A node needs about five seconds to start, on a busy machine several times that; clients wait
/// before they connect again.
const PATIENCE: Duration = Duration::from_secs(120);

/// File that keeps what workers and brokers' clients say meanwhile, for whoever looks for the reason of a failure.
const LOG: &str = "STOKER_CHAOS_LOG";

/// From now on it is kept, if it is asked for; the first call counts.
fn record() {
    let Some(file) = std::env::var_os(LOG) else { return };
    let file = std::fs::File::options().append(true).create(true).open(file).unwrap();
    let wanted = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_targets(["stoker_worker", "stoker_producer", "chaos"].map(|target| (target, LevelFilter::DEBUG)));
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::sync::Mutex::new(file));
    let _ = tracing_subscriber::registry().with(lines.with_filter(wanted)).try_init();
}
