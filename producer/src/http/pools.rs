//! Pools over HTTP: how they stand, pausing and resuming them, and how much of a host each may take.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use stoker_schemas::event::{JOB_LEVEL, PoolConfigured};
use stoker_schemas::limits::{MAX_TEXT_BYTES, clip};
use stoker_schemas::spec::Priority;
use stoker_schemas::{Event, EventData, PoolName};
use stoker_worker::ports::broker::BrokerStatus;

use super::control::{Wish, shown};
use super::extract::{Body, Path, asker};
use super::{Api, Problem};
use crate::readmodel::PoolView;
use crate::submit::{Asker, publish_event};

/// The broker is asked how many messages wait for no longer than this.
const DEPTHS_WITHIN: Duration = Duration::from_secs(1);
/// Pools asked about at once.
const DEPTHS_AT_ONCE: usize = 8;
/// Lanes of a pool.
const LANES: [Priority; 2] = [Priority::High, Priority::Normal];
/// Pools named in a hint.
const NAMED: usize = 10;

/// A limit on each host. Loose types: a mistake is told with its field's name.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("required" = ["max_per_host"]))]
pub struct LimitRequest {
    /// VMs of the pool that each host may have at once; null for as many as fit.
    #[serde(default, deserialize_with = "also_null")]
    #[schemars(with = "Option<u32>", range(min = 1))]
    pub max_per_host: Option<Value>,
    /// Why, in the asker's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Null says something here; a field that is not there does not.
fn also_null<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

/// What holds for a pool after a wish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct PoolAnswer {
    /// The pool.
    pub pool: String,
    /// No new attempt starts.
    pub paused: bool,
    /// VMs of the pool that each host may have at once; none for as many as fit.
    pub max_per_host: Option<u32>,
    /// Events that follow; none when it was so before.
    pub events: Vec<String>,
}

/// What is to change about a pool; the rest stays.
#[derive(Debug, Clone, Copy)]
pub enum Change {
    /// Whether new attempts start.
    Paused(bool),
    /// How many VMs each host may have.
    Limit(Option<u32>),
}

impl Change {
    /// A limit as people and programs write it; nothing and null are none.
    pub fn limit(given: &Value) -> Result<Self, Problem> {
        let wrong = || {
            let detail = format!("max_per_host: {} is not a number of VMs", clip(&given.to_string(), 40));
            Problem::bad_request(detail, "1 or more, or null for as many as fit; pause the pool for none")
        };
        if given.is_null() {
            return Ok(Self::Limit(None));
        }
        let number = given.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
        Ok(Self::Limit(Some(number.ok_or_else(wrong)?)))
    }
}

/// `GET /v1/pools`
pub async fn list(State(api): State<Api>) -> Result<Json<Vec<PoolView>>, Problem> {
    let mut pools = api.model.pools()?;
    let depths = depths(&api, &pools).await;
    for (at, depth) in depths {
        pools[at].waiting = Some(depth);
    }
    Ok(Json(pools))
}

/// Messages that wait, by the pool's place in the list; those that the broker told in time.
async fn depths(api: &Api, pools: &[PoolView]) -> Vec<(usize, u64)> {
    let broker = api.submitter.broker();
    if matches!(*broker.status().borrow(), BrokerStatus::Down(_)) {
        return Vec::new();
    }
    let depth = async |at: usize, name: PoolName| {
        let mut sum = 0;
        for lane in LANES {
            sum += broker.depth(&name, lane).await.ok()?;
        }
        Some((at, sum))
    };
    let named = pools.iter().enumerate().filter_map(|(at, pool)| Some((at, pool.name.parse().ok()?)));
    let names: Vec<(usize, PoolName)> = named.collect();
    let mut asked = stream::iter(names).map(|(at, name)| depth(at, name)).buffer_unordered(DEPTHS_AT_ONCE);
    let mut told = Vec::with_capacity(pools.len());
    let all = async {
        while let Some(depth) = asked.next().await {
            told.extend(depth);
        }
    };
    // What came in time counts.
    let _ = tokio::time::timeout(DEPTHS_WITHIN, all).await;
    told
}

/// `POST /v1/pools/{pool}/pause`
pub async fn pause(api: State<Api>, pool: Path<String>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    act(&api, &pool.0, Change::Paused(true), body.typed::<Wish>()?.reason(), &headers).await
}

/// `POST /v1/pools/{pool}/resume`
pub async fn resume(api: State<Api>, pool: Path<String>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    act(&api, &pool.0, Change::Paused(false), body.typed::<Wish>()?.reason(), &headers).await
}

/// `PUT /v1/pools/{pool}/limit`
pub async fn limit(api: State<Api>, pool: Path<String>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let LimitRequest { max_per_host, reason } = body.typed()?;
    let missing =
        || Problem::bad_request("max_per_host: it is missing", "as in {\"max_per_host\": 8}, or null for none");
    let change = Change::limit(&max_per_host.ok_or_else(missing)?)?;
    act(&api, &pool.0, change, &reason, &headers).await
}

async fn act(api: &Api, pool: &str, change: Change, why: &str, headers: &HeaderMap) -> Result<Response, Problem> {
    let answer = configure(api, pool, change, why, &asker(headers)).await?;
    let status = if answer.events.is_empty() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(answer)).into_response())
}

/// Tells all hosts what holds for a pool from now on.
pub async fn configure(
    api: &Api,
    pool: &str,
    change: Change,
    reason: &str,
    asker: &Asker,
) -> Result<PoolAnswer, Problem> {
    // An event says all that holds: between reading what does and saying it anew nobody else may.
    let _alone = api.configuring.lock().await;
    let known = known(api, pool)?;
    let (before, max_before) = (known.paused, known.max_per_host);
    let (paused, max_per_host) = match change {
        Change::Paused(paused) => (paused, max_before),
        Change::Limit(max) => (before, max),
    };
    if (paused, max_per_host) == (before, max_before) {
        return Ok(PoolAnswer { pool: known.name, paused, max_per_host, events: Vec::new() });
    }
    let by = asker.by.clone();
    let rule = PoolConfigured { paused, max_per_host, host: None, by, reason: clip(reason, MAX_TEXT_BYTES) };
    let now = api.now();
    let event = Event {
        source: api.submitter.source().to_owned(),
        subject: known.name.clone(),
        time: crate::pools::later_than(known.since, now),
        epoch: JOB_LEVEL,
        traceparent: asker.traceparent.clone(),
        data: EventData::PoolConfigured(rule),
    };
    publish_event(api.submitter.broker().as_ref(), &event).await?;
    shown(api, std::slice::from_ref(&event)).await;
    let events = vec![event.data.kind().to_owned()];
    Ok(PoolAnswer { pool: known.name, paused, max_per_host, events })
}

fn known(api: &Api, pool: &str) -> Result<PoolView, Problem> {
    let name: PoolName = pool.parse().map_err(|e: stoker_schemas::id::NameError| {
        Problem::bad_request(e.to_string(), "stoker pools shows the known pools")
    })?;
    let mut pools = api.model.pools()?;
    if let Some(at) = pools.iter().position(|known| known.name == name.as_str()) {
        return Ok(pools.swap_remove(at));
    }
    let names: Vec<_> = pools.iter().take(NAMED).map(|known| known.name.as_str()).collect();
    let more = if pools.len() > NAMED { ", …" } else { "" };
    let hint = match names.as_slice() {
        [] => "no pool is known yet: no host has reported, and no job was enqueued".to_owned(),
        names => format!("known are {}{more}", names.join(", ")),
    };
    Err(Problem::not_found(format!("no pool {name} was ever heard of"), &hint))
}
