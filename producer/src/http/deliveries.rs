//! Webhooks over HTTP: what came in and what became of it, once more, and callbacks out.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use stoker_schemas::{JobId, Time};

use super::extract::{Body, Params, Path};
use super::{Api, Problem};
use crate::callbacks::store::LastTry;
use crate::callbacks::{Call, CallState, Callbacks};
use crate::hooks::{self, Delivery, Hooks};

/// Rows of a page unless asked otherwise.
const DEFAULT_PAGE: usize = 50;

/// Which rows.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RowsQuery {
    /// Only this source (deliveries).
    source: Option<String>,
    /// Only numbers below this.
    before: Option<u64>,
    /// At most so many rows; 50 without it, and never more than 200.
    limit: Option<usize>,
}

/// Deliveries, the newest first.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct DeliveryPage {
    deliveries: Vec<Delivery>,
    /// `before` of the next page.
    next: Option<u64>,
}

/// A delivery with its body.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct WholeDelivery {
    #[serde(flatten)]
    delivery: Delivery,
    /// As it came, if it is kept.
    body: Option<String>,
}

/// How often the asker believes that it was replayed.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayRequest {
    replays: Option<u32>,
}

/// Callbacks, the newest first.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct CallPage {
    callbacks: Vec<CallView>,
    /// How many wait for their next try.
    waiting: u64,
    /// `before` of the next page.
    next: Option<u64>,
}

/// A callback, without what may be secret in its address.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct CallView {
    n: u64,
    id: String,
    #[serde(rename = "type")]
    kind: String,
    job: JobId,
    target: String,
    created: Time,
    state: CallState,
    tries: u32,
    due: Option<Time>,
    last: Option<LastTry>,
}

impl From<Call> for CallView {
    fn from(call: Call) -> Self {
        let target = call.target();
        let Call { n, id, kind, job, created, state, tries, due, last, .. } = call;
        Self { n, id, kind, job, target, created, state, tries, due, last }
    }
}

fn hooks_of(api: &Api) -> Result<&Hooks, Problem> {
    let webhooks = api
        .webhooks()
        .ok_or_else(|| Problem::not_found("webhooks are not set up", "start stoker with --hooks FILE"))?;
    Ok(&webhooks.hooks)
}

fn callbacks_of(api: &Api) -> Result<&Callbacks, Problem> {
    api.webhooks().and_then(|webhooks| webhooks.callbacks.as_ref()).ok_or_else(|| {
        Problem::not_found("callbacks are not set up", "start stoker with --hooks FILE that has [callbacks]")
    })
}

/// `GET /v1/hooks/deliveries`
pub async fn list(State(api): State<Api>, Params(query): Params<RowsQuery>) -> Result<Json<DeliveryPage>, Problem> {
    let limit = query.limit.unwrap_or(DEFAULT_PAGE).clamp(1, hooks::store::MAX_PAGE);
    let before = query.before.unwrap_or(u64::MAX);
    let deliveries = hooks_of(&api)?.log().list(query.source.as_deref(), before, limit)?;
    let next = deliveries.last().filter(|_| deliveries.len() == limit).map(|last| last.n);
    Ok(Json(DeliveryPage { deliveries, next }))
}

/// `GET /v1/hooks/deliveries/{n}`
pub async fn show(State(api): State<Api>, Path(n): Path<u64>) -> Result<Json<WholeDelivery>, Problem> {
    let log = hooks_of(&api)?.log();
    let missing = || Problem::not_found(format!("no delivery {n} is kept"), "GET /v1/hooks/deliveries lists them");
    let delivery = log.get(n)?.ok_or_else(missing)?;
    let body = log.body(n)?.map(|body| String::from_utf8_lossy(&body).into_owned());
    Ok(Json(WholeDelivery { delivery, body }))
}

/// `POST /v1/hooks/deliveries/{n}/replay`
pub async fn replay(State(api): State<Api>, Path(n): Path<u64>, body: Body) -> Result<Response, Problem> {
    let asked: ReplayRequest = body.typed()?;
    Ok(hooks::replay(&api, n, asked.replays).await?.into_response())
}

/// `GET /v1/callbacks`
pub async fn callbacks(State(api): State<Api>, Params(query): Params<RowsQuery>) -> Result<Json<CallPage>, Problem> {
    let callbacks = callbacks_of(&api)?;
    let limit = query.limit.unwrap_or(DEFAULT_PAGE).clamp(1, crate::callbacks::store::MAX_PAGE);
    let rows = callbacks.list(query.before.unwrap_or(u64::MAX), limit)?;
    let next = rows.last().filter(|_| rows.len() == limit).map(|last| last.n);
    let waiting = callbacks.waiting();
    Ok(Json(CallPage { callbacks: rows.into_iter().map(CallView::from).collect(), waiting, next }))
}
