//! `stoker serve`: API and pages over a RabbitMQ.

use std::path::PathBuf;

use clap::Args;

use super::front::FrontArgs;
use crate::cli::CliError;
use crate::compose::{self, DEFAULT_SERVE_DATA};

/// How `serve` is told what to serve.
#[derive(Debug, Clone, Args)]
#[command(after_help = "It reads everything from the broker's history, so its folder may be lost, and several may \
                        run at once, each with a folder of its own. While the broker is away it shows what it knew.")]
pub struct ServeArgs {
    /// RabbitMQ, amqp://host:port/vhost; with a password better in the environment, where ps does not show it
    #[arg(long, env = "STOKER_BROKER", value_name = "URL", hide_env_values = true)]
    pub broker: String,
    /// CA of an amqps:// broker (PEM), trusted besides the host's own
    #[arg(long, env = "STOKER_BROKER_CA", value_name = "FILE")]
    pub broker_ca: Option<PathBuf>,
    /// Folder for what was read
    #[arg(long, env = "STOKER_DATA", value_name = "DIR", default_value = DEFAULT_SERVE_DATA)]
    pub data: PathBuf,
    /// API, pages and webhooks
    #[command(flatten)]
    pub front: FrontArgs,
}

pub async fn run(args: ServeArgs) -> Result<(), CliError> {
    Ok(compose::serve(args).await?)
}
