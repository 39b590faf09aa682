//! What `serve` and `up` are told alike: where API and pages are, and for whom.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use crate::reconcile::{DEFAULT_AFTER_S, MAX_AFTER_S, MIN_AFTER_S};
use crate::work::{DEFAULT_STALLED_AFTER_S, MAX_STALLED_AFTER_S, MIN_STALLED_AFTER_S};

/// How API, pages and webhooks are reached.
#[derive(Debug, Clone, Args)]
pub struct FrontArgs {
    /// Address of API and pages; beyond this machine only with --tokens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    pub listen: SocketAddr,
    /// Who may use API and pages (`stoker token new`); without it, everybody on this machine
    #[arg(long, env = "STOKER_TOKENS", value_name = "FILE")]
    pub tokens: Option<PathBuf>,
    /// Webhooks in and callbacks out; without it, none
    #[arg(long, env = "STOKER_HOOKS", value_name = "FILE")]
    pub hooks: Option<PathBuf>,
    /// Publish a job's message again when no host has taken it for so long and its queue has moved past it
    #[arg(long, env = "STOKER_RECONCILE_AFTER_S", value_name = "SECONDS", default_value_t = DEFAULT_AFTER_S,
          value_parser = clap::value_parser!(u64).range(MIN_AFTER_S..=MAX_AFTER_S))]
    pub reconcile_after_s: u64,
    /// Call the work stalled when jobs wait, hosts have room, and nothing has started for so long
    #[arg(long, env = "STOKER_STALLED_AFTER_S", value_name = "SECONDS", default_value_t = DEFAULT_STALLED_AFTER_S,
          value_parser = clap::value_parser!(u64).range(MIN_STALLED_AFTER_S..=MAX_STALLED_AFTER_S))]
    pub stalled_after_s: u64,
}
