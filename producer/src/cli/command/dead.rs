//! `stoker dead`: jobs that nobody will try again by themselves.

use clap::{Args, Subcommand};
use serde_json::json;

use super::list::{self, FilterFlags};
use crate::cli::CliError;
use crate::cli::printer::Printer;
use crate::cli::settings::Settings;
use crate::http::{DeadPage, RedriveAnswer};

/// Requests of one redrive: each takes hundreds of jobs, so this is a bound, not a limit.
const MAX_ROUNDS: usize = 10_000;

/// Flags of `dead`.
#[derive(Debug, Args)]
pub struct DeadArgs {
    #[command(subcommand)]
    command: DeadCommand,
}

#[derive(Debug, Subcommand)]
enum DeadCommand {
    /// List dead jobs with their causes
    List {
        #[command(flatten)]
        which: FilterFlags,
        /// Jobs to show
        #[arg(long, short = 'n', value_name = "N", default_value_t = 50)]
        limit: usize,
        /// Begin where the page before ended
        #[arg(long, value_name = "CURSOR")]
        cursor: Option<String>,
    },
    /// Send dead jobs round again: these, all that match, or all
    Redrive {
        /// Ids of the jobs, or the beginnings of them
        #[arg(value_name = "JOB")]
        jobs: Vec<String>,
        /// All dead jobs
        #[arg(long, conflicts_with = "jobs")]
        all: bool,
        #[command(flatten)]
        which: FilterFlags,
    },
}

pub async fn run(args: DeadArgs, settings: &Settings, printer: &mut Printer) -> Result<(), CliError> {
    match args.command {
        DeadCommand::List { which, limit, cursor } => {
            let mut query = which.query();
            query.push(("limit", limit.to_string()));
            query.extend(cursor.map(|c| ("cursor", c)));
            let page: DeadPage = settings.client.get(&["v1", "dead"], &query).await?;
            print(&page, printer)
        }
        DeadCommand::Redrive { jobs, all, which } => {
            if !jobs.is_empty() && !which.is_empty() {
                return Err(CliError::usage("either jobs or filters say which", "leave one of them out"));
            }
            if jobs.is_empty() && which.is_empty() && !all {
                return Err(CliError::usage("which dead jobs?", "name them, filter them (--cause …), or say --all"));
            }
            let answer = redrive(jobs, &which, settings).await?;
            print_redriven(&answer, printer)
        }
    }
}

fn print(page: &DeadPage, printer: &mut Printer) -> Result<(), CliError> {
    if printer.json() {
        return printer.value(page);
    }
    if page.jobs.is_empty() {
        return printer.note("no dead jobs");
    }
    list::print(&page.jobs, printer)?;
    let causes: Vec<_> = page.causes.iter().map(|(cause, n)| format!("{} {n}", cause.title())).collect();
    printer.note(&format!("{} shown of {} dead: {}", page.jobs.len(), page.total, causes.join(", ")))?;
    match &page.next {
        Some(cursor) => printer.note(&format!("more with --cursor {cursor}")),
        None => Ok(()),
    }
}

async fn redrive(jobs: Vec<String>, which: &FilterFlags, settings: &Settings) -> Result<RedriveAnswer, CliError> {
    let path = ["v1", "dead", "redrive"];
    if !jobs.is_empty() {
        return settings.client.post(&path, &json!({ "ids": jobs })).await;
    }
    let filter: serde_json::Map<_, _> = which.query().into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect();
    let mut all = RedriveAnswer::default();
    for _ in 0..MAX_ROUNDS {
        let part: RedriveAnswer = settings.client.post(&path, &json!({ "filter": filter })).await?;
        let progress = !part.redriven.is_empty();
        all.redriven.extend(part.redriven);
        all.skipped.extend(part.skipped);
        all.more = part.more;
        // What was skipped stays dead: without progress the next round would be the same.
        if !all.more || !progress {
            break;
        }
    }
    Ok(all)
}

fn print_redriven(answer: &RedriveAnswer, printer: &mut Printer) -> Result<(), CliError> {
    if printer.json() {
        return printer.value(answer);
    }
    for id in &answer.redriven {
        printer.line(&id.to_string())?;
    }
    for skipped in &answer.skipped {
        printer.note(&format!("skipped {}: {}", skipped.id, skipped.reason))?;
    }
    printer.note(&format!("{} redriven, {} skipped", answer.redriven.len(), answer.skipped.len()))
}
