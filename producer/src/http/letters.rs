//! Dead letters over HTTP: messages that no worker could work on, and what is done about them.

use std::str::FromStr;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use stoker_schemas::event::DeadLetterReason;
use stoker_schemas::id::LetterId;
use stoker_schemas::limits::clip;

use super::control::Wish;
use super::extract::{Body, Params, Path, asker};
use super::{Api, Problem};
use crate::dead_letters;
use crate::readmodel::{DEFAULT_PAGE, LetterPage, LetterState, WholeLetter};

/// Query of dead letters.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LettersQuery {
    /// `open` (without it, too), or `done`: those that were redriven, dismissed or overtaken.
    #[schemars(schema_with = "states")]
    state: Option<String>,
    /// Only those with this kind of reason.
    #[schemars(schema_with = "reasons")]
    reason: Option<String>,
    /// Where the page before ended.
    #[schemars(regex(pattern = "^[0-9a-f]{48}$"))]
    cursor: Option<String>,
    /// Letters on the page, at most 500.
    limit: Option<usize>,
}

fn states(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": ["open", "done"] })
}

fn reasons(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": DeadLetterReason::ALL.map(DeadLetterReason::as_str) })
}

impl LettersQuery {
    /// Whether it asks for those that are open.
    pub fn is_open(&self) -> bool {
        self.state.as_deref() != Some("done")
    }

    /// What it asks for, without the page, as the beginning of a query.
    pub fn address(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (name, value) in [("state", &self.state), ("reason", &self.reason)] {
            query.extend_pairs(value.iter().map(|value| (name, value)));
        }
        let query = query.finish();
        if query.is_empty() { query } else { query + "&" }
    }

    /// The page it asks for.
    pub fn page(&self, api: &Api) -> Result<LetterPage, Problem> {
        let open = match self.state.as_deref() {
            None | Some("open") => true,
            Some("done") => false,
            Some(other) => {
                let detail = format!("state: {:?} is neither open nor done", clip(other, 40));
                return Err(Problem::bad_request(detail, "as in state=done"));
            }
        };
        let reason = self.reason.as_deref().map(DeadLetterReason::from_str).transpose();
        let reason = reason.map_err(|e| Problem::bad_request(format!("reason: {e}"), "as in reason=expired"))?;
        let limit = self.limit.unwrap_or(DEFAULT_PAGE);
        Ok(api.model.letters(open, reason, self.cursor.as_deref(), limit)?)
    }
}

/// What became of a wish about a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct LetterAnswer {
    /// The letter.
    pub id: LetterId,
    /// Where it stands now.
    pub state: LetterState,
    /// Events that follow; none when it was so before.
    pub events: Vec<String>,
}

/// What people can do about a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetterAction {
    /// Send it on its way again.
    Redrive,
    /// Say that it needs nothing.
    Dismiss,
}

impl FromStr for LetterAction {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        match text {
            "redrive" => Ok(Self::Redrive),
            "dismiss" => Ok(Self::Dismiss),
            other => {
                let detail = format!("a dead letter can be redriven or dismissed, not {:?}", clip(other, 40));
                Err(Problem::not_found(detail, ""))
            }
        }
    }
}

/// `GET /v1/dead-letters`
pub async fn list(State(api): State<Api>, Params(query): Params<LettersQuery>) -> Result<Json<LetterPage>, Problem> {
    Ok(Json(query.page(&api)?))
}

/// `GET /v1/dead-letters/{id}`
pub async fn show(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<WholeLetter>, Problem> {
    Ok(Json(find(&api, &id)?))
}

/// `POST /v1/dead-letters/{id}/redrive`
pub async fn redrive(api: State<Api>, id: Path<String>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    answer(&api, &id.0, LetterAction::Redrive, &headers, body).await
}

/// `POST /v1/dead-letters/{id}/dismiss`
pub async fn dismiss(api: State<Api>, id: Path<String>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    answer(&api, &id.0, LetterAction::Dismiss, &headers, body).await
}

async fn answer(
    api: &Api,
    id: &str,
    action: LetterAction,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let wish: Wish = body.typed()?;
    let answer = act(api, id, action, wish.reason(), headers).await?;
    let status = if answer.events.is_empty() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(answer)).into_response())
}

/// Does something about a dead letter.
pub async fn act(
    api: &Api,
    id: &str,
    action: LetterAction,
    reason: &str,
    headers: &HeaderMap,
) -> Result<LetterAnswer, Problem> {
    let (letter, asker) = (find(api, id)?, asker(headers));
    let events = match action {
        LetterAction::Redrive => dead_letters::redrive(api, &letter, reason, &asker).await?,
        LetterAction::Dismiss => dead_letters::dismiss(api, &letter, reason, &asker).await?,
    };
    let state = match (action, events.is_empty()) {
        (_, true) => letter.summary.state,
        (LetterAction::Redrive, false) => LetterState::Redriven,
        (LetterAction::Dismiss, false) => LetterState::Dismissed,
    };
    Ok(LetterAnswer { id: letter.summary.id, state, events })
}

/// The letter that an id, or the beginning of one, names.
pub fn find(api: &Api, text: &str) -> Result<WholeLetter, Problem> {
    let missing = || {
        let detail = format!("no dead letter has an id that begins with {:?}", clip(text, 80));
        Problem::not_found(detail, "stoker dead list shows those that are kept")
    };
    match api.model.find_letters(text)?.as_slice() {
        [] => Err(missing()),
        [one] => api.model.letter(*one)?.ok_or_else(missing),
        several => {
            let ids: Vec<_> = several.iter().map(ToString::to_string).collect();
            let detail = format!("several dead letters have ids that begin so: {}", ids.join(", "));
            Err(Problem::bad_request(detail, "write more of the id"))
        }
    }
}
