//! `stoker watch`: events as they come.

use clap::Args;
use stoker_schemas::{Event, JobState};

use super::wait::verdict;
use crate::cli::CliError;
use crate::cli::describe;
use crate::cli::follow::{Follower, Live};
use crate::cli::printer::Printer;
use crate::cli::settings::Settings;
use crate::progress::settled;
use crate::view::{JobView, short_id};

/// Flags of `watch`.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Only this job, from its beginning until it is settled (exit code 1 when it is not ready)
    job: Option<String>,
}

pub async fn run(args: WatchArgs, settings: &Settings, printer: &mut Printer) -> Result<(), CliError> {
    let mut follower = Follower::new(&settings.client, args.job.clone(), None);
    follower.open().await?;
    let mut state: Option<JobState> = None;
    loop {
        let live = follower.next().await?;
        print(&live, printer)?;
        let Some(id) = live.event.job().filter(|_| args.job.is_some()) else { continue };
        let state = state.get_or_insert_with(|| JobState::new(id));
        state.apply(&live.event);
        if settled(state.phase()) {
            // Later events may be on their way already: what counts is where the job stands now.
            let now: JobView = settings.client.get(&["v1", "jobs", &id.to_string()], &[]).await?;
            if settled(now.phase) {
                return verdict(&[now]);
            }
        }
    }
}

/// An event as lines, or as it is.
pub fn print(live: &Live, printer: &mut Printer) -> Result<(), CliError> {
    if printer.json() {
        printer.raw(live.json.as_bytes())?;
        printer.raw(b"\n")?;
    } else {
        print_event(&live.event, printer)?;
    }
    printer.flush()
}

/// An event in words.
pub fn print_event(event: &Event, printer: &mut Printer) -> Result<(), CliError> {
    let subject = if event.job().is_some() { short_id(&event.subject) } else { &event.subject };
    for line in describe::lines(event) {
        printer.line(&format!("{}  {subject:<18}  {}", describe::clock(line.at), line.text))?;
    }
    Ok(())
}
