//! `stoker up`: everything in one process.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use stoker_schemas::ImageName;
use stoker_worker::config::Flags;

use crate::cli::CliError;
use crate::compose;

/// How `up` is told what to run.
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// Settings of the worker
    #[command(flatten)]
    pub worker: Flags,
    /// Address of API and pages; beyond this machine only with --tokens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    pub listen: SocketAddr,
    /// Who may use API and pages (`stoker token new`); without it, everybody on this machine
    #[arg(long, env = "STOKER_TOKENS", value_name = "FILE")]
    pub tokens: Option<PathBuf>,
    /// Webhooks in and callbacks out; without it, none
    #[arg(long, env = "STOKER_HOOKS", value_name = "FILE")]
    pub hooks: Option<PathBuf>,
    /// Image of the first VM (default: linux-minimal, or probe with Firecracker)
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<ImageName>,
    /// Boot no first VM
    #[arg(long, conflicts_with = "image")]
    pub no_vm: bool,
    /// End after the first VM's report; exit code 1 when it did not become ready
    #[arg(long)]
    pub once: bool,
}

pub async fn run(args: UpArgs) -> Result<(), CliError> {
    Ok(compose::up(args).await?)
}
