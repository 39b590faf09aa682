//! What is kept of a delivery.

use std::collections::BTreeMap;

use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};
use stoker_schemas::limits::clip;
use stoker_schemas::{JobId, Time};

/// Headers kept of a delivery, and bytes of each; senders have about ten.
const MAX_HEADERS: usize = 32;
const MAX_HEADER_BYTES: usize = 256;
/// A header whose name contains one of these may hold a secret; it is neither kept nor shown to templates.
const SECRET_NAMES: [&str; 7] = ["auth", "cookie", "signature", "token", "secret", "key", "password"];

/// What became of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[schemars(rename = "DeliveryOutcome")]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A job was enqueued.
    Accepted,
    /// It had been decided on before.
    Duplicate,
    /// Genuine, but nothing is to be done.
    Ignored,
    /// Not taken.
    Refused,
}

impl Outcome {
    /// Its name, as in data.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Duplicate => "duplicate",
            Self::Ignored => "ignored",
            Self::Refused => "refused",
        }
    }
}

/// One delivery and its fate.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Delivery {
    /// Its number here; higher is newer.
    pub n: u64,
    /// When it came.
    pub at: Time,
    /// To which source.
    pub source: String,
    /// The sender's id of it; none while nobody knows that it is genuine.
    pub id: Option<String>,
    /// What it is about, where a header says so.
    pub event: Option<String>,
    /// What became of it.
    pub outcome: Outcome,
    /// The HTTP status of our answer.
    pub status: u16,
    /// Why, in a sentence.
    pub why: String,
    /// The job that it made, now or the first time.
    pub job: Option<JobId>,
    /// Size of the body.
    pub bytes: u64,
    /// The body is kept, so it can be replayed.
    pub replayable: bool,
    /// How often it was replayed.
    pub replays: u32,
    /// The delivery that this is a replay of.
    pub replay_of: Option<u64>,
    /// Headers, except those with secrets.
    pub headers: BTreeMap<String, String>,
}

impl Delivery {
    /// Genuine and not seen before. Others can be made by anybody in any number.
    pub fn is_original(&self) -> bool {
        self.id.is_some() && self.outcome != Outcome::Duplicate
    }

    /// What it is counted under.
    pub fn kind(&self) -> (String, Outcome) {
        (self.source.clone(), self.outcome)
    }

    /// Decided on: the same delivery again changes nothing. One that was refused may come again.
    pub fn is_settled(&self) -> bool {
        matches!(self.outcome, Outcome::Accepted | Outcome::Ignored)
    }
}

/// The headers that may be kept and shown.
pub fn harmless(headers: &HeaderMap) -> BTreeMap<String, String> {
    let names = headers.iter().filter(|(name, _)| !SECRET_NAMES.iter().any(|secret| name.as_str().contains(secret)));
    names
        .filter_map(|(name, value)| Some((name.to_string(), clip(value.to_str().ok()?, MAX_HEADER_BYTES))))
        .take(MAX_HEADERS)
        .collect()
}
