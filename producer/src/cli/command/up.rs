//! `stoker up`: everything in one process.

use clap::Args;
use stoker_schemas::ImageName;
use stoker_worker::config::Flags;

use super::front::FrontArgs;
use crate::cli::CliError;
use crate::compose;

/// How `up` is told what to run.
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// Settings of the worker
    #[command(flatten)]
    pub worker: Flags,
    /// API, pages and webhooks
    #[command(flatten)]
    pub front: FrontArgs,
    /// Image of the first VM (default: linux-minimal, or probe with Firecracker)
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<ImageName>,
    /// Boot no first VM
    #[arg(long, conflicts_with = "image")]
    pub no_vm: bool,
    /// Log file; - for stderr (default: stoker.log in the data folder)
    #[arg(long, env = "STOKER_LOG_FILE", value_name = "FILE")]
    pub log: Option<std::path::PathBuf>,
    /// End after the first VM's report; exit code 1 when it did not become ready
    #[arg(long)]
    pub once: bool,
}

pub async fn run(args: UpArgs) -> Result<(), CliError> {
    Ok(compose::up(args).await?)
}
