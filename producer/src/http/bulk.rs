//! One wish for many jobs: those named, or all that match. Each is decided on its own; what cannot
//! be done is left as it is and named.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use stoker_schemas::command::Command;
use stoker_schemas::event::{Event, Request};
use stoker_schemas::limits::{MAX_SNOOZE_S, MAX_TEXT_BYTES, clip};
use stoker_schemas::{JobId, JobSpec, Time};

use super::{Api, Problem, control};
use crate::readmodel::{Filter, MAX_PAGE, ReadModel};
use crate::submit::Asker;

/// Jobs of one wish. The next of them are for the next wish, so that no request runs for minutes.
pub const MAX_JOBS: usize = 10_000;
/// Jobs in work at once: enough to share confirms, few enough to leave room for others.
pub const AT_ONCE: usize = 64;

/// What may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Another attempt, now.
    Retry,
    /// No attempt any longer.
    Cancel,
    /// The VM of a ready job goes.
    Stop,
    /// The attempt that waits does not start before this time.
    Snooze(Time),
}

impl Action {
    /// As on a button.
    pub const fn verb(self) -> &'static str {
        match self {
            Self::Retry => "Retry",
            Self::Cancel => "Cancel",
            Self::Stop => "Stop",
            Self::Snooze(_) => "Snooze",
        }
    }

    /// As in a sentence about what was done.
    pub const fn participle(self) -> &'static str {
        match self {
            Self::Retry => "retried",
            Self::Cancel => "cancelled",
            Self::Stop => "stopped",
            Self::Snooze(_) => "snoozed",
        }
    }

    /// The command to a job. A spec is for retries.
    pub fn command(self, asker: &Asker, reason: &str, spec: Option<JobSpec>) -> Command {
        let by = asker.by.clone();
        let request = || Request { by: by.clone(), reason: clip(reason, MAX_TEXT_BYTES) };
        match self {
            Self::Retry => Command::Retry { by, spec },
            Self::Cancel => Command::Cancel(request()),
            Self::Stop => Command::Stop(request()),
            Self::Snooze(until) => Command::Snooze { until, request: request() },
        }
    }

    /// As forms name it; `snooze-900` is for so many seconds from now.
    pub fn parse(text: &str, now: Time) -> Result<Self, Problem> {
        let unknown = || {
            let hint = "retry, cancel, stop, or snooze-<seconds>";
            Problem::bad_request(format!("{:?} is not an action", clip(text, 40)), hint)
        };
        match text {
            "retry" => Ok(Self::Retry),
            "cancel" => Ok(Self::Cancel),
            "stop" => Ok(Self::Stop),
            _ => {
                let seconds = text.strip_prefix("snooze-").and_then(|seconds| seconds.parse().ok());
                let seconds = seconds.filter(|seconds| (1..=MAX_SNOOZE_S).contains(seconds)).ok_or_else(unknown)?;
                Ok(Self::Snooze(now.plus(Duration::from_secs(seconds))))
            }
        }
    }
}

/// Which jobs.
#[derive(Debug, Clone)]
pub enum Chosen {
    /// These (whole ids or beginnings).
    Ids(Vec<String>),
    /// All that match.
    Filter(Filter),
}

/// What became of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Done.
    pub done: Vec<JobId>,
    /// Left as they are, and why.
    pub skipped: Vec<Skipped>,
    /// There are more that match; ask again.
    pub more: bool,
}

/// A job that was left as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Skipped {
    /// Which.
    pub id: String,
    /// Why.
    pub reason: String,
}

/// The jobs that are meant, up to [`MAX_JOBS`].
fn select(api: &Api, chosen: &Chosen, outcome: &mut Outcome) -> Result<Vec<JobId>, Problem> {
    let mut found = Vec::new();
    match chosen {
        Chosen::Ids(ids) if ids.len() > MAX_JOBS => {
            let detail = format!("{} ids, at most {MAX_JOBS} are taken", ids.len());
            return Err(Problem::bad_request(detail, "ask several times"));
        }
        Chosen::Ids(ids) => {
            for id in ids {
                match api.resolve(id) {
                    Ok(job) => found.push(job),
                    Err(problem) => outcome.skipped.push(Skipped { id: id.clone(), reason: problem.detail }),
                }
            }
        }
        Chosen::Filter(filter) => {
            let mut cursor = None;
            loop {
                let page = api.model.list(filter, cursor.as_deref(), MAX_PAGE.min(MAX_JOBS - found.len()))?;
                found.extend(page.jobs.into_iter().map(|job| job.id));
                outcome.more = page.next.is_some();
                cursor = page.next;
                if cursor.is_none() || found.len() >= MAX_JOBS {
                    break;
                }
            }
        }
    }
    Ok(found)
}

/// Carries a wish out.
pub async fn run(api: &Api, action: Action, chosen: &Chosen, asker: &Asker) -> Result<Outcome, Problem> {
    let mut outcome = Outcome::default();
    let ids = select(api, chosen, &mut outcome)?;
    let mut results = stream::iter(ids)
        .map(|id| async move { (id, one(api, id, action, "", asker).await) })
        .buffer_unordered(AT_ONCE);
    let mut last = Vec::new();
    let mut cut = None;
    while let Some((id, result)) = results.next().await {
        match result {
            Ok(events) => {
                outcome.done.push(id);
                last = events;
            }
            Err(problem) => {
                outcome.skipped.push(Skipped { id: id.to_string(), reason: problem.detail.clone() });
                // The broker went away in the middle: the others would only wait for it, too.
                if problem.retry_after_s.is_some() {
                    cut = Some(problem);
                    break;
                }
            }
        }
    }
    drop(results);
    control::shown(api, &last).await;
    match cut {
        Some(problem) => Err(Problem { confirmed: outcome.done, ..problem }),
        None => Ok(outcome),
    }
}

/// How many match, all of them. It may look at every job there is.
pub fn count_all(model: &ReadModel, filter: &Filter) -> Result<u64, Problem> {
    let by_phase = Filter { phase: filter.phase.clone(), ..Filter::default() };
    if *filter == by_phase {
        // Nothing but phases: that is known.
        let asked = |phase| filter.phase.as_ref().is_none_or(|phases| phases.contains(phase));
        return Ok(model.counts().phases.iter().filter(|(phase, _)| asked(**phase)).map(|(_, n)| n).sum());
    }
    let (mut count, mut cursor) = (0, None);
    loop {
        let page = model.list(filter, cursor.as_deref(), MAX_PAGE)?;
        count += page.jobs.len() as u64;
        cursor = page.next;
        if cursor.is_none() {
            return Ok(count);
        }
    }
}

/// Decides about one job, and publishes what follows.
pub async fn one(api: &Api, id: JobId, action: Action, reason: &str, asker: &Asker) -> Result<Vec<Event>, Problem> {
    let state = api.model.job(id)?.ok_or_else(|| Problem::no_such_job(&id.to_string()))?;
    control::settle(api, &state, action.command(asker, reason, None), asker).await
}
