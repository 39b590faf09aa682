//! `stoker logs`: the events of a job, or its console.

use std::time::Duration;

use clap::Args;
use serde_json::value::RawValue;
use stoker_schemas::{Event, Time};

use super::watch;
use crate::cli::CliError;
use crate::cli::follow::Follower;
use crate::cli::printer::Printer;
use crate::cli::settings::Settings;

/// A console has no news to wait for: it is asked again this often.
const POLL: Duration = Duration::from_millis(250);

/// Flags of `logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Id of the job, or the beginning of it
    job: String,
    /// The console instead of the events
    #[arg(long, short)]
    console: bool,
    /// The console of this attempt (default: the last)
    #[arg(long, value_name = "N", requires = "console")]
    attempt: Option<u32>,
    /// Go on as more comes
    #[arg(long, short)]
    follow: bool,
}

pub async fn run(args: LogsArgs, settings: &Settings, printer: &mut Printer) -> Result<(), CliError> {
    if args.console {
        return console(&args, settings, printer).await;
    }
    if args.follow {
        let mut follower = Follower::new(&settings.client, Some(args.job), None);
        follower.open().await?;
        loop {
            let live = follower.next().await?;
            watch::print(&live, printer)?;
        }
    }
    let path = ["v1", "jobs", &args.job, "events"];
    let raw: Vec<Box<RawValue>> = settings.client.get(&path, &[]).await?;
    if printer.json() {
        return printer.value(&raw);
    }
    for raw in raw {
        let event = Event::decode(raw.get().as_bytes(), Time::UNIX_EPOCH)
            .map_err(|e| CliError::system("an event of the server is not understood", e, "stoker doctor"))?;
        watch::print_event(&event, printer)?;
    }
    Ok(())
}

async fn console(args: &LogsArgs, settings: &Settings, printer: &mut Printer) -> Result<(), CliError> {
    let mut from = 0u64;
    loop {
        let mut query = vec![("from", from.to_string())];
        query.extend(args.attempt.map(|n| ("attempt", n.to_string())));
        let piece = settings.client.piece(&["v1", "jobs", &args.job, "console"], &query).await?;
        if piece.bytes.is_empty() {
            if !args.follow {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        } else if printer.json() {
            let text = String::from_utf8_lossy(&piece.bytes);
            printer.json_line(&serde_json::json!({ "from": from, "text": text }))?;
        } else {
            printer.console(&piece.bytes)?;
            printer.flush()?;
        }
        from = piece.next;
    }
}
