//! Jobs over HTTP: submit, show, events, report.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use stoker_schemas::command::{Command, Context, Rejection};
use stoker_schemas::decide::decide;
use stoker_schemas::retry::Jitter;
use stoker_schemas::{JobId, JobState, Phase};
use stoker_worker::ports::broker::CONTENT_BATCH;

use super::extract::{Body, Params, Path, asker};
use super::wait::{SubmitQuery, Taken};
use super::{Api, Problem, SEEN_WITHIN, console_tail};
use crate::report::Report;
use crate::submit::{Prepared, prepare};
use crate::view::{AttemptView, JobView, NextView};

/// Answer to a submission.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Submitted {
    /// The jobs, in the order of the request.
    pub jobs: Vec<SubmittedJob>,
    /// Where the event stream stood before them: read on from here to miss nothing.
    pub from: u64,
}

/// One submitted job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct SubmittedJob {
    /// Its id.
    pub id: JobId,
    /// It was there already, under the same idempotency key; nothing was enqueued.
    pub duplicate: bool,
}

/// `POST /v1/jobs`
pub async fn submit(
    State(api): State<Api>,
    Params(query): Params<SubmitQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let wait = query.wait(&api)?;
    let status = api.submitter.broker().status().borrow().clone();
    Problem::check_broker(&status)?;
    let key = headers.get("idempotency-key").map(|v| v.to_str().unwrap_or_default());
    let prepared = prepare(&body.0, key)?;
    let from = api.model.next_seq();
    let mut jobs = Vec::with_capacity(prepared.len());
    let mut fresh = Vec::with_capacity(prepared.len());
    for job in prepared {
        let duplicate = is_known(&api, &job)? || fresh.iter().any(|f: &Prepared| f.id == job.id);
        jobs.push(SubmittedJob { id: job.id, duplicate });
        if !duplicate {
            fresh.push(job);
        }
    }
    let ids: Vec<_> = fresh.iter().map(|f| f.id).collect();
    api.submitter.submit_all(fresh, &asker(&headers)).await?;
    api.model.wait_for(&ids, SEEN_WITHIN).await;
    let location = jobs.first().filter(|_| jobs.len() == 1).map(|j| format!("/v1/jobs/{}", j.id));
    let submitted = Submitted { jobs, from };
    let (status, taken) = match wait {
        Some(wait) => wait.answer(&api, &submitted).await.map(|(status, waited)| (status, Taken::Waited(waited)))?,
        None => (StatusCode::ACCEPTED, Taken::AtOnce(submitted)),
    };
    let mut response = (status, Json(taken)).into_response();
    if let Some(Ok(value)) = location.map(|l| l.parse()) {
        response.headers_mut().insert(header::LOCATION, value);
    }
    Ok(response)
}

/// The same key and spec again is the same job; another spec under a known key is refused.
fn is_known(api: &Api, job: &Prepared) -> Result<bool, Problem> {
    if job.spec.idempotency_key.is_none() {
        return Ok(false);
    }
    let Some(state) = api.model.job(job.id)? else { return Ok(false) };
    let command = Command::Enqueue { spec: job.spec.clone(), by: String::new() };
    match decide(&state, command, Context { now: api.submitter.now(), jitter: Jitter::from_random(0) }) {
        Ok(_) => Ok(false),
        Err(Rejection::AlreadyEnqueued) => Ok(true),
        Err(rejection) => Err(rejection.into()),
    }
}

/// `GET /v1/jobs/{id}`
pub async fn show(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<JobView>, Problem> {
    Ok(Json(JobView::of(&api.state(&id)?)))
}

/// The tries of a job.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Attempts {
    /// Which job.
    pub id: JobId,
    /// Where it stands.
    pub phase: Phase,
    /// Each with its host, VM, address, stages and what came of it; the first one first.
    pub attempts: Vec<AttemptView>,
    /// The attempt that is scheduled and has not started.
    pub next: Option<NextView>,
}

/// `GET /v1/jobs/{id}/attempts`
pub async fn attempts(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Attempts>, Problem> {
    let JobView { id, phase, attempts, next, .. } = JobView::of(&api.state(&id)?);
    Ok(Json(Attempts { id, phase, attempts, next }))
}

/// `GET /v1/jobs/{id}/events`
pub async fn events(State(api): State<Api>, Path(id): Path<String>) -> Result<Response, Problem> {
    let events = api.model.stored_events(api.resolve(&id)?)?;
    let list: Vec<&[u8]> = events.iter().map(|e| e.json.as_slice()).collect();
    let body = [b"[".as_slice(), &list.join(b",".as_slice()), b"]"].concat();
    Ok(([(header::CONTENT_TYPE, CONTENT_BATCH)], body).into_response())
}

/// Query of a report.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReportQuery {
    /// Without it, what `Accept` asks for.
    format: Option<Format>,
}

/// How a report is written.
#[derive(Debug, Clone, Copy, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
enum Format {
    Md,
    Json,
}

/// `GET /v1/jobs/{id}/report`: Markdown, or JSON where that is asked for.
pub async fn report(
    State(api): State<Api>,
    Path(id): Path<String>,
    Params(query): Params<ReportQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let report = report_of(&api, &api.state(&id)?).await;
    let accepts = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let accepted = if accepts.contains("application/json") { Format::Json } else { Format::Md };
    match query.format.unwrap_or(accepted) {
        Format::Json => Ok(Json(report).into_response()),
        Format::Md => {
            let kind = [(header::CONTENT_TYPE, "text/markdown; charset=utf-8")];
            Ok((kind, Bytes::from(report.to_markdown())).into_response())
        }
    }
}

/// A job's report with the end of its last attempt's console.
pub async fn report_of(api: &Api, state: &JobState) -> Report {
    Report::of(state, console_tail(api, state).await.as_deref())
}
