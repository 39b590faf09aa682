//! The verification report of a job: what was checked in each attempt, what came of it, why it
//! failed and what to do. A pure function of the job's state and the end of its console.

mod blame;
mod checks;
mod flow;
mod link;
mod markdown;
pub mod text;
mod waterfall;

pub(crate) use text::plain;

use serde::{Deserialize, Serialize};
use stoker_schemas::event::DeadReason;
use stoker_schemas::{JobState, Phase};

pub use checks::{AttemptChecks, Check, CheckStatus};

use crate::view::{AttemptView, JobView, duration};

/// Console lines kept in a report, from the end.
pub const MAX_CONSOLE_LINES: usize = 40;

/// A report.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Report {
    /// In one line.
    pub title: String,
    /// Where the job stands, in a sentence.
    pub verdict: String,
    /// Whether a VM of the job was proven reachable in its last attempt.
    pub verified: bool,
    /// The job.
    pub job: JobView,
    /// What was checked, by attempt.
    pub checks: Vec<AttemptChecks>,
    /// End of the last attempt's console, as it was printed.
    pub console: Vec<String>,
}

impl Report {
    /// The report of a job, with the end of its last attempt's console where it is at hand.
    pub fn of(state: &JobState, console_tail: Option<&str>) -> Self {
        let job = JobView::of(state);
        let image = job.spec.as_ref().map_or("unknown image", |s| s.image.as_str());
        let lines: Vec<_> = console_tail.unwrap_or_default().lines().map(plain).collect();
        let skipped = lines.len().saturating_sub(MAX_CONSOLE_LINES);
        Self {
            title: format!("Verification report: {image}, job {}", job.id),
            verdict: verdict(&job),
            verified: job.last().is_some_and(|a| a.outcome.was_proven()),
            checks: job.attempts.iter().map(|a| checks::of(a, job.spec.as_ref())).collect(),
            console: lines.into_iter().skip(skipped).collect(),
            job,
        }
    }

    /// What a person needs of a VM that is ready: the verdict, and what was checked.
    pub fn to_summary(&self) -> String {
        markdown::summary(self)
    }

    /// As Markdown.
    pub fn to_markdown(&self) -> String {
        markdown::render(self)
    }
}

fn verdict(job: &JobView) -> String {
    let tried = match job.attempts.len() {
        0 => "before any attempt".to_owned(),
        1 => "after 1 attempt".to_owned(),
        n => format!("after {n} attempts"),
    };
    let cause = || job.attempts.iter().rev().find_map(|a| a.diagnosis.as_ref()).map(|d| d.cause.title());
    match job.phase {
        Phase::Ready => job.last().map_or_else(String::new, ready),
        Phase::Queued => "QUEUED: waits for a host; nothing was booted yet.".to_owned(),
        Phase::Booting => "BOOTING: an attempt is under way; nothing is proven yet.".to_owned(),
        Phase::Failing => format!("FAILING: {}; what follows is being settled.", cause().unwrap_or("unknown cause")),
        Phase::Retrying => match (&job.next, cause()) {
            (Some(next), Some(cause)) => {
                format!("RETRYING: {cause}; attempt {} follows at {}.", next.attempt, next.not_before)
            }
            (Some(next), None) => format!("RETRYING: attempt {} follows at {}.", next.attempt, next.not_before),
            (None, _) => "RETRYING.".to_owned(),
        },
        Phase::Dead => dead(job, &tried, cause()),
        Phase::Cancelled => format!("CANCELLED {tried}: the VM was not to run."),
        Phase::Stopped => format!("STOPPED: the VM was reachable and is gone, {tried}."),
    }
}

fn ready(attempt: &AttemptView) -> String {
    let at = attempt.proof.as_ref().map(|p| format!(" at {}", p.agent)).unwrap_or_default();
    let host = attempt.host.as_ref().map(|h| format!(" on {h}")).unwrap_or_default();
    let took = attempt.took_ms.map(|ms| format!(" in {}", duration(ms))).unwrap_or_default();
    format!("READY{took}{host}{at}, attempt {}: the agent answered as asked.", attempt.attempt)
}

fn dead(job: &JobView, tried: &str, cause: Option<&str>) -> String {
    let why = match job.dead.as_ref().map(|d| d.reason) {
        Some(DeadReason::Expired) => "its time-to-live passed".to_owned(),
        Some(DeadReason::MessageLost) => {
            let detail = job.dead.as_ref().map_or("", |d| d.detail.as_str());
            format!("its message was given up, so that no host gets it: {detail}")
        }
        Some(DeadReason::NotRetryable) => {
            format!("{}; another attempt would fail the same way", cause.unwrap_or("unknown cause"))
        }
        _ => cause.unwrap_or("unknown cause").to_owned(),
    };
    format!("DEAD {tried}: {why}.")
}
