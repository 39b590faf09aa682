//! How a diagnosis is read. Early versions wrote a confidence beside an unknown cause.

use serde::{Deserialize, Deserializer};

use super::{Cause, Confidence, Diagnosis};
use crate::event::Stage;

#[derive(Deserialize)]
struct Stored {
    stage: Stage,
    cause: Cause,
    #[serde(default)]
    confidence: Option<Confidence>,
    summary: String,
    remedy: String,
    evidence: Vec<String>,
    retryable: bool,
}

impl<'de> Deserialize<'de> for Diagnosis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Stored { stage, cause, confidence, summary, remedy, evidence, retryable } =
            Stored::deserialize(deserializer)?;
        let confidence = confidence.filter(|_| cause != Cause::Unknown);
        Ok(Self { stage, cause, confidence, summary, remedy, evidence, retryable })
    }
}
