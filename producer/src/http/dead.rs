//! Jobs that nobody will try again by themselves: seen by cause, and sent round once more.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::{HeaderMap, request::Parts};
use axum::response::{IntoResponse, Response};
use serde::de::IntoDeserializer;
use serde::de::value::Error as ValueError;
use serde::{Deserialize, Serialize};
use stoker_schemas::diagnosis::Cause;
use stoker_schemas::{JobId, Phase};

use super::bulk::{self, Action, Chosen, MAX_JOBS, Outcome, Skipped};
use super::export::{self, Format};
use super::extract::{Body, asker};
use super::list::ListQuery;
use super::{Api, Problem};
use crate::readmodel::{Filter, JobSummary};

/// Dead jobs.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
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
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [
    { "required": ["ids"], "properties": { "ids": { "minItems": 1 }, "filter": { "type": "null" } } },
    { "required": ["filter"], "properties": { "ids": { "maxItems": 0 }, "filter": { "type": "object" } } },
]))]
pub struct RedriveRequest {
    /// These (whole ids or beginnings).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_JOBS))]
    pub ids: Vec<String>,
    /// All that match; `{}` for all. Not together with ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
}

/// What became of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct RedriveAnswer {
    /// Sent round again.
    pub redriven: Vec<JobId>,
    /// Left as they are, and why.
    pub skipped: Vec<Skipped>,
    /// There are more that match; ask again.
    pub more: bool,
}

/// Query of dead letters: that of a list, and how it is written.
#[derive(Debug, schemars::JsonSchema)]
pub struct DeadQuery {
    #[schemars(flatten)]
    list: ListQuery,
    /// `json`, a page; `ndjson` or `csv`, all of them as a file. Without it, what `Accept` says.
    format: Option<Format>,
}

impl<S: Send + Sync> FromRequestParts<S> for DeadQuery {
    type Rejection = Problem;

    /// By hand: what is flattened cannot refuse fields that it does not know.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default().as_bytes();
        let mut format = None;
        let mut rest = form_urlencoded::Serializer::new(String::new());
        for (name, value) in form_urlencoded::parse(query) {
            if name != "format" {
                rest.append_pair(&name, &value);
                continue;
            }
            let read = Format::deserialize(value.as_ref().into_deserializer());
            format = Some(read.map_err(|e: ValueError| Problem::bad_request(format!("format: {e}"), ""))?);
        }
        Ok(Self { list: ListQuery::from_address(&rest.finish())?, format })
    }
}

/// `GET /v1/dead`
pub async fn list(State(api): State<Api>, query: DeadQuery, headers: HeaderMap) -> Result<Response, Problem> {
    let DeadQuery { list: query, format } = query;
    let filter = Filter { phase: Some(Phase::Dead.into()), ..query.filter()? };
    let format = Format::wanted(format, &headers);
    if format != Format::Json {
        if query.names_a_page() {
            let detail = "cursor, limit: a file has all that match, not a page of them";
            return Err(Problem::bad_request(detail, "leave them out, or ask for format=json"));
        }
        return export::dead_letters(&api, filter, format);
    }
    let page = query.page(&api, &filter)?;
    let mut causes = BTreeMap::new();
    for cause in page.jobs.iter().filter_map(|j| j.cause) {
        *causes.entry(cause).or_default() += 1;
    }
    let total = api.model.counts().phases.get(&Phase::Dead).copied().unwrap_or(0);
    Ok(Json(DeadPage { total, causes, jobs: page.jobs, next: page.next }).into_response())
}

/// `POST /v1/dead/redrive`
pub async fn redrive(State(api): State<Api>, headers: HeaderMap, body: Body) -> Result<Json<RedriveAnswer>, Problem> {
    let request: RedriveRequest = body.typed()?;
    let mut not_dead = Vec::new();
    let chosen = chosen(&api, request, &mut not_dead)?;
    let Outcome { done: redriven, mut skipped, more } =
        bulk::run(&api, Action::Retry, &chosen, &asker(&headers)).await?;
    skipped.append(&mut not_dead);
    Ok(Json(RedriveAnswer { redriven, skipped, more }))
}

fn chosen(api: &Api, request: RedriveRequest, not_dead: &mut Vec<Skipped>) -> Result<Chosen, Problem> {
    match (request.ids, request.filter) {
        (mut ids, None) if !ids.is_empty() => {
            // Another phase may allow a retry, too, but whoever redrives means dead letters.
            ids.retain(|id| match api.state(id) {
                Ok(state) if state.phase() != Phase::Dead => {
                    not_dead.push(Skipped { id: id.clone(), reason: format!("the job is {}", state.phase()) });
                    false
                }
                _ => true,
            });
            Ok(Chosen::Ids(ids))
        }
        (ids, Some(filter)) if ids.is_empty() => {
            Ok(Chosen::Filter(Filter { phase: Some(Phase::Dead.into()), ..filter }))
        }
        _ => Err(Problem::bad_request("either ids or a filter says which", "{\"filter\": {}} for all")),
    }
}
