//! `stoker pools` and `stoker pool`: how pools stand; pausing, resuming and limiting one.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use stoker_schemas::Phase;

use crate::cli::CliError;
use crate::cli::printer::Printer;
use crate::cli::settings::Settings;
use crate::http::PoolAnswer;
use crate::readmodel::PoolView;

/// Flags of `pool`.
#[derive(Debug, Args)]
pub struct PoolArgs {
    #[command(subcommand)]
    command: PoolCommand,
}

#[derive(Debug, Subcommand)]
enum PoolCommand {
    /// Start no new attempts of a pool; what boots or is up stays
    Pause(Which),
    /// Start attempts of a pool again
    Resume(Which),
    /// Let each host have at most so many VMs of a pool
    Limit {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        max: Max,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Max {
    /// VMs on each host
    #[arg(long, value_name = "N")]
    max_per_host: Option<u32>,
    /// As many as fit
    #[arg(long)]
    none: bool,
}

#[derive(Debug, Args)]
struct Which {
    /// Name of the pool
    pool: String,
    /// Why, for whoever reads the log
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

/// Carries out `pools`.
pub async fn list(settings: &Settings, printer: &mut Printer) -> Result<(), CliError> {
    let pools: Vec<PoolView> = settings.client.get(&["v1", "pools"], &[]).await?;
    if printer.json() {
        return printer.value(&pools);
    }
    if pools.is_empty() {
        return printer.note("no pools; a host names those it serves, start one with `stoker up` or `stoker-worker`");
    }
    let header =
        ["STATUS", "POOL", "HOSTS", "MAX/HOST", "WAITING", "QUEUED", "BOOTING", "READY", "RETRYING", "DEAD", "WHY"];
    printer.table(&header, pools.iter().map(row).collect())
}

fn row(pool: &PoolView) -> Vec<String> {
    let jobs = |phase| pool.jobs.get(&phase).copied().unwrap_or(0).to_string();
    let said = pool.by.iter().map(|by| format!("by {by}"));
    let why: Vec<_> = said.chain([pool.reason.clone()]).filter(|part| !part.is_empty()).collect();
    let mut row = vec![
        if pool.paused { "paused" } else { "up" }.to_owned(),
        pool.name.clone(),
        pool.hosts.len().to_string(),
        pool.max_per_host.map(|n| n.to_string()).unwrap_or_default(),
        pool.waiting.map(|n| n.to_string()).unwrap_or_default(),
    ];
    row.extend([Phase::Queued, Phase::Booting, Phase::Ready, Phase::Retrying, Phase::Dead].map(jobs));
    row.push(why.join(": "));
    row
}

/// Carries out `pool`.
pub async fn run(args: PoolArgs, settings: &Settings, printer: &mut Printer) -> Result<(), CliError> {
    let answer = match args.command {
        PoolCommand::Pause(Which { pool, reason }) => wish(&pool, "pause", &reason, settings).await?,
        PoolCommand::Resume(Which { pool, reason }) => wish(&pool, "resume", &reason, settings).await?,
        PoolCommand::Limit { which: Which { pool, reason }, max: Max { max_per_host, none: _ } } => {
            let body = json!({ "max_per_host": max_per_host, "reason": reason });
            settings.client.put(&["v1", "pools", &pool, "limit"], &body).await?
        }
    };
    if printer.json() {
        return printer.value(&answer);
    }
    printer.line(&text(&answer))
}

async fn wish(pool: &str, verb: &str, reason: &str, settings: &Settings) -> Result<PoolAnswer, CliError> {
    let body: Value = json!({ "reason": reason });
    settings.client.post(&["v1", "pools", pool, verb], &body).await
}

fn text(answer: &PoolAnswer) -> String {
    let state = if answer.paused { "paused" } else { "takes jobs" };
    let limit = answer.max_per_host.map(|n| format!(", at most {n} VMs on each host")).unwrap_or_default();
    let before = if answer.events.is_empty() { " (as before)" } else { "" };
    format!("{}  {state}{limit}{before}", answer.pool)
}
