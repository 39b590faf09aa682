//! `stoker up`: everything in one process.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli::CliError;
use crate::compose;

/// How `up` is told what to run.
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// Address of API and status page; loopback only
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    pub listen: SocketAddr,
    /// Folder of event log, read model, VMs and consoles
    #[arg(long, value_name = "DIR", env = "STOKER_DATA", hide_env_values = true, default_value = ".stoker/data")]
    pub data: PathBuf,
    /// Folder of images
    #[arg(long, value_name = "DIR", env = "STOKER_IMAGES", hide_env_values = true, default_value = ".stoker/images")]
    pub images: PathBuf,
    /// Hypervisor to boot with
    #[arg(long, value_enum, default_value_t = DriverChoice::Auto)]
    pub driver: DriverChoice,
    /// RabbitMQ to use instead of the embedded broker
    #[arg(long, value_name = "URL", env = "STOKER_BROKER", hide_env_values = true)]
    pub broker: Option<String>,
    /// Name of this host (default: the machine's)
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
    /// Pools to serve
    #[arg(long = "pool", value_name = "POOL", default_value = "default")]
    pub pools: Vec<String>,
    /// VMs at once (default: as many as the machine takes)
    #[arg(long, value_name = "N")]
    pub slots: Option<u32>,
    /// Without root: QEMU's user network instead of taps
    #[arg(long)]
    pub unprivileged: bool,
    /// Settings of the worker, in TOML; flags win
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Hypervisors to choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DriverChoice {
    /// The best that works here
    Auto,
    /// Firecracker on KVM
    Firecracker,
    /// QEMU, on KVM or without
    Qemu,
    /// Scripted guests, for trials
    Simulated,
}

pub async fn run(args: UpArgs) -> Result<(), CliError> {
    Ok(compose::up(args).await?)
}
