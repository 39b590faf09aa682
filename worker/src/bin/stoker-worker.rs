//! `stoker-worker`: a host agent of its own, fed by RabbitMQ.

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use stoker_worker::config::{Config, Flags};
use stoker_worker::host::{Host, HostError};
use stoker_worker::{doctor, logging, signals};

/// Runs Stoker's VMs on this host.
#[derive(Debug, Parser)]
#[command(name = "stoker-worker", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take jobs from the broker until asked to end (SIGTERM drains, a second one ends at once)
    Run(Run),
    /// Look at everything the settings need, and say what to do about what is missing
    Doctor(Doctor),
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    flags: Flags,
    /// Only check the settings
    #[arg(long)]
    check_config: bool,
}

#[derive(Debug, Args)]
struct Doctor {
    #[command(flatten)]
    flags: Flags,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Exit codes, as for the whole of Stoker.
mod code {
    pub(super) const USAGE: u8 = 2;
    pub(super) const SYSTEM: u8 = 3;
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(run) => start(run),
        Command::Doctor(doctor) => examine(doctor),
    }
}

fn start(run: Run) -> ExitCode {
    let config = match Config::resolve(run.flags) {
        Ok(config) => config,
        Err(errors) => return fail(code::USAGE, &errors),
    };
    if run.check_config {
        eprintln!("settings of host {} are fine", config.host);
        return ExitCode::SUCCESS;
    }
    logging::start();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(code::SYSTEM, &error),
    };
    match runtime.block_on(work(&config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(code::SYSTEM, &error),
    }
}

async fn work(config: &Config) -> Result<(), HostError> {
    let shutdown = signals::shutdown().map_err(|e| HostError::Data(config.data.clone(), e))?;
    let host = Host::open(config).await?;
    let broker = host.broker(config).await?;
    host.run(broker, shutdown).await
}

fn examine(args: Doctor) -> ExitCode {
    let config = match Config::resolve(args.flags) {
        Ok(config) => config,
        Err(errors) => return fail(code::USAGE, &errors),
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(code::SYSTEM, &error),
    };
    let checks = runtime.block_on(doctor::examine(&config));
    let all_ok = checks.iter().all(|check| check.ok);
    let text = if args.json { doctor::json(&checks) } else { doctor::table(&checks) };
    use std::io::Write;
    // A reader that has gone away wants no more.
    let _ = writeln!(std::io::stdout(), "{text}");
    if all_ok { ExitCode::SUCCESS } else { ExitCode::from(code::SYSTEM) }
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("stoker-worker: {error}");
    ExitCode::from(code)
}
