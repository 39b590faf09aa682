//! Reading requests: bounded, in time, and with problems instead of a framework's plain text.

use std::time::Duration;

use axum::body::{Bytes, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::{HeaderMap, header, request::Parts};
use serde::de::DeserializeOwned;
use serde_json::Value;
use stoker_schemas::limits::clip;

use super::{MAX_BODY_BYTES, Problem};
use crate::submit::Asker;

/// A body that takes longer is given up: a slow sender may not hold a connection for ever.
pub(super) const BODY_WITHIN: Duration = Duration::from_secs(15);
/// Longest name kept of who asks.
const MAX_ASKER_BYTES: usize = 128;

/// Up to here a double says exactly which whole number is meant.
const MAX_EXACT: f64 = (1_u64 << 53) as f64;

/// A JSON body; null when it is empty.
pub struct Body(pub Value);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let kind = request.headers().get(header::CONTENT_TYPE).map(|v| v.to_str().unwrap_or_default().to_owned());
        let reading = to_bytes(request.into_body(), MAX_BODY_BYTES);
        let bytes: Bytes = match tokio::time::timeout(BODY_WITHIN, reading).await {
            Err(_) => return Err(Problem::too_slow()),
            Ok(Err(_)) => return Err(Problem::too_large(MAX_BODY_BYTES)),
            Ok(Ok(bytes)) => bytes,
        };
        if bytes.is_empty() {
            return Ok(Self(Value::Null));
        }
        // A form or plain text can be sent by any web page without asking; JSON cannot.
        let essence = kind.as_deref().and_then(|k| k.split(';').next()).unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            return Err(Problem::media_type(essence));
        }
        match serde_json::from_slice(&bytes) {
            Ok(Value::Null) => Err(Problem::bad_request("the body is null", "send an object, or no body")),
            Ok(value) => Ok(Self(plain_numbers(value))),
            Err(e) => Err(Problem::bad_request(format!("the body is not JSON: {e}"), "")),
        }
    }
}

/// JSON has one kind of number: to many writers, and to JSON Schema, `2.0` is the whole number 2.
fn plain_numbers(value: Value) -> Value {
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(f) if number.is_f64() && f.fract() == 0.0 && f.abs() <= MAX_EXACT => Value::from(f as i64),
            _ => Value::Number(number),
        },
        Value::Array(list) => list.into_iter().map(plain_numbers).collect(),
        Value::Object(object) => object.into_iter().map(|(name, value)| (name, plain_numbers(value))).collect(),
        other => other,
    }
}

impl Body {
    /// As a typed request; no body stands for all defaults.
    pub fn typed<T: DeserializeOwned + Default>(self) -> Result<T, Problem> {
        if self.0.is_null() {
            return Ok(T::default());
        }
        // A list would be read as the fields in their order, which nobody means.
        if !self.0.is_object() {
            return Err(Problem::bad_request("the body is not an object", ""));
        }
        serde_json::from_value(self.0).map_err(|e| Problem::bad_request(clip(&e.to_string(), 300), ""))
    }
}

/// What stands in the path.
pub struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let read = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        read.map(|axum::extract::Path(t)| Self(t))
            .map_err(|e| Problem::bad_request(clip(&e.body_text(), 300), "see /v1/openapi.json for what stands there"))
    }
}

/// Query parameters.
pub struct Params<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let read = Query::<T>::try_from_uri(&parts.uri);
        read.map(|Query(t)| Self(t)).map_err(|e| Problem::bad_request(clip(&e.body_text(), 300), ""))
    }
}

/// Who asks, as far as they say.
pub fn asker(headers: &HeaderMap) -> Asker {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let by = text("stoker-by").filter(|by| !by.is_empty()).unwrap_or("api");
    // W3C trace context: version, trace id, parent id, flags.
    let well_formed = |t: &&str| t.len() == 55 && t.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    let traceparent = text("traceparent").filter(well_formed).map(str::to_owned);
    Asker { by: clip(by, MAX_ASKER_BYTES), traceparent }
}
