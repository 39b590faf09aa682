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
#[path = "chaos/creeping.rs"]
mod creeping;
#[path = "chaos/dead_letters.rs"]
mod dead_letters;
#[path = "chaos/full_queue.rs"]
mod full_queue;
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
#[path = "chaos/table.rs"]
mod table;
#[path = "chaos/unusable.rs"]
mod unusable;

use std::time::Duration;

/// A node needs about five seconds to start, on a busy machine several times that; clients wait
/// before they connect again.
const PATIENCE: Duration = Duration::from_secs(120);
