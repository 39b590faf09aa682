//! What `serve` and `up` are told alike: where API and pages are, and for whom.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

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
}
