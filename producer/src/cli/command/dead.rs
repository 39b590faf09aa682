//! `stoker dead`: jobs that ended dead, and messages that no worker could work on.

mod letters;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;
use stoker_schemas::event::DeadLetterReason;

use super::list::{self, FilterFlags};
use crate::cli::CliError;
use crate::cli::printer::Printer;
use crate::cli::settings::Settings;
use crate::http::{DeadPage, LetterAnswer, RedriveAnswer};
use crate::readmodel::LetterPage;

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
    /// List dead jobs with their causes, and the messages that no worker could work on
    List {
        #[command(flatten)]
        which: FilterFlags,
        /// Jobs, and messages, to show
        #[arg(long, short = 'n', value_name = "N", default_value_t = 50)]
        limit: usize,
        /// Begin where the page before ended
        #[arg(long, value_name = "CURSOR")]
        cursor: Option<String>,
    },
    /// Show a message with its body; of a job's id, the job
    Show {
        /// Id of the message or job, or the beginning of it
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Say that messages need nothing any more
    Dismiss {
        /// Ids of the messages, or the beginnings of them
        #[arg(value_name = "MESSAGE")]
        ids: Vec<String>,
        /// All that are open
        #[arg(long, conflicts_with_all = ["ids", "kind"])]
        all: bool,
        /// All with this kind of reason, such as unreadable or expired
        #[arg(long, value_name = "KIND", conflicts_with = "ids")]
        kind: Option<DeadLetterReason>,
        /// Why, for whoever reads the log
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Send dead jobs and messages round again: these, or all jobs that match
    Redrive {
        /// Ids of the jobs or messages, or the beginnings of them
        #[arg(value_name = "ID")]
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
            let jobs: DeadPage = settings.client.get(&["v1", "dead"], &query).await?;
            let messages = letters::page(limit, settings).await?;
            print(&DeadList { jobs, messages }, printer)
        }
        DeadCommand::Show { id } => letters::show(id, settings, printer).await,
        DeadCommand::Dismiss { ids, all, kind, reason } => {
            if ids.is_empty() && kind.is_none() && !all {
                let hint = "name them, say of which kind (--kind expired), or say --all";
                return Err(CliError::usage("which messages?", hint));
            }
            letters::dismiss(letters::Which { ids, reason: kind }, &reason, settings, printer).await
        }
        DeadCommand::Redrive { jobs, all, which } => {
            if !jobs.is_empty() && !which.is_empty() {
                return Err(CliError::usage("either jobs or filters say which", "leave one of them out"));
            }
            if jobs.is_empty() && which.is_empty() && !all {
                return Err(CliError::usage("which dead jobs?", "name them, filter them (--cause …), or say --all"));
            }
            let mut answer = Redriven::default();
            let mut rest = Vec::new();
            for id in jobs {
                match letters::redrive(&id, settings).await? {
                    Some(letter) => answer.messages.push(letter),
                    None => rest.push(id),
                }
            }
            if answer.messages.is_empty() || !rest.is_empty() {
                answer.jobs = redrive(rest, &which, settings).await?;
            }
            print_redriven(&answer, printer)
        }
    }
}

/// Both kinds of dead letters.
#[derive(Serialize)]
struct DeadList {
    #[serde(flatten)]
    jobs: DeadPage,
    messages: LetterPage,
}

/// What became of a redrive.
#[derive(Default, Serialize)]
struct Redriven {
    #[serde(flatten)]
    jobs: RedriveAnswer,
    messages: Vec<LetterAnswer>,
}

fn print(dead: &DeadList, printer: &mut Printer) -> Result<(), CliError> {
    if printer.json() {
        return printer.value(dead);
    }
    print_jobs(&dead.jobs, printer)?;
    if dead.messages.letters.is_empty() {
        return Ok(());
    }
    letters::print(&dead.messages, printer)
}

fn print_jobs(page: &DeadPage, printer: &mut Printer) -> Result<(), CliError> {
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

fn print_redriven(answer: &Redriven, printer: &mut Printer) -> Result<(), CliError> {
    if printer.json() {
        return printer.value(answer);
    }
    let Redriven { jobs, messages } = answer;
    let ids = jobs.redriven.iter().map(ToString::to_string);
    for id in ids.chain(messages.iter().map(|letter| letter.id.to_string())) {
        printer.line(&id)?;
    }
    for skipped in &jobs.skipped {
        printer.note(&format!("skipped {}: {}", skipped.id, skipped.reason))?;
    }
    printer.note(&format!("{} redriven, {} skipped", jobs.redriven.len() + messages.len(), jobs.skipped.len()))
}
