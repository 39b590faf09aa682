//! One wish for all jobs that match, however many: first their number, then, with the token that
//! came with it, the deed, which goes on by itself and tells how far it is.

mod running;
pub(crate) mod token;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stoker_schemas::Time;
use stoker_schemas::limits::{MAX_TEXT_BYTES, clip};
use tokio::sync::Semaphore;
use uuid::Uuid;

pub use running::{BulkView, Order, Stand};

use super::bulk::{self, Action};
use super::extract::{Body, Path, asker};
use super::snooze::SnoozeRequest;
use super::{Api, Problem};
use crate::readmodel::Filter;
use running::Running;
use token::{GOOD_FOR_S, Promise, Promises};

/// Counts under way at once: each may look at every job there is.
const COUNTS: usize = 2;

/// What stays between the two requests, and after.
#[derive(Debug, Clone)]
pub struct Many {
    promises: Promises,
    running: Running,
    counts: std::sync::Arc<Semaphore>,
}

impl Default for Many {
    fn default() -> Self {
        let counts = std::sync::Arc::new(Semaphore::new(COUNTS));
        Self { promises: Promises::default(), running: Running::default(), counts }
    }
}

/// What can be asked for of many jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum BulkAction {
    /// Another attempt, now.
    Retry,
    /// No attempt any longer.
    Cancel,
    /// The VM of a ready job goes.
    Stop,
    /// The attempt that waits starts later.
    Snooze,
}

/// One wish for all jobs that match.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = shapes()))]
pub struct BulkRequest {
    /// What is done to each.
    pub action: BulkAction,
    /// Which; `{}` for all. The names are those of the list's query.
    pub filter: Filter,
    /// Count only, and answer with a token for the deed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<bool>,
    /// From the count: carry it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// To snooze: for so many seconds from now, 30 days at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64", range(min = 1, max = stoker_schemas::limits::MAX_SNOOZE_S))]
    pub for_s: Option<Value>,
    /// To snooze: until this time, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Time")]
    pub until: Option<String>,
    /// Why, in the asker's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Which fields go together: a count or a deed; with a snooze, how long.
fn shapes() -> Value {
    let steps = [
        (json!(["dry_run"]), json!({ "dry_run": { "const": true }, "token": false })),
        (json!(["token"]), json!({ "dry_run": { "const": false }, "token": { "type": "string" } })),
    ];
    let actions = [
        (json!([]), json!({ "action": { "enum": ["retry", "cancel", "stop"] }, "for_s": false, "until": false })),
        (json!(["for_s"]), json!({ "action": { "const": "snooze" }, "until": false })),
        (json!(["until"]), json!({ "action": { "const": "snooze" }, "for_s": false })),
    ];
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let fields = |value: &Value| value.as_object().cloned().unwrap_or_default();
    let shape = |(needs, are): &(Value, Value), (needs_too, are_too): &(Value, Value)| {
        let required: Vec<_> = list(needs).into_iter().chain(list(needs_too)).collect();
        let properties: serde_json::Map<_, _> = fields(are).into_iter().chain(fields(are_too)).collect();
        json!({ "required": required, "properties": properties })
    };
    steps.iter().flat_map(|step| actions.iter().map(move |action| shape(step, action))).collect()
}

/// How many a wish is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct BulkCount {
    /// Jobs that match now.
    pub count: u64,
    /// To be sent with the same wish, to carry it out.
    pub token: String,
    /// Until when the token is good.
    pub expires_at: Time,
}

/// Where a wish that is being carried out can be looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct BulkStarted {
    /// Its id.
    pub id: Uuid,
    /// Its address.
    pub location: String,
}

impl BulkRequest {
    fn read(body: Body) -> Result<Self, Problem> {
        if !body.0.is_object() {
            let hint = "as in {\"action\": \"retry\", \"filter\": {\"phase\": \"dead\"}, \"dry_run\": true}";
            return Err(Problem::bad_request("the body is not an object", hint));
        }
        // serde takes null for a field that was left out; the document does not.
        let null = body.0.as_object().and_then(|fields| fields.iter().find(|(_, value)| value.is_null()));
        if let Some((name, _)) = null {
            return Err(Problem::bad_request(format!("{}: it is null", clip(name, 80)), "leave it out"));
        }
        // Nor is a list a filter, though serde reads its items as fields.
        if body.0.get("filter").is_some_and(|filter| !filter.is_object()) {
            return Err(Problem::bad_request("filter: it is not an object", "{} is all jobs"));
        }
        serde_json::from_value(body.0).map_err(|e| Problem::bad_request(clip(&e.to_string(), 300), ""))
    }

    fn action(&self, now: Time) -> Result<Action, Problem> {
        let plain = match self.action {
            BulkAction::Retry => Action::Retry,
            BulkAction::Cancel => Action::Cancel,
            BulkAction::Stop => Action::Stop,
            BulkAction::Snooze => {
                let (for_s, until) = (self.for_s.clone(), self.until.clone());
                return Ok(Action::Snooze(SnoozeRequest { for_s, until, reason: String::new() }.until(now)?));
            }
        };
        if self.for_s.is_some() || self.until.is_some() {
            return Err(Problem::bad_request("for_s, until: they are for the action snooze", "leave them out"));
        }
        Ok(plain)
    }

    /// What a token is for, in the same words each time.
    fn canonical(&self) -> String {
        json!([self.action, self.for_s, self.until, self.filter]).to_string()
    }
}

/// `POST /v1/jobs/bulk`
pub async fn order(State(api): State<Api>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let request = BulkRequest::read(body)?;
    let action = request.action(api.now())?;
    match (request.dry_run.unwrap_or(false), &request.token) {
        (true, None) => Ok(Json(promise(&api, &request).await?).into_response()),
        (false, Some(token)) => {
            let promise = api.many.promises.read(&request.canonical(), token);
            let asker = asker(&headers);
            begin(&api, &request, action, promise, asker).await
        }
        (true, Some(_)) => {
            Err(Problem::bad_request("dry_run, token: both are given", "a token is for carrying it out"))
        }
        (false, None) => {
            let hint = "ask with \"dry_run\": true first; the answer has the number of jobs and the token";
            Err(Problem::bad_request("token: it is missing", hint))
        }
    }
}

async fn promise(api: &Api, request: &BulkRequest) -> Result<BulkCount, Problem> {
    let count = count(api, &request.filter).await?;
    let expires_at = api.now().plus(std::time::Duration::from_secs(GOOD_FOR_S));
    let token = api.many.promises.give(&request.canonical(), Promise { count, expires_at })?;
    Ok(BulkCount { count, token, expires_at })
}

async fn begin(
    api: &Api,
    request: &BulkRequest,
    action: Action,
    promise: Option<Promise>,
    asker: crate::submit::Asker,
) -> Result<Response, Problem> {
    let again = "ask with \"dry_run\": true again";
    let promise = promise
        .ok_or_else(|| Problem::conflict("token: it is not for this wish, or from before the server began", again))?;
    if promise.expires_at <= api.now() {
        return Err(Problem::conflict(format!("token: it expired at {}", promise.expires_at), again));
    }
    let total = count(api, &request.filter).await?;
    if total != promise.count {
        let detail = format!("{total} jobs match now, and the token is for {}", promise.count);
        return Err(Problem::conflict(detail, again));
    }
    let reason = clip(&request.reason, MAX_TEXT_BYTES);
    let order = Order { action, filter: request.filter.clone(), total, reason, asker };
    let id = start(api, order)?;
    let location = format!("/v1/bulk/{id}");
    let told = [(header::LOCATION, location.clone())];
    Ok((StatusCode::ACCEPTED, told, Json(BulkStarted { id, location })).into_response())
}

/// Begins to carry a wish out, where there is a place for it.
pub fn start(api: &Api, order: Order) -> Result<Uuid, Problem> {
    let status = api.submitter.broker().status().borrow().clone();
    Problem::check_broker(&status)?;
    let place = api.many.running.place()?;
    Ok(api.many.running.start(api.clone(), order, place))
}

/// All that match, on a thread that may take its time.
pub async fn count(api: &Api, filter: &Filter) -> Result<u64, Problem> {
    let busy = |_| Problem::busy("as many jobs are being counted as this server counts at once");
    let place = api.many.counts.clone().try_acquire_owned().map_err(busy)?;
    let (model, filter) = (api.model.clone(), filter.clone());
    let counting = tokio::task::spawn_blocking(move || {
        let _place = place;
        bulk::count_all(&model, &filter)
    });
    counting.await.map_err(|e| Problem::internal(format!("counting failed: {e}")))?
}

/// `GET /v1/bulk/{id}`
pub async fn show(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<BulkView>, Problem> {
    view(&api, &id).map(Json)
}

/// How far one is.
pub fn view(api: &Api, id: &str) -> Result<BulkView, Problem> {
    let known = id.parse().ok().and_then(|id| api.many.running.view(id));
    known.ok_or_else(|| {
        let hint = "the last hundred are kept, and none longer than the server runs";
        Problem::not_found(format!("no wish for many jobs has the id {:?}", clip(id, 80)), hint)
    })
}
