//! Jobs that nobody will try again by themselves: seen by cause, and sent round once more.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};
use stoker_schemas::command::Command;
use stoker_schemas::diagnosis::Cause;
use stoker_schemas::{JobId, Phase};

use super::extract::{Body, Params, asker};
use super::jobs::ListQuery;
use super::{Api, Problem, SEEN_WITHIN, control};
use crate::readmodel::{Filter, JobSummary, MAX_PAGE};
use crate::submit::MAX_JOBS_PER_REQUEST;

/// Dead jobs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeadPage {
    /// How many there are in all.
    pub total: u64,
    /// The causes on this page, with how often each stands there.
    pub causes: BTreeMap<Cause, u64>,
    /// The jobs, newest first.
    pub jobs: Vec<JobSummary>,
    /// Where the next page begins.
    pub next: Option<String>,
}

/// Which dead jobs to send round again: these, or all that match.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedriveRequest {
    /// These (whole ids or beginnings).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<String>,
    /// All that match; `{}` for all. Not together with ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
}

/// What became of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RedriveAnswer {
    /// Sent round again.
    pub redriven: Vec<JobId>,
    /// Left as they are, and why.
    pub skipped: Vec<Skipped>,
    /// There are more that match; ask again.
    pub more: bool,
}

/// A job that was left as it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Skipped {
    /// Which.
    pub id: String,
    /// Why.
    pub reason: String,
}

/// `GET /v1/dead`
pub async fn list(State(api): State<Api>, Params(query): Params<ListQuery>) -> Result<Json<DeadPage>, Problem> {
    let filter = Filter { phase: Some(Phase::Dead), ..query.filter()? };
    let page = query.page(&api, &filter)?;
    let mut causes = BTreeMap::new();
    for cause in page.jobs.iter().filter_map(|j| j.cause) {
        *causes.entry(cause).or_default() += 1;
    }
    let total = api.model.counts().phases.get(&Phase::Dead).copied().unwrap_or(0);
    Ok(Json(DeadPage { total, causes, jobs: page.jobs, next: page.next }))
}

/// `POST /v1/dead/redrive`
pub async fn redrive(State(api): State<Api>, headers: HeaderMap, body: Body) -> Result<Json<RedriveAnswer>, Problem> {
    let request: RedriveRequest = body.typed()?;
    let asker = asker(&headers);
    let mut answer = RedriveAnswer::default();
    let ids = chosen(&api, request, &mut answer)?;
    let mut last = None;
    for id in ids {
        let Some(state) = api.model.job(id)? else { continue };
        if state.phase() != Phase::Dead {
            answer.skipped.push(Skipped { id: id.to_string(), reason: format!("the job is {}", state.phase()) });
            continue;
        }
        let command = Command::Retry { by: asker.by.clone(), spec: None };
        match control::settle(&api, &state, command, &asker).await {
            Ok(events) => {
                answer.redriven.push(id);
                last = events.into_iter().next_back().or(last);
            }
            // The broker went away in the middle: say what was done.
            Err(problem) if problem.retry_after_s.is_some() => {
                return Err(Problem { confirmed: answer.redriven, ..problem });
            }
            Err(problem) => answer.skipped.push(Skipped { id: id.to_string(), reason: problem.detail }),
        }
    }
    if let Some(event) = last {
        api.model.wait_for_event(&event, SEEN_WITHIN).await;
    }
    Ok(Json(answer))
}

fn chosen(api: &Api, request: RedriveRequest, answer: &mut RedriveAnswer) -> Result<Vec<JobId>, Problem> {
    match (request.ids, request.filter) {
        (ids, None) if !ids.is_empty() => {
            if ids.len() > MAX_JOBS_PER_REQUEST {
                let detail = format!("{} ids, at most {MAX_JOBS_PER_REQUEST} are taken", ids.len());
                return Err(Problem::bad_request(detail, "ask several times"));
            }
            let mut found = Vec::with_capacity(ids.len());
            for id in ids {
                match api.resolve(&id) {
                    Ok(job) => found.push(job),
                    Err(problem) => answer.skipped.push(Skipped { id, reason: problem.detail }),
                }
            }
            Ok(found)
        }
        (ids, Some(filter)) if ids.is_empty() => {
            let filter = Filter { phase: Some(Phase::Dead), ..filter };
            let page = api.model.list(&filter, None, MAX_PAGE)?;
            answer.more = page.next.is_some();
            Ok(page.jobs.into_iter().map(|j| j.id).collect())
        }
        _ => Err(Problem::bad_request("either ids or a filter says which", "{\"filter\": {}} for all")),
    }
}
