//! Wishes about jobs and hosts. Whether one is possible is decided by the contract's own rules on
//! the job's state here; the host that owns the job decides again on its own.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use stoker_schemas::command::{Command, Context};
use stoker_schemas::decide::decide;
use stoker_schemas::event::{JOB_LEVEL, Request};
use stoker_schemas::limits::{MAX_TEXT_BYTES, clip};
use stoker_schemas::retry::Jitter;
use stoker_schemas::{Event, EventData, HostName, JobId, JobSpec, JobState};

use super::bulk::Action;
use super::extract::{Body, Path, asker};
use super::snooze::SnoozeRequest;
use super::{Api, Problem, SEEN_WITHIN};
use crate::reconcile::publish_again;
use crate::submit::{Asker, publish_event};

/// What a wish may carry.
#[derive(Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// Why, in the asker's words.
    #[serde(default)]
    reason: String,
}

impl Wish {
    /// Why.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

/// What a retry may carry, too.
#[derive(Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ControlRequest {
    /// Why, in the asker's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The spec to use from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<JobSpec>")]
    pub spec: Option<Value>,
}

/// What became of a wish.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ControlAnswer {
    /// The job.
    pub id: JobId,
    /// Events that follow; none when the wish was granted before.
    pub events: Vec<String>,
}

/// What became of a wish about a host.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct DrainAnswer {
    /// The host.
    pub host: String,
    /// Events that follow.
    pub events: Vec<String>,
}

/// `POST /v1/jobs/{id}/retry`
pub async fn retry(api: State<Api>, id: Path<String>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    act(&api, &id.0, Action::Retry, &headers, body.typed()?).await
}

/// `POST /v1/jobs/{id}/cancel`
pub async fn cancel(api: State<Api>, id: Path<String>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    act(&api, &id.0, Action::Cancel, &headers, body.typed::<Wish>()?.into()).await
}

/// `POST /v1/jobs/{id}/stop`
pub async fn stop(api: State<Api>, id: Path<String>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    act(&api, &id.0, Action::Stop, &headers, body.typed::<Wish>()?.into()).await
}

/// `POST /v1/jobs/{id}/snooze`
pub async fn snooze(api: State<Api>, id: Path<String>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let asked: SnoozeRequest = body.typed()?;
    let action = Action::Snooze(asked.until(api.now())?);
    act(&api, &id.0, action, &headers, Wish { reason: asked.reason }.into()).await
}

impl From<Wish> for ControlRequest {
    fn from(Wish { reason }: Wish) -> Self {
        Self { reason, spec: None }
    }
}

async fn act(
    api: &Api,
    id: &str,
    action: Action,
    headers: &HeaderMap,
    asked: ControlRequest,
) -> Result<Response, Problem> {
    let spec = asked.spec.as_ref().map(JobSpec::from_value).transpose()?;
    let asker = asker(headers);
    let state = api.state(id)?;
    let events = settle(api, &state, action.command(&asker, &asked.reason, spec), &asker).await?;
    shown(api, &events).await;
    let status = if events.is_empty() { StatusCode::OK } else { StatusCode::ACCEPTED };
    let kinds = events.iter().map(|e| e.data.kind().to_owned()).collect();
    Ok((status, Json(ControlAnswer { id: state.id, events: kinds })).into_response())
}

/// `POST /v1/hosts/{host}/drain`
pub async fn drain(
    State(api): State<Api>,
    Path(host): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let asked: Wish = body.typed()?;
    let event = request_drain(&api, &host, &asked.reason, &asker(&headers)).await?;
    let events = vec![event.data.kind().to_owned()];
    let answer = DrainAnswer { host: event.subject, events };
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

/// Asks a host to take no more jobs.
pub async fn request_drain(api: &Api, host: &str, reason: &str, asker: &Asker) -> Result<Event, Problem> {
    let name: HostName = host.parse().map_err(|e: stoker_schemas::id::NameError| {
        Problem::bad_request(e.to_string(), "stoker hosts shows the known hosts")
    })?;
    if !api.model.hosts()?.iter().any(|h| h.name == name.as_str()) {
        let detail = format!("no host {name} was ever heard of");
        return Err(Problem::not_found(detail, "stoker hosts shows the known hosts"));
    }
    let event = Event {
        source: api.submitter.source().to_owned(),
        subject: name.to_string(),
        time: api.submitter.now(),
        epoch: JOB_LEVEL,
        traceparent: asker.traceparent.clone(),
        data: EventData::HostDrainRequested(Request { by: asker.by.clone(), reason: clip(reason, MAX_TEXT_BYTES) }),
    };
    publish_event(api.submitter.broker().as_ref(), &event).await?;
    shown(api, std::slice::from_ref(&event)).await;
    Ok(event)
}

/// Waits a moment until the rows show what was done, so that who did it sees it.
pub async fn shown(api: &Api, events: &[Event]) {
    if let Some(last) = events.last() {
        api.model.wait_for_event(last, SEEN_WITHIN).await;
    }
}

/// Decides, and publishes what follows.
pub async fn settle(api: &Api, state: &JobState, command: Command, asker: &Asker) -> Result<Vec<Event>, Problem> {
    let now = api.submitter.now();
    // A wish is never put off: the jitter of retry waits plays no part.
    let facts = decide(state, command, Context { now, jitter: Jitter::from_random(0) })?;
    let mut events = Vec::with_capacity(facts.len());
    for (epoch, data) in facts {
        if let EventData::JobRepublished(said) = data {
            events.push(publish_again(&api.model, &api.submitter, state.id, said).await?);
            continue;
        }
        let mut event = Event::about_job(state.id, epoch, api.submitter.source(), now, data);
        event.traceparent.clone_from(&asker.traceparent);
        publish_event(api.submitter.broker().as_ref(), &event).await?;
        events.push(event);
    }
    Ok(events)
}
