//! Errors as RFC 9457 problem details: what is wrong, and what to do about it.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use stoker_schemas::JobId;
use stoker_schemas::command::Rejection;
use stoker_schemas::limits::clip;
use stoker_schemas::spec::{FieldError, SpecErrors};
use stoker_worker::ports::broker::{BrokerError, BrokerStatus};

use super::access::Role;
use crate::readmodel::ReadModelError;
use crate::reconcile::RepublishError;
use crate::submit::{Interrupted, PublishError};
use crate::webhooks::StoreError;

/// Seconds after which a caller may try again while the broker is away: its own reconnection takes
/// about as long.
const RETRY_AFTER_S: u32 = 2;

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Problem {
    /// Which kind, as a relative reference.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What is wrong this time.
    pub detail: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
    /// What is wrong with a spec, field by field.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// Jobs of the request that were taken nevertheless.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub confirmed: Vec<JobId>,
    /// Seconds to wait before another try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u32>,
}

impl Problem {
    fn new(status: StatusCode, kind: &str, title: &str, detail: impl Into<String>, hint: &str) -> Self {
        Self {
            kind: format!("/problems/{kind}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            hint: hint.to_owned(),
            errors: Vec::new(),
            confirmed: Vec::new(),
            retry_after_s: None,
        }
    }

    /// The request itself is wrong.
    pub fn bad_request(detail: impl Into<String>, hint: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", "Bad request", detail, hint)
    }

    /// The request is not taken from there.
    pub fn forbidden(detail: impl Into<String>, hint: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "Forbidden", detail, hint)
    }

    /// Nobody who is known asks.
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        let hint = "send Authorization: Bearer <token>; with the command line, put it into STOKER_TOKEN";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "Not logged in", detail, hint)
    }

    /// The token is good, but not for this.
    pub fn role(name: &str, has: Role, needs: Role) -> Self {
        let detail = format!("this needs the role {needs}, and the token {name} has the role {has}");
        Self::forbidden(detail, "ask who gives out tokens for one with that role (stoker token new --role)")
    }

    /// Asked too often.
    pub fn too_often(what: &str, seconds: u32) -> Self {
        let detail = format!("{what}; try again in {seconds} s");
        let mut problem = Self::new(StatusCode::TOO_MANY_REQUESTS, "too-often", "Too many requests", detail, "");
        problem.retry_after_s = Some(seconds);
        problem
    }

    /// Nothing is there.
    pub fn not_found(detail: impl Into<String>, hint: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail, hint)
    }

    /// Not that part of it.
    pub fn no_such_range(detail: impl Into<String>) -> Self {
        let status = StatusCode::RANGE_NOT_SATISFIABLE;
        Self::new(status, "no-such-range", "Range not satisfiable", detail, "ask for less, or without Range")
    }

    /// Not that method.
    pub fn wrong_method(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "wrong-method", "Method not allowed", detail, "")
    }

    /// No job has that id.
    pub fn no_such_job(text: &str) -> Self {
        let hint = "stoker list shows the jobs that are known";
        Self::not_found(format!("no job has an id that begins with {:?}", clip(text, 80)), hint)
    }

    /// Several jobs have ids that begin so.
    pub fn ambiguous(text: &str, some: &[JobId]) -> Self {
        let some: Vec<_> = some.iter().map(ToString::to_string).collect();
        let detail = format!("several jobs have ids that begin with {text:?}: {}", some.join(", "));
        Self::new(StatusCode::BAD_REQUEST, "ambiguous-id", "Ambiguous id", detail, "write more of the id")
    }

    /// Larger than is taken.
    pub fn too_large(limit: usize) -> Self {
        let detail = format!("the request is larger than {limit} bytes");
        let hint = "send fewer jobs at a time";
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "Request too large", detail, hint)
    }

    /// The body did not arrive in time.
    pub fn too_slow() -> Self {
        let detail = "the request's body did not arrive in time";
        Self::new(StatusCode::REQUEST_TIMEOUT, "too-slow", "Request timeout", detail, "")
    }

    /// The body is not JSON.
    pub fn media_type(found: &str) -> Self {
        let detail = format!("content type {:?} is not taken", clip(found, 80));
        let hint = "send JSON with content-type: application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media-type", "Unsupported media type", detail, hint)
    }

    /// As many as there may be are there.
    pub fn too_many_streams() -> Self {
        let mut problem = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too-many-streams",
            "Too many live streams",
            "as many live streams are open as this server holds",
            "close some, or poll",
        );
        problem.retry_after_s = Some(RETRY_AFTER_S);
        problem
    }

    /// A delivery's sender is not proven.
    pub fn not_genuine(detail: impl Into<String>, hint: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "not-genuine", "Delivery not genuine", detail, hint)
    }

    /// A delivery's payload makes no job.
    pub fn bad_mapping(detail: impl Into<String>) -> Self {
        let hint = "try it with stoker hooks test --payload FILE; deliveries are JSON";
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "bad-mapping", "Mapping failed", detail, hint)
    }

    /// Not now, but soon.
    pub fn busy(detail: impl Into<String>) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let mut problem = Self::new(status, "busy", "Busy", detail, "send it again");
        problem.retry_after_s = Some(RETRY_AFTER_S);
        problem
    }

    /// Not in the state that it is in.
    pub fn conflict(detail: impl Into<String>, hint: &str) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", "Not possible now", detail, hint)
    }

    /// Not yet, or not any more: for whoever decides where requests go.
    pub fn not_ready(detail: impl Into<String>, hint: &str) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let mut problem = Self::new(status, "not-ready", "Not ready", detail, hint);
        problem.retry_after_s = Some(RETRY_AFTER_S);
        problem
    }

    fn unavailable(detail: impl Into<String>) -> Self {
        let hint = "nothing was accepted beyond what is listed as confirmed; try again, with an Idempotency-Key";
        let title = "Broker unavailable";
        let mut problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "broker-unavailable", title, detail, hint);
        problem.retry_after_s = Some(RETRY_AFTER_S);
        problem
    }

    pub(crate) fn internal(detail: impl Into<String>) -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::new(status, "internal", "Internal error", detail, "see the server's log; stoker doctor")
    }

    /// Refuses work early while the broker would not take it.
    pub fn check_broker(status: &BrokerStatus) -> Result<(), Self> {
        match status {
            BrokerStatus::Connected => Ok(()),
            BrokerStatus::Blocked(why) => Err(BrokerError::Blocked(why.clone()).into()),
            BrokerStatus::Down(why) => Err(BrokerError::Down(why.clone()).into()),
        }
    }
}

impl From<SpecErrors> for Problem {
    fn from(SpecErrors(errors): SpecErrors) -> Self {
        let n = errors.len();
        let detail = if n == 1 { "1 thing is wrong".to_owned() } else { format!("{n} things are wrong") };
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Self { errors, ..Self::new(status, "invalid-spec", "Job refused", detail, "") }
    }
}

impl From<Rejection> for Problem {
    fn from(rejection: Rejection) -> Self {
        if rejection == Rejection::UnknownJob {
            return Self::not_found(rejection.to_string(), "");
        }
        Self::new(StatusCode::CONFLICT, "conflict", "Not possible now", rejection.to_string(), "")
    }
}

impl From<BrokerError> for Problem {
    fn from(error: BrokerError) -> Self {
        match &error {
            BrokerError::Unroutable(_) => {
                let field = FieldError {
                    field: "pool".to_owned(),
                    message: error.to_string(),
                    hint: "stoker hosts shows the pools that are served".to_owned(),
                };
                SpecErrors(vec![field]).into()
            }
            BrokerError::Store(_) => Self::internal(error.to_string()),
            _ => Self::unavailable(error.to_string()),
        }
    }
}

impl From<PublishError> for Problem {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Broker(broker) => broker.into(),
            PublishError::Encode(cause) => {
                let hint = "shorten labels, kernel arguments or units".to_owned();
                SpecErrors(vec![FieldError { field: "(job)".to_owned(), message: cause.to_string(), hint }]).into()
            }
        }
    }
}

impl From<RepublishError> for Problem {
    fn from(error: RepublishError) -> Self {
        match error {
            RepublishError::Model(cause) => cause.into(),
            RepublishError::Publish(cause) => cause.into(),
            RepublishError::Unknown(_) => {
                Self::new(StatusCode::CONFLICT, "conflict", "Not possible now", error.to_string(), "")
            }
        }
    }
}

impl From<Interrupted> for Problem {
    fn from(interrupted: Interrupted) -> Self {
        Self { confirmed: interrupted.confirmed, ..interrupted.cause.into() }
    }
}

impl From<ReadModelError> for Problem {
    fn from(error: ReadModelError) -> Self {
        match error {
            ReadModelError::Cursor => Self::bad_request(error.to_string(), ""),
            _ => Self::internal(error.to_string()),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Self::internal(error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // Numbers, text and lists: this cannot fail to be written.
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        if self.kind == "/problems/unauthorized" {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"stoker\""));
        }
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
