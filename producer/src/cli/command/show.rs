//! `stoker show`: one job in full.

use clap::Args;

use crate::cli::CliError;
use crate::cli::describe::dead_reason;
use crate::cli::printer::Printer;
use crate::cli::settings::Settings;
use crate::view::{AttemptView, JobView, Outcome, duration};

/// Columns of the widest bar.
const BAR: u64 = 24;

/// Flags of `show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Id of the job, or the beginning of it
    job: String,
}

impl ShowArgs {
    /// The job of this id.
    pub fn of(job: String) -> Self {
        Self { job }
    }
}

pub async fn run(args: ShowArgs, settings: &Settings, printer: &mut Printer) -> Result<(), CliError> {
    let view: JobView = settings.client.get(&["v1", "jobs", &args.job], &[]).await?;
    if printer.json() {
        return printer.value(&view);
    }
    head(&view, printer)?;
    for attempt in view.attempts.iter().rev() {
        printer.line("")?;
        print_attempt(attempt, printer)?;
    }
    Ok(())
}

fn head(view: &JobView, printer: &mut Printer) -> Result<(), CliError> {
    let cancelling = if view.cancelling { ", cancelling" } else { "" };
    printer.phase_line(view.phase, &format!("{cancelling}  job {}", view.id))?;
    if let Some(spec) = &view.spec {
        let size = format!("{} vCPU, {} MiB", spec.vcpus, spec.memory_mib);
        printer.line(&format!("  image     {}, {size}, pool {}", spec.image, spec.pool))?;
        if !spec.kernel_args.is_empty() {
            printer.line(&format!("  kernel    {}", spec.kernel_args))?;
        }
        let labels: Vec<_> = spec.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        if !labels.is_empty() {
            printer.line(&format!("  labels    {}", labels.join(" ")))?;
        }
    }
    if let Some(at) = view.enqueued_at {
        printer.line(&format!("  enqueued  {at} by {}", view.by.as_deref().unwrap_or("unknown")))?;
    }
    if let Some(reason) = &view.deferred {
        let since = view.deferred_since.map(|at| format!(", since {at}")).unwrap_or_default();
        printer.line(&format!("  put back  {reason}{since}"))?;
    }
    if let Some(again) = &view.republished {
        let times = if again.times > 1 { format!(", {} times by now", again.times) } else { String::new() };
        printer.line(&format!("  again     message published again at {}{times}: {}", again.at, again.reason))?;
    }
    if let Some(next) = &view.next {
        let why = next.cause.map(|c| format!(" after {}", c.title())).unwrap_or_default();
        printer.line(&format!("  next      attempt {} at {}{why}", next.attempt, next.not_before))?;
    }
    match &view.dead {
        Some(dead) => {
            let detail = if dead.detail.is_empty() { String::new() } else { format!(": {}", dead.detail) };
            printer.line(&format!("  dead      {}{detail}; stoker retry {}", dead_reason(dead.reason), view.id))
        }
        None => Ok(()),
    }
}

fn print_attempt(a: &AttemptView, printer: &mut Printer) -> Result<(), CliError> {
    let took = a.took_ms.map(|ms| format!(" after {}", duration(ms))).unwrap_or_default();
    let host = a.host.as_ref().map(|h| format!(" on {h}")).unwrap_or_default();
    let address = a.proof.as_ref().map(|p| format!(", agent {}", p.agent)).unwrap_or_default();
    let outcome = a.outcome.as_str().to_uppercase();
    printer.line(&format!("attempt {}  {outcome}{took}{host}{address}", a.attempt))?;
    if let Some(d) = &a.diagnosis {
        printer.line(&format!("  why    {}: {}", d.cause.title(), d.summary))?;
        printer.line(&format!("  fix    {}", d.remedy))?;
        for (i, evidence) in d.evidence.iter().enumerate() {
            printer.line(&format!("  {}   {evidence}", if i == 0 { "seen" } else { "    " }))?;
        }
    }
    let total = a.stages.iter().filter(|s| s.name != "queued").map(|s| s.begin_ms + s.took_ms).max().unwrap_or(0);
    for stage in &a.stages {
        let column = |ms: u64| usize::try_from(ms * BAR / total.max(1)).unwrap_or(0);
        let begin = column(stage.begin_ms);
        let bar = match column(stage.begin_ms + stage.took_ms).saturating_sub(begin) {
            _ if stage.name == "queued" => String::new(),
            0 => format!("{}▏", " ".repeat(begin)),
            width => format!("{}{}", " ".repeat(begin), "█".repeat(width)),
        };
        let name = stage.name.replace('_', " ");
        let text = format!("  {name:<15} {:>9} |{bar:<24}  {}", duration(stage.took_ms), stage.detail);
        printer.line(text.trim_end())?;
    }
    if !a.units.is_empty() {
        let units: Vec<_> = a.units.iter().map(|u| format!("{} {}", if u.ok { '✓' } else { '✗' }, u.name)).collect();
        printer.line(&format!("  units  {}", units.join("  ")))?;
    }
    match &a.gone {
        // After a failure the VM always goes: not news.
        Some(gone) if a.outcome != Outcome::Failed => {
            let text = format!("  gone   {} at {} {}", gone.why.as_str(), gone.at, gone.detail);
            printer.line(text.trim_end())
        }
        _ => Ok(()),
    }
}
