//! What a wish to wait longer says: for how long, or until when.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use stoker_schemas::Time;
use stoker_schemas::limits::{MAX_SNOOZE_S, clip};

use super::Problem;
use super::list::time;

/// A wish that the attempt which waits waits longer. Loose types: a mistake is told with its
/// field's name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [
    { "required": ["for_s"], "properties": { "until": false } },
    { "required": ["until"], "properties": { "for_s": false } },
]))]
pub struct SnoozeRequest {
    /// For so many seconds from now, 30 days at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64", range(min = 1, max = MAX_SNOOZE_S))]
    pub for_s: Option<Value>,
    /// Until this time, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Time")]
    pub until: Option<String>,
    /// Why, in the asker's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

impl SnoozeRequest {
    /// The time that is meant.
    pub fn until(&self, now: Time) -> Result<Time, Problem> {
        let hint = "as in {\"for_s\": 3600}, or {\"until\": \"2026-11-23T16:00:00Z\"}";
        match (&self.for_s, self.until.as_deref()) {
            (Some(given), None) => {
                let seconds = given.as_u64().filter(|seconds| (1..=MAX_SNOOZE_S).contains(seconds));
                let seconds = seconds.ok_or_else(|| {
                    let given = clip(&given.to_string(), 40);
                    Problem::bad_request(format!("for_s: {given} is not seconds from 1 to {MAX_SNOOZE_S}"), hint)
                })?;
                Ok(now.plus(Duration::from_secs(seconds)))
            }
            (None, Some(until)) => {
                let empty = || Problem::bad_request("until: the time is empty", hint);
                time("until", Some(until))?.ok_or_else(empty)
            }
            (None, None) => Err(Problem::bad_request("for_s, until: one of them says how long", hint)),
            (Some(_), Some(_)) => Err(Problem::bad_request("for_s, until: both are given", "leave one of them out")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_says_how_long_and_a_mistake_names_its_field() {
        let read = |json: &str| serde_json::from_str::<SnoozeRequest>(json).unwrap().until(Time::UNIX_EPOCH);
        assert_eq!(read(r#"{"for_s": 60}"#).unwrap(), Time::from_unix_micros(60_000_000));
        assert_eq!(read(r#"{"until": "1970-01-01T00:01:00Z"}"#).unwrap(), Time::from_unix_micros(60_000_000));
        let wrong = [
            ("{}", "for_s, until"),
            (r#"{"for_s": 1, "until": "1970-01-01T00:01:00Z"}"#, "for_s, until"),
            (r#"{"for_s": 0}"#, "for_s:"),
            (r#"{"for_s": -1}"#, "for_s:"),
            (r#"{"for_s": "1h"}"#, "for_s:"),
            (r#"{"for_s": 2592001}"#, "for_s:"),
            (r#"{"until": ""}"#, "until:"),
            (r#"{"until": "tomorrow"}"#, "until:"),
        ];
        for (json, field) in wrong {
            let detail = read(json).unwrap_err().detail;
            assert!(detail.starts_with(field), "{json}: {detail}");
        }
    }
}
