//! Events as CloudEvents 1.0 in structured JSON, with versions. Old versions are brought up to
//! date on reading (`upcast`), so that whatever was ever written stays readable.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Event, EventData};
use crate::id::{Epoch, HostName, JobId, PoolName};
use crate::limits::{MAX_EVENT_BYTES, clip};
use crate::time::Time;

/// The CloudEvents version.
pub const SPEC_VERSION: &str = "1.0";
/// Beginning of every event type; then kind, `.v` and version.
pub const TYPE_PREFIX: &str = "dev.stoker.";
/// `source` is a name for people, not a document.
const MAX_SOURCE_BYTES: usize = 200;

/// Why bytes are not an event. Says which field, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Larger than any event.
    #[error("message has {0} bytes, at most {MAX_EVENT_BYTES} are taken; put large data elsewhere and refer to it")]
    TooLarge(usize),
    /// Not a CloudEvent.
    #[error("not a CloudEvent in structured JSON: {0}")]
    NotAnEvent(String),
    /// An attribute is wrong.
    #[error("{field}: {message}")]
    Attribute {
        /// Which attribute.
        field: &'static str,
        /// What is wrong.
        message: String,
    },
    /// Nobody knows this type.
    #[error("type: {0} is unknown; known are dev.stoker.<kind>.v<version> with kinds from schemas/json")]
    UnknownType(String),
    /// Written by a newer Stoker.
    #[error("type: {0} is newer than this Stoker understands; upgrade this host")]
    TooNew(String),
    /// The payload does not fit its type.
    #[error("data of {kind}: {message}")]
    Data {
        /// Which kind.
        kind: String,
        /// What is wrong.
        message: String,
    },
}

#[derive(Serialize)]
struct WireOut<'a> {
    specversion: &'a str,
    id: String,
    source: &'a str,
    r#type: String,
    subject: &'a str,
    time: Time,
    datacontenttype: &'a str,
    attempt: u32,
    delivery: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    data: Box<RawValue>,
}

/// Attributes we do not know are extensions: CloudEvents wants them tolerated.
#[derive(Deserialize)]
struct WireIn<'a> {
    specversion: String,
    source: String,
    r#type: String,
    subject: String,
    #[serde(default)]
    time: Option<Time>,
    #[serde(default)]
    attempt: Option<u32>,
    #[serde(default)]
    delivery: Option<u32>,
    #[serde(default)]
    traceparent: Option<String>,
    #[serde(borrow)]
    data: &'a RawValue,
}

impl Event {
    /// As structured JSON.
    pub fn encode(&self) -> Result<Vec<u8>, DecodeError> {
        let failed =
            |e: serde_json::Error| DecodeError::Data { kind: self.data.kind().to_owned(), message: e.to_string() };
        let wire = WireOut {
            specversion: SPEC_VERSION,
            id: self.id(),
            source: &self.source,
            r#type: format!("{TYPE_PREFIX}{}.v{}", self.data.kind(), self.data.version()),
            subject: &self.subject,
            time: self.time,
            datacontenttype: "application/json",
            attempt: self.epoch.attempt,
            delivery: self.epoch.delivery,
            traceparent: self.traceparent.as_deref(),
            data: self.data.payload_to_value().map_err(failed)?,
        };
        let bytes = serde_json::to_vec(&wire).map_err(failed)?;
        if bytes.len() > MAX_EVENT_BYTES {
            return Err(DecodeError::TooLarge(bytes.len()));
        }
        Ok(bytes)
    }

    /// From structured JSON. `received` stands in for a missing `time`.
    pub fn decode(bytes: &[u8], received: Time) -> Result<Self, DecodeError> {
        if bytes.len() > MAX_EVENT_BYTES {
            return Err(DecodeError::TooLarge(bytes.len()));
        }
        let wire: WireIn<'_> =
            serde_json::from_slice(bytes).map_err(|e| DecodeError::NotAnEvent(clip(&e.to_string(), 300)))?;
        if wire.specversion != SPEC_VERSION {
            let message = format!("{:?} is not supported, write \"1.0\"", clip(&wire.specversion, 40));
            return Err(DecodeError::Attribute { field: "specversion", message });
        }
        let data = decode_data(&wire.r#type, wire.data)?;
        Ok(Self {
            subject: subject(&wire.subject, &data)?,
            // It stands in logs and on pages: no control characters, no end without end.
            source: clip(&wire.source.replace(char::is_control, " "), MAX_SOURCE_BYTES),
            time: wire.time.unwrap_or(received),
            epoch: Epoch { attempt: wire.attempt.unwrap_or(0), delivery: wire.delivery.unwrap_or(0) },
            traceparent: wire.traceparent.filter(|t| is_traceparent(t)),
            data,
        })
    }
}

/// The subject in its one spelling: a UUID has several, and ids of events begin with it.
fn subject(given: &str, data: &EventData) -> Result<String, DecodeError> {
    let wrong = |message: String| DecodeError::Attribute { field: "subject", message };
    if data.is_about_host() {
        return given.parse::<HostName>().map(|h| h.to_string()).map_err(|e| wrong(e.to_string()));
    }
    if matches!(data, EventData::PoolConfigured(_)) {
        return given.parse::<PoolName>().map(|pool| pool.to_string()).map_err(|e| wrong(e.to_string()));
    }
    let whose = if data.is_about_letter() { "dead letter" } else { "job" };
    let not_uuid = |_| wrong(format!("{:?} is not the {whose}'s UUID", clip(given, 80)));
    given.parse::<JobId>().map(|id| id.to_string()).map_err(not_uuid)
}

/// `00-<32 hex>-<16 hex>-<2 hex>`, as W3C has it. It goes on into headers, so nothing else may.
fn is_traceparent(text: &str) -> bool {
    let parts: Vec<_> = text.split('-').map(str::len).collect();
    parts == [2, 32, 16, 2] && text.bytes().all(|b| b == b'-' || b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn decode_data(type_name: &str, raw: &RawValue) -> Result<EventData, DecodeError> {
    let shown = || clip(type_name, 120);
    let (kind, version) = type_name
        .strip_prefix(TYPE_PREFIX)
        .and_then(|rest| rest.rsplit_once(".v"))
        .and_then(|(kind, version)| Some((kind, version.parse::<u32>().ok()?)))
        .ok_or_else(|| DecodeError::UnknownType(shown()))?;
    let today = EventData::KINDS.iter().find(|(k, _)| *k == kind).ok_or_else(|| DecodeError::UnknownType(shown()))?.1;
    if version > today {
        return Err(DecodeError::TooNew(shown()));
    }
    let text = upcast(kind, version, today, raw)?;
    match EventData::payload_from_str(kind, text.get()) {
        Some(Ok(data)) => Ok(data),
        Some(Err(e)) => Err(DecodeError::Data { kind: kind.to_owned(), message: clip(&e.to_string(), 4_000) }),
        None => Err(DecodeError::UnknownType(shown())),
    }
}

/// One step from version `n` to `n + 1` of a kind. Add a row when a payload changes, and keep the
/// golden file of the old version: the tests read all of them.
type Upcast = (&'static str, u32, fn(serde_json::Value) -> serde_json::Value);
const UPCASTS: &[Upcast] = &[];

fn upcast<'a>(
    kind: &str,
    from: u32,
    to: u32,
    raw: &'a RawValue,
) -> Result<std::borrow::Cow<'a, RawValue>, DecodeError> {
    if from == to {
        return Ok(std::borrow::Cow::Borrowed(raw));
    }
    let wrong = |message: String| DecodeError::Data { kind: kind.to_owned(), message };
    let mut value: serde_json::Value = serde_json::from_str(raw.get()).map_err(|e| wrong(e.to_string()))?;
    for version in from..to {
        let step = UPCASTS.iter().find(|(k, v, _)| *k == kind && *v == version);
        let (_, _, change) = step.ok_or_else(|| wrong(format!("version {version} never existed")))?;
        value = change(value);
    }
    serde_json::value::to_raw_value(&value).map(std::borrow::Cow::Owned).map_err(|e| wrong(e.to_string()))
}
