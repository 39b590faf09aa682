//! Shapes that travel as bytes or text in the code and so have no type there.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};
use stoker_schemas::{JobSpec, Time};

use crate::submit::MAX_JOBS_PER_REQUEST;

/// One job, or a list of them.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "it is a shape; the handler reads the value field by field, for all errors at once")]
pub enum SubmitRequest {
    /// One.
    One(Box<JobSpec>),
    /// All or none are taken, as far as they can be judged beforehand.
    Many(#[schemars(length(min = 1, max = MAX_JOBS_PER_REQUEST))] Vec<JobSpec>),
}

/// An event as CloudEvents 1.0 has it, in structured JSON. What is in `data` depends on `type`; the
/// schema of each is in the files of the contract (`schemas/json/<kind>.v<version>.json`).
#[derive(Serialize, JsonSchema)]
pub struct CloudEvent {
    /// Version of CloudEvents.
    #[schemars(extend("const" = "1.0"))]
    specversion: String,
    /// The same fact has the same id, however often it is told.
    #[schemars(length(min = 1))]
    id: String,
    /// Who says so: `/producers/<name>` or `/hosts/<name>`.
    source: String,
    /// `dev.stoker.<kind>.v<version>`.
    #[schemars(regex(pattern = r"^dev\.stoker\.[a-z.-]+\.v[0-9]+$"))]
    r#type: String,
    /// The job's id, or the host's name.
    subject: String,
    /// When.
    time: Time,
    /// Of `data`.
    datacontenttype: String,
    /// Which attempt at the job; 0 for the job as a whole.
    attempt: u32,
    /// Earlier deliveries of that attempt.
    delivery: u32,
    /// W3C trace context.
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
    /// What happened.
    data: Map<String, Value>,
}

/// What comes down a live stream, as a reader of server-sent events sees it.
#[derive(Serialize, JsonSchema)]
pub struct StreamedEvent {
    /// The event's number: where to go on after it.
    #[schemars(regex(pattern = "^[0-9]+$"))]
    id: String,
    /// The CloudEvent, as JSON.
    #[schemars(extend("contentMediaType" = "application/json"), extend("contentSchema" = { "$ref": "#/components/schemas/CloudEvent" }))]
    data: String,
}
