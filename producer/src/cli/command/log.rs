//! `stoker log`: the event log as CloudEvents, and whether a host's is whole.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use stoker_schemas::{Event, Time};

use super::watch;
use crate::cli::CliError;
use crate::cli::client::Piece;
use crate::cli::follow::Follower;
use crate::cli::printer::Printer;
use crate::cli::settings::Settings;
use crate::compose;

/// Flags of `log`.
#[derive(Debug, Args)]
pub struct LogArgs {
    #[command(subcommand)]
    command: LogCommand,
}

#[derive(Debug, Subcommand)]
enum LogCommand {
    /// The latest events of all jobs and hosts (with --json: CloudEvents, one a line)
    Tail {
        /// Events to begin with
        #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
        lines: u64,
        /// Go on as more comes
        #[arg(long, short)]
        follow: bool,
    },
    /// All events as CloudEvents, one JSON a line
    Export {
        /// Number of the event to begin with
        #[arg(long, value_name = "SEQ", default_value_t = 0)]
        from: u64,
    },
    /// Read a worker's event log from end to end and check it; the worker must not run
    Verify {
        /// The worker's data folder
        dir: PathBuf,
    },
}

pub async fn run(args: LogArgs, settings: &Settings, printer: &mut Printer) -> Result<(), CliError> {
    match args.command {
        LogCommand::Tail { lines, follow } => tail(lines, follow, settings, printer).await,
        LogCommand::Export { from } => export(from, settings, printer).await,
        LogCommand::Verify { dir } => verify(dir, printer).await,
    }
}

async fn tail(lines: u64, follow: bool, settings: &Settings, printer: &mut Printer) -> Result<(), CliError> {
    let piece = settings.client.piece(&["v1", "log"], &[("last", lines.to_string())]).await?;
    let next = piece.next;
    print(&piece, printer)?;
    if !follow {
        return Ok(());
    }
    printer.flush()?;
    let mut follower = Follower::new(&settings.client, None, Some(next));
    loop {
        let live = follower.next().await?;
        watch::print(&live, printer)?;
    }
}

fn print(piece: &Piece, printer: &mut Printer) -> Result<(), CliError> {
    if printer.json() {
        return printer.raw(&piece.bytes);
    }
    for line in piece.bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        let event = Event::decode(line, Time::UNIX_EPOCH)
            .map_err(|e| CliError::system("an event of the server is not understood", e, "stoker doctor"))?;
        watch::print_event(&event, printer)?;
    }
    Ok(())
}

async fn export(mut from: u64, settings: &Settings, printer: &mut Printer) -> Result<(), CliError> {
    loop {
        let piece = settings.client.piece(&["v1", "log"], &[("from", from.to_string())]).await?;
        if piece.bytes.is_empty() {
            return Ok(());
        }
        printer.raw(&piece.bytes)?;
        from = piece.next;
    }
}

async fn verify(dir: PathBuf, printer: &mut Printer) -> Result<(), CliError> {
    let verdict = compose::verify_log(&dir).await?;
    if printer.json() {
        printer.value(&verdict)?;
    } else if verdict.damage.is_empty() {
        printer.line(&format!("{}: {} events, whole", dir.display(), verdict.events))?;
    }
    if verdict.damage.is_empty() {
        return Ok(());
    }
    let message = format!("{} is damaged: {} events can be read", dir.display(), verdict.events);
    Err(CliError::system(message, verdict.damage.join("; "), "keep a copy of the folder before anything else"))
}
