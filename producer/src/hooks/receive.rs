//! `POST /hooks/{source}`: every answer of its own kind, every delivery with its trace.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::body::{Bytes, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use stoker_schemas::limits::clip;
use stoker_schemas::{JobId, Time};

use super::delivery::harmless;
use super::mapping::{Facts, Mapped, MappingError};
use super::verify::{Verified, verify};
use super::{Delivery, Hooks, Outcome, Source};
use crate::http::access::{TooOften, peer_of};
use crate::http::{Api, Problem};
use crate::submit::{Asker, Prepared};

/// A body that takes longer is given up.
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// Wait for the broker's confirm. Senders give up after ten seconds or more; one that is told to
/// come back knows more than one that heard nothing.
const SUBMIT_WITHIN: Duration = Duration::from_secs(4);
/// Bytes kept of why.
const MAX_WHY: usize = 400;

/// Our answer to a delivery that is taken.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct Receipt {
    /// Its number here.
    delivery: u64,
    /// What became of it.
    outcome: Outcome,
    /// Why, in a sentence.
    why: String,
    /// The job that it made, now or the first time.
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<JobId>,
}

/// What was decided on a delivery.
pub(super) struct Decision {
    outcome: Outcome,
    job: Option<JobId>,
    why: String,
    problem: Option<Problem>,
}

impl Decision {
    fn taken(outcome: Outcome, job: Option<JobId>, why: impl Into<String>) -> Self {
        Self { outcome, job, why: why.into(), problem: None }
    }

    fn refused(problem: Problem) -> Self {
        let words: Vec<_> = problem.errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
        let why = if words.is_empty() { problem.detail.clone() } else { words.join("; ") };
        Self { outcome: Outcome::Refused, job: None, why, problem: Some(problem) }
    }

    fn status(&self) -> u16 {
        match (&self.problem, self.outcome) {
            (Some(problem), _) => problem.status,
            (None, Outcome::Accepted) => StatusCode::ACCEPTED.as_u16(),
            (None, _) => StatusCode::OK.as_u16(),
        }
    }
}

/// What is known of a delivery before anything is decided.
pub(super) struct Seen<'a> {
    pub source: &'a Source,
    pub at: Time,
    pub headers: BTreeMap<String, String>,
    pub body: &'a [u8],
    pub replay_of: Option<u64>,
}

/// `POST /hooks/{source}`
pub async fn receive(State(api): State<Api>, Path(name): Path<String>, request: Request) -> Response {
    let Some(hooks) = api.webhooks().map(|webhooks| webhooks.hooks.clone()) else {
        let hint = "start stoker with --hooks FILE";
        return Problem::not_found("no webhooks are taken here", hint).into_response();
    };
    // Not kept: names that anybody makes up would be rows without end.
    let Some(source) = hooks.sources().get(&name) else {
        let detail = format!("no source {:?} is set up", clip(&name, 80));
        return Problem::not_found(detail, "name it in the hooks file").into_response();
    };
    // Nor are those beyond the limit: it is there to keep the log from being flooded, too.
    if let Err(TooOften(wait)) = hooks.limit.take(&name, peer_of(request.extensions())) {
        return Problem::too_often("deliveries to this source, too many of them", wait).into_response();
    }
    let Ok(_place) = hooks.places.clone().try_acquire_owned() else {
        return Problem::busy("as many deliveries are in work as this server takes at once").into_response();
    };
    let at = api.now();
    let (parts, body) = request.into_parts();
    let read = tokio::time::timeout(BODY_WITHIN, to_bytes(body, source.max_body_bytes)).await;
    let seen = |body| Seen { source, at, headers: harmless(&parts.headers), body, replay_of: None };
    let body: Bytes = match read {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => {
            let problem = Problem { hint: String::new(), ..Problem::too_large(source.max_body_bytes) };
            return written(&hooks, seen(b""), None, Decision::refused(problem)).into_response();
        }
        Err(_) => return written(&hooks, seen(b""), None, Decision::refused(Problem::too_slow())).into_response(),
    };
    judge(&api, &hooks, seen(&body), &parts.headers).await.into_response()
}

async fn judge(api: &Api, hooks: &Hooks, seen: Seen<'_>, headers: &HeaderMap) -> Answer {
    let verified = match verify(seen.source, headers, seen.body, seen.at) {
        Ok(verified) => verified,
        Err(refusal) => {
            let problem = Problem::not_genuine(refusal.to_string(), refusal.hint());
            return written(hooks, seen, None, Decision::refused(problem));
        }
    };
    // Held until it is written down: two of the same at once would both be new.
    let _alone = hooks.alone(&seen.source.name, &verified.id).await;
    let decision = match hooks.log().settled(&seen.source.name, &verified.id) {
        Ok(Some(before)) => {
            let why = format!("the same as delivery {}, which was {}", before.n, before.outcome.as_str());
            Decision::taken(Outcome::Duplicate, before.job, why)
        }
        Ok(None) => decide(api, &seen, &verified, &key_of(&seen.source.name, &verified.id)).await,
        Err(error) => Decision::refused(error.into()),
    };
    written(hooks, seen, Some(verified), decision)
}

/// The idempotency key of a delivery's job.
pub(super) fn key_of(source: &str, id: &str) -> String {
    format!("hook/{source}/{id}")
}

/// Judges a genuine delivery by its source's condition and templates, and enqueues what follows.
pub(super) async fn decide(api: &Api, seen: &Seen<'_>, verified: &Verified, key: &str) -> Decision {
    let source = seen.source;
    if verified.event.as_deref() == Some("ping") && source.kind == super::config::Kind::Github {
        return Decision::taken(Outcome::Ignored, None, "GitHub's ping");
    }
    let facts = Facts {
        source: &source.name,
        delivery: &verified.id,
        event: verified.event.as_deref(),
        headers: &seen.headers,
    };
    match source.mapping.apply(facts, seen.body, key) {
        Ok(Mapped::Ignored(why)) => Decision::taken(Outcome::Ignored, None, why),
        Ok(Mapped::Job(job)) => submit(api, &source.name, *job).await.unwrap_or_else(Decision::refused),
        Err(MappingError::Spec(errors)) => Decision::refused(Problem::from(errors)),
        Err(error) => Decision::refused(Problem::bad_mapping(error.to_string())),
    }
}

async fn submit(api: &Api, source: &str, job: Prepared) -> Result<Decision, Problem> {
    let id = job.id;
    // The log may have forgotten a delivery (or the mapping set a key of its own); the job is known.
    if api.model().job(id)?.is_some_and(|state| state.enqueued.is_some()) {
        return Ok(Decision::taken(Outcome::Duplicate, Some(id), "its job was enqueued before"));
    }
    let asker = Asker { by: format!("webhook/{source}"), traceparent: None };
    match tokio::time::timeout(SUBMIT_WITHIN, api.submitter().submit(job, &asker)).await {
        Ok(published) => published?,
        Err(_) => return Err(Problem::busy("the broker did not confirm the job in time")),
    };
    Ok(Decision::taken(Outcome::Accepted, Some(id), "a job was enqueued"))
}

/// The trace of a delivery, and what its sender is told. When the trace cannot be written the
/// delivery keeps its fate: its job may have been enqueued, and the sender must not hear otherwise.
pub(super) fn written(hooks: &Hooks, seen: Seen<'_>, verified: Option<Verified>, decision: Decision) -> Answer {
    let (id, event) = verified.map_or((None, None), |verified| (Some(verified.id), verified.event));
    let delivery = Delivery {
        n: 0,
        at: seen.at,
        source: seen.source.name.clone(),
        id,
        event,
        outcome: decision.outcome,
        status: decision.status(),
        why: clip(&decision.why, MAX_WHY),
        job: decision.job,
        bytes: seen.body.len() as u64,
        replayable: false,
        replays: 0,
        replay_of: seen.replay_of,
        headers: seen.headers,
    };
    tracing::info!(source = %delivery.source, outcome = delivery.outcome.as_str(), status = delivery.status,
        why = %delivery.why, "webhook delivery");
    let delivery = hooks.log().add(delivery.clone(), seen.body).unwrap_or_else(|error| {
        tracing::error!(%error, "a webhook delivery left no trace");
        delivery
    });
    Answer { delivery, problem: decision.problem }
}

/// What became of a delivery.
#[derive(Debug)]
pub struct Answer {
    /// Its trace.
    pub delivery: Delivery,
    /// Why it was refused.
    pub problem: Option<Problem>,
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        if let Some(problem) = self.problem {
            return problem.into_response();
        }
        let Delivery { n, status, outcome, why, job, .. } = self.delivery;
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
        (status, Json(Receipt { delivery: n, outcome, why, job })).into_response()
    }
}
