//! Lists of jobs: the filter that a query asks for, and the page it gets.

use axum::Json;
use axum::extract::{Query, State};
use axum::http::Uri;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use stoker_schemas::Time;
use stoker_schemas::diagnosis::Cause;
use stoker_schemas::limits::clip;

use super::extract::Params;
use super::{Api, Problem};
use crate::readmodel::{DEFAULT_PAGE, Filter, Page, Phases};

/// Query of lists. Flat: a query string has no nesting. Text, so that a form may send what nobody
/// filled in, and so that a mistake is told with its field's name.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    /// In this phase, or in one of several with commas between; `state` is the same.
    #[serde(alias = "state")]
    #[schemars(schema_with = "phases")]
    phase: Option<String>,
    /// Booting this image (`golden` finds `golden@7`).
    image: Option<String>,
    /// In this pool.
    pool: Option<String>,
    /// With this label: `key` or `key=value`.
    label: Option<String>,
    /// Whose last failure has this cause.
    #[schemars(schema_with = "causes")]
    cause: Option<String>,
    /// On this host.
    host: Option<String>,
    /// With this text in id, image, host, labels, address, asker or problem.
    text: Option<String>,
    /// Enqueued at this time or later, RFC 3339.
    #[schemars(schema_with = "time_or_nothing")]
    since: Option<String>,
    /// Enqueued before this time, RFC 3339.
    #[schemars(schema_with = "time_or_nothing")]
    until: Option<String>,
    /// Where the page before ended.
    #[schemars(regex(pattern = "^[0-9a-f]{48}$"))]
    cursor: Option<String>,
    /// Jobs on the page, at most 500.
    limit: Option<usize>,
}

/// A form sends nothing for any.
fn phases(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "anyOf": [Phases::json_schema(generator), { "const": "" }] })
}

fn time_or_nothing(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "anyOf": [Time::json_schema(generator), { "const": "" }] })
}

fn causes(_: &mut SchemaGenerator) -> Schema {
    let names: Vec<_> = std::iter::once("").chain(Cause::ALL.iter().map(|cause| cause.as_str())).collect();
    json_schema!({ "type": "string", "enum": names })
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
        let fields = [
            &mut self.phase,
            &mut self.image,
            &mut self.pool,
            &mut self.label,
            &mut self.cause,
            &mut self.host,
            &mut self.text,
            &mut self.since,
            &mut self.until,
        ];
        for field in fields {
            field.take_if(|text| text.trim().is_empty());
        }
    }

    /// What was searched for.
    pub fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }

    /// Whether it asks for one page of many.
    pub const fn names_a_page(&self) -> bool {
        self.cursor.is_some() || self.limit.is_some()
    }

    /// The filter it asks for.
    pub fn filter(&self) -> Result<Filter, Problem> {
        let phase = self.phase.as_deref().filter(|text| !text.is_empty()).map(str::parse).transpose();
        let cause = self.cause.as_deref().filter(|text| !text.is_empty()).map(str::parse).transpose();
        let filter = Filter {
            phase: phase
                .map_err(|e: String| Problem::bad_request(format!("phase: {e}"), "as in phase=failing,dead"))?,
            image: self.image.clone(),
            pool: self.pool.clone(),
            label: self.label.clone(),
            cause: cause
                .map_err(|e: String| Problem::bad_request(format!("cause: {e}"), "see the causes in stoker show"))?,
            host: self.host.clone(),
            text: self.text.clone(),
            since: time("since", self.since.as_deref())?,
            until: time("until", self.until.as_deref())?,
        };
        if let (Some(since), Some(until)) = (filter.since, filter.until)
            && until <= since
        {
            let detail = format!("until: {until} is not after since, {since}");
            return Err(Problem::bad_request(detail, "exchange them, or leave one out"));
        }
        Ok(filter)
    }

    /// The page it asks for.
    pub fn page(&self, api: &Api, filter: &Filter) -> Result<Page, Problem> {
        Ok(api.model.list(filter, self.cursor.as_deref(), self.limit.unwrap_or(DEFAULT_PAGE))?)
    }
}

pub(super) fn time(field: &str, text: Option<&str>) -> Result<Option<Time>, Problem> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let wrong = |cause| {
        let detail = format!("{field}: {:?} is not a time: {cause}", clip(text, 40));
        Problem::bad_request(detail, "write it in UTC, as 2026-11-23T16:00:00Z (a + must be written %2B)")
    };
    text.parse().map(Some).map_err(wrong)
}

/// `GET /v1/jobs`
pub async fn list(State(api): State<Api>, Params(query): Params<ListQuery>) -> Result<Json<Page>, Problem> {
    let filter = query.filter()?;
    Ok(Json(query.page(&api, &filter)?))
}
