//! Jobs over HTTP: submit, list, show, events, console, report.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::de::value::StrDeserializer;
use serde::{Deserialize, Deserializer, Serialize};
use stoker_schemas::command::{Command, Context, Rejection};
use stoker_schemas::decide::decide;
use stoker_schemas::limits::clip;
use stoker_schemas::retry::Jitter;
use stoker_schemas::{JobId, JobState, Phase, VmId};
use stoker_worker::ports::broker::CONTENT_BATCH;

use super::extract::{Body, Params, asker};
use super::{Api, MAX_CONSOLE_CHUNK, Problem, SEEN_WITHIN};
use crate::readmodel::{DEFAULT_PAGE, Filter, Page};
use crate::report::Report;
use crate::submit::{Prepared, prepare};
use crate::view::JobView;

/// Console bytes looked through for a report's tail.
const MAX_TAIL_SCAN: usize = 4 << 20;

/// Answer to a submission.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Submitted {
    /// The jobs, in the order of the request.
    pub jobs: Vec<SubmittedJob>,
    /// Where the event stream stood before them: read on from here to miss nothing.
    pub from: u64,
}

/// One submitted job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubmittedJob {
    /// Its id.
    pub id: JobId,
    /// It was there already, under the same idempotency key; nothing was enqueued.
    pub duplicate: bool,
}

/// `POST /v1/jobs`
pub async fn submit(State(api): State<Api>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
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
    let mut response = (StatusCode::ACCEPTED, Json(Submitted { jobs, from })).into_response();
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

/// A form sends an empty phase for any.
fn empty_is_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Phase>, D::Error> {
    let text = String::deserialize(from)?;
    if text.is_empty() {
        return Ok(None);
    }
    Phase::deserialize(StrDeserializer::<D::Error>::new(&text)).map(Some)
}

/// Query of lists. Flat: a query string has no nesting.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    #[serde(default, deserialize_with = "empty_is_none")]
    phase: Option<Phase>,
    image: Option<String>,
    pool: Option<String>,
    label: Option<String>,
    cause: Option<String>,
    host: Option<String>,
    text: Option<String>,
    cursor: Option<String>,
    limit: Option<usize>,
}

impl ListQuery {
    /// Read from the query of an address.
    pub fn from_address(query: &str) -> Result<Self, Problem> {
        let uri: Uri =
            format!("/?{query}").parse().map_err(|_| Problem::bad_request("the filter cannot be read", ""))?;
        let read = Query::<Self>::try_from_uri(&uri);
        read.map(|Query(query)| query).map_err(|e| Problem::bad_request(clip(&e.body_text(), 300), ""))
    }

    /// A form sends fields that nobody filled in, too.
    pub fn forget_empty(&mut self) {
        let fields =
            [&mut self.image, &mut self.pool, &mut self.label, &mut self.cause, &mut self.host, &mut self.text];
        for field in fields {
            field.take_if(|text| text.trim().is_empty());
        }
    }

    /// What was searched for.
    pub fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }

    /// The filter it asks for.
    pub fn filter(&self) -> Result<Filter, Problem> {
        let cause = self.cause.as_ref().map(|c| c.parse()).transpose();
        Ok(Filter {
            phase: self.phase,
            image: self.image.clone(),
            pool: self.pool.clone(),
            label: self.label.clone(),
            cause: cause.map_err(|e: String| Problem::bad_request(e, "see the causes in stoker show"))?,
            host: self.host.clone(),
            text: self.text.clone(),
        })
    }

    /// The page it asks for.
    pub fn page(&self, api: &Api, filter: &Filter) -> Result<Page, Problem> {
        Ok(api.model.list(filter, self.cursor.as_deref(), self.limit.unwrap_or(DEFAULT_PAGE))?)
    }
}

/// `GET /v1/jobs`
pub async fn list(State(api): State<Api>, Params(query): Params<ListQuery>) -> Result<Json<Page>, Problem> {
    let filter = query.filter()?;
    Ok(Json(query.page(&api, &filter)?))
}

/// `GET /v1/jobs/{id}`
pub async fn show(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<JobView>, Problem> {
    Ok(Json(JobView::of(&api.state(&id)?)))
}

/// `GET /v1/jobs/{id}/events`
pub async fn events(State(api): State<Api>, Path(id): Path<String>) -> Result<Response, Problem> {
    let events = api.model.stored_events(api.resolve(&id)?)?;
    let list: Vec<&[u8]> = events.iter().map(|e| e.json.as_slice()).collect();
    let body = [b"[".as_slice(), &list.join(b",".as_slice()), b"]"].concat();
    Ok(([(header::CONTENT_TYPE, CONTENT_BATCH)], body).into_response())
}

/// Query of a console.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleQuery {
    attempt: Option<u32>,
    #[serde(default)]
    from: u64,
}

/// `GET /v1/jobs/{id}/console`: bytes as the guest wrote them; `stoker-next` says where to read on.
pub async fn console(
    State(api): State<Api>,
    Path(id): Path<String>,
    Params(query): Params<ConsoleQuery>,
) -> Result<Response, Problem> {
    let state = api.state(&id)?;
    let vm = vm_of(&state, query.attempt)
        .ok_or_else(|| Problem::not_found("the job has no such attempt with a VM", "stoker show lists the attempts"))?;
    let chunk = api.consoles.read(vm, query.from, MAX_CONSOLE_CHUNK).await.ok_or_else(|| {
        Problem::not_found("no console of this attempt is kept here", "it is kept on the host that ran it")
    })?;
    let headers = [
        (header::CONTENT_TYPE.as_str(), "text/plain; charset=utf-8".to_owned()),
        ("stoker-from", chunk.from.to_string()),
        ("stoker-next", chunk.next.to_string()),
    ];
    Ok((headers, chunk.bytes).into_response())
}

/// The VM of the attempt asked for, or of the last.
fn vm_of(state: &JobState, attempt: Option<u32>) -> Option<VmId> {
    let asked = state.attempts.iter().rev().filter(|(epoch, _)| attempt.is_none_or(|n| n == epoch.attempt));
    asked.filter_map(|(_, a)| a.started.as_ref()).map(|s| s.value.vm).next()
}

/// Query of a report.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportQuery {
    format: Option<String>,
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
    let format = query.format.as_deref().unwrap_or(if accepts.contains("application/json") { "json" } else { "md" });
    match format {
        "json" => Ok(Json(report).into_response()),
        "md" => {
            let kind = [(header::CONTENT_TYPE, "text/markdown; charset=utf-8")];
            Ok((kind, Bytes::from(report.to_markdown())).into_response())
        }
        _ => Err(Problem::bad_request("format is md or json", "")),
    }
}

/// A job's report with the end of its last attempt's console.
pub async fn report_of(api: &Api, state: &JobState) -> Report {
    let tail = match vm_of(state, None) {
        Some(vm) => console_tail(api, vm).await,
        None => None,
    };
    Report::of(state, tail.as_deref())
}

/// The last piece of a console. It has no length that could be asked for, so it is read through.
pub async fn console_tail(api: &Api, vm: VmId) -> Option<String> {
    let mut from = 0;
    let mut tail = Vec::new();
    for _ in 0..MAX_TAIL_SCAN / MAX_CONSOLE_CHUNK {
        let chunk = api.consoles.read(vm, from, MAX_CONSOLE_CHUNK).await?;
        if chunk.bytes.is_empty() {
            break;
        }
        tail.extend_from_slice(&chunk.bytes);
        let surplus = tail.len().saturating_sub(MAX_CONSOLE_CHUNK);
        tail.drain(..surplus);
        from = chunk.next;
    }
    Some(String::from_utf8_lossy(&tail).into_owned())
}
