//! `stoker retry`, `cancel`, `stop`, `snooze`: wishes about jobs, one after the other.

use std::path::PathBuf;

use clap::Args;
use jiff::SignedDuration;
use serde::Serialize;
use stoker_schemas::Time;

use crate::cli::CliError;
use crate::cli::input;
use crate::cli::printer::Printer;
use crate::cli::settings::Settings;
use crate::http::{ControlAnswer, ControlRequest, SnoozeRequest};

/// Flags of `cancel` and `stop`.
#[derive(Debug, Args)]
pub struct ControlArgs {
    /// Ids of the jobs, or the beginnings of them
    #[arg(required = true, value_name = "JOB")]
    jobs: Vec<String>,
    /// Why, for whoever reads the log
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

/// Flags of `retry`.
#[derive(Debug, Args)]
pub struct RetryArgs {
    /// Ids of the jobs, or the beginnings of them
    #[arg(required = true, value_name = "JOB")]
    jobs: Vec<String>,
    /// Use this spec (JSON or YAML, `-`: standard input) from now on
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Flags of `snooze`.
#[derive(Debug, Args)]
pub struct SnoozeArgs {
    /// Ids of the jobs, or the beginnings of them
    #[arg(required = true, value_name = "JOB")]
    jobs: Vec<String>,
    #[command(flatten)]
    wait: Wait,
    /// Why, for whoever reads the log
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

/// How long: one of them says it.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Wait {
    /// For so long from now: 15m, 1h, 2h30m
    #[arg(long = "for", value_name = "TIME", value_parser = seconds)]
    seconds: Option<u64>,
    /// Until this time, as 2026-11-23T16:00:00Z
    #[arg(long, value_name = "TIME")]
    until: Option<Time>,
}

/// Whole seconds of a duration such as `1h`, for clap.
fn seconds(text: &str) -> Result<u64, String> {
    let duration: SignedDuration = text.parse().map_err(|_| "write it as 15m, 1h or 2h30m".to_owned())?;
    let seconds = u64::try_from(duration.as_secs()).ok().filter(|seconds| *seconds > 0);
    seconds.ok_or_else(|| "at least one second".to_owned())
}

/// Carries out `snooze`.
pub async fn snooze(args: SnoozeArgs, settings: &Settings, printer: &mut Printer) -> Result<(), CliError> {
    let (for_s, until) = (args.wait.seconds.map(Into::into), args.wait.until.map(|until| until.to_string()));
    let request = SnoozeRequest { for_s, until, reason: args.reason };
    ask("snooze", &args.jobs, &request, settings, printer).await
}

/// Carries out `cancel` or `stop`.
pub async fn run(
    verb: &'static str,
    args: ControlArgs,
    settings: &Settings,
    printer: &mut Printer,
) -> Result<(), CliError> {
    let request = ControlRequest { reason: args.reason, spec: None };
    ask(verb, &args.jobs, &request, settings, printer).await
}

/// Carries out `retry`.
pub async fn retry(args: RetryArgs, settings: &Settings, printer: &mut Printer) -> Result<(), CliError> {
    let spec = match &args.file {
        None => None,
        Some(path) => {
            let mut jobs = input::read(path, printer)?;
            if jobs.len() > 1 {
                return Err(CliError::usage("the file holds several jobs", "retry takes one spec for all"));
            }
            jobs.pop()
        }
    };
    let request = ControlRequest { reason: String::new(), spec };
    ask("retry", &args.jobs, &request, settings, printer).await
}

/// Of several jobs: which one was refused.
fn naming(error: CliError, job: &str) -> CliError {
    match error {
        CliError::Refused(mut problem) => {
            problem.detail = format!("{job}: {}", problem.detail);
            CliError::Refused(problem)
        }
        other => other,
    }
}

/// Asks for all, also when one is refused; the first refusal is the error.
async fn ask(
    verb: &'static str,
    jobs: &[String],
    request: &impl Serialize,
    settings: &Settings,
    printer: &mut Printer,
) -> Result<(), CliError> {
    let mut answers: Vec<ControlAnswer> = Vec::new();
    let mut failed = None;
    for job in jobs {
        let answer = settings.client.post(&["v1", "jobs", job, verb], request).await;
        match answer.map_err(|e| if jobs.len() > 1 { naming(e, job) } else { e }) {
            Ok(answer) => answers.push(answer),
            Err(refused @ CliError::Refused(_)) if failed.is_none() => failed = Some(refused),
            Err(refused @ CliError::Refused(_)) => printer.note(refused.text().trim_end())?,
            Err(other) => return Err(other),
        }
    }
    if printer.json() {
        printer.value(&answers)?;
    } else {
        for answer in &answers {
            let done = if answer.events.is_empty() { "was asked for before" } else { "accepted" };
            printer.line(&format!("{}  {verb} {done}", answer.id))?;
        }
    }
    failed.map_or(Ok(()), Err)
}
