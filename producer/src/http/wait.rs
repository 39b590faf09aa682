//! Submitting and waiting: the answer comes when every job is ready or will not become so, or when
//! time is up. Woken by the rows as they change; nothing is asked again and again.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use stoker_schemas::{JobId, Phase};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::error::RecvError;

use super::jobs::{Submitted, SubmittedJob};
use super::{Api, Problem};
use crate::view::JobView;

/// Longest wait when nobody says, seconds: a boot takes one to fifty.
const DEFAULT_WAIT_S: u64 = 60;
/// Longest wait, seconds. Proxies cut longer silences; who waits longer follows the events.
const MAX_WAIT_S: u64 = 600;

/// Query of a submission.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmitQuery {
    /// Answer when the jobs are there, not only when they are taken.
    wait: Option<WaitFor>,
    /// Longest wait in seconds; 60 without it.
    #[schemars(range(min = 1, max = MAX_WAIT_S))]
    timeout: Option<u64>,
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
enum WaitFor {
    /// Each job is ready, dead, cancelled or stopped.
    Ready,
}

/// A wait that was asked for, with its place among the connections that stay open.
pub struct Wait {
    within: Duration,
    _place: OwnedSemaphorePermit,
}

/// What became of jobs that were waited for.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Waited {
    /// The jobs, in the order of the request.
    pub jobs: Vec<WaitedJob>,
    /// All are ready.
    pub ready: bool,
    /// None is still on its way.
    pub settled: bool,
    /// Where the event stream stood before them: read on from here to miss nothing.
    pub from: u64,
}

/// What is told of jobs that were taken.
#[derive(Debug, Serialize, schemars::JsonSchema)]
#[serde(untagged)]
pub enum Taken {
    /// At once.
    AtOnce(Submitted),
    /// After a wait.
    Waited(Waited),
}

/// One job that was waited for.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct WaitedJob {
    /// Its id.
    pub id: JobId,
    /// It was there already, under the same idempotency key; nothing was enqueued.
    pub duplicate: bool,
    /// Whether it is ready, dead, cancelled or stopped.
    pub settled: bool,
    /// The job; none where even its enqueueing was not heard of yet.
    pub job: Option<JobView>,
}

impl SubmitQuery {
    /// The wait it asks for. Taken before anything is published: a refusal leaves nothing behind.
    pub fn wait(&self, api: &Api) -> Result<Option<Wait>, Problem> {
        let seconds = self.timeout.unwrap_or(DEFAULT_WAIT_S);
        if self.wait.is_none() && self.timeout.is_some() {
            return Err(Problem::bad_request("timeout: there is nothing to wait for", "add wait=ready"));
        }
        if !(1..=MAX_WAIT_S).contains(&seconds) {
            let detail = format!("timeout: {seconds} is not between 1 and {MAX_WAIT_S} seconds");
            return Err(Problem::bad_request(detail, "to wait longer, follow /v1/events?job=<id>"));
        }
        let wait = |_| Ok(Wait { within: Duration::from_secs(seconds), _place: api.take_stream()? });
        self.wait.map(wait).transpose()
    }
}

impl Wait {
    /// Waits for all of them, and tells how they are then: 200 when none is on its way any more.
    pub async fn answer(self, api: &Api, submitted: &Submitted) -> Result<(StatusCode, Waited), Problem> {
        let Submitted { jobs, from } = submitted;
        tokio::select! {
            () = all_settled(api, jobs) => {}
            () = tokio::time::sleep(self.within) => {}
            () = api.stopping.cancelled() => {}
        }
        let view = |submitted: &SubmittedJob| {
            let job = api.model.job(submitted.id)?.map(|state| JobView::of(&state));
            let settled = job.as_ref().is_some_and(|job| is_settled(job.phase));
            Ok(WaitedJob { id: submitted.id, duplicate: submitted.duplicate, settled, job })
        };
        let jobs = jobs.iter().map(view).collect::<Result<Vec<_>, Problem>>()?;
        let ready = jobs.iter().all(|job| job.job.as_ref().is_some_and(|job| job.phase == Phase::Ready));
        let settled = jobs.iter().all(|job| job.settled);
        let status = if settled { StatusCode::OK } else { StatusCode::ACCEPTED };
        Ok((status, Waited { jobs, ready, settled, from: *from }))
    }
}

const fn is_settled(phase: Phase) -> bool {
    matches!(phase, Phase::Ready) || phase.is_closed()
}

async fn all_settled(api: &Api, jobs: &[SubmittedJob]) {
    // First listen, then look: nothing comes between.
    let mut news = api.model.changes();
    let is_open = |id: &JobId| !matches!(api.model.summary(*id), Ok(Some(job)) if is_settled(job.phase));
    let mut open: BTreeSet<_> = jobs.iter().map(|job| job.id).filter(is_open).collect();
    while !open.is_empty() {
        match news.recv().await {
            Ok(change) => {
                if let Some(job) = change.job.filter(|job| open.contains(job) && !is_open(job)) {
                    open.remove(&job);
                }
            }
            Err(RecvError::Lagged(_)) => open.retain(is_open),
            Err(RecvError::Closed) => return,
        }
    }
}
