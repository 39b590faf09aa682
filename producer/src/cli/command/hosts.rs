//! `stoker hosts`: who runs VMs.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::cli::CliError;
use crate::cli::printer::Printer;
use crate::cli::settings::Settings;
use crate::readmodel::{HostView, WarmView};

/// Flags of `hosts`.
#[derive(Debug, Args)]
pub struct HostsArgs {
    #[command(subcommand)]
    command: Option<HostsCommand>,
}

#[derive(Debug, Subcommand)]
enum HostsCommand {
    /// List hosts (the default)
    List,
    /// Ask a host to take no more jobs; its VMs keep running
    Drain {
        /// Name of the host
        host: String,
        /// Why, for whoever reads the log
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
}

pub async fn run(args: HostsArgs, settings: &Settings, printer: &mut Printer) -> Result<(), CliError> {
    match args.command {
        None | Some(HostsCommand::List) => list(settings, printer).await,
        Some(HostsCommand::Drain { host, reason }) => {
            let path = ["v1", "hosts", &host, "drain"];
            let answer: Value = settings.client.post(&path, &json!({ "reason": reason })).await?;
            if printer.json() {
                return printer.value(&answer);
            }
            printer.line(&format!("{host}  drain accepted"))
        }
    }
}

async fn list(settings: &Settings, printer: &mut Printer) -> Result<(), CliError> {
    let hosts: Vec<HostView> = settings.client.get(&["v1", "hosts"], &[]).await?;
    if printer.json() {
        return printer.value(&hosts);
    }
    if hosts.is_empty() {
        return printer.note("no hosts; start one with `stoker up` or `stoker-worker`");
    }
    let row = |h: &HostView| {
        vec![
            h.status.as_str().to_owned(),
            h.name.clone(),
            format!("{}/{}", h.booting + h.ready, h.slots),
            h.booting.to_string(),
            h.ready.to_string(),
            warm(h),
            h.pools.join(","),
            h.hypervisor.clone(),
            h.version.clone(),
        ]
    };
    let header = ["STATUS", "HOST", "SLOTS", "BOOTING", "READY", "WARM", "POOLS", "HYPERVISOR", "VERSION"];
    printer.table(&header, hosts.iter().map(row).collect())
}

/// How many VMs wait for a job, of how many that are kept.
fn warm(host: &HostView) -> String {
    if host.warm.is_empty() {
        return "-".to_owned();
    }
    let sum = |of: fn(&WarmView) -> u32| host.warm.iter().map(of).sum::<u32>();
    format!("{}/{}", sum(|kind| kind.ready), sum(|kind| kind.wanted))
}
