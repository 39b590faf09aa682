//! The contract for other languages: JSON Schemas of jobs, events and image manifests, and an
//! AsyncAPI document of the broker. Generated from the types, checked in below `json/`, and tested
//! to be current. Somebody with these files alone can enqueue a job from any language.

mod asyncapi;

use serde_json::{Map, Value, json};

use crate::event::{EventData, SPEC_VERSION, TYPE_PREFIX, sample};
use crate::image::ImageManifest;
use crate::spec::JobSpec;

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// Every published file: name and text.
pub fn published() -> Vec<(String, String)> {
    let mut files = vec![
        ("job-spec.json".to_owned(), text(&named("job-spec.v1", "A VM-boot job", schemars::schema_for!(JobSpec)))),
        (
            "image.json".to_owned(),
            text(&named("image.v1", "An image's manifest", schemars::schema_for!(ImageManifest))),
        ),
        ("asyncapi.json".to_owned(), text(&asyncapi::document())),
    ];
    for ((kind, version), (_, payload)) in EventData::KINDS.iter().zip(EventData::payload_schemas()) {
        files.push((event_file(kind, *version), text(&event_schema(kind, *version, payload))));
    }
    files
}

/// Name of the file with the schema of one kind and version of event.
pub fn event_file(kind: &str, version: u32) -> String {
    format!("{kind}.v{version}.json")
}

fn text(value: &Value) -> String {
    format!("{value:#}\n")
}

fn identified(name: &str) -> String {
    format!("urn:stoker:schema:{name}")
}

fn named(name: &str, title: &str, schema: schemars::Schema) -> Value {
    let mut value = schema.to_value();
    value["$id"] = json!(identified(name));
    value["title"] = json!(title);
    value
}

/// One event as a whole: the CloudEvents attributes, and its payload below `data`.
fn event_schema(kind: &str, version: u32, payload: schemars::Schema) -> Value {
    let mut data = payload.to_value();
    let mut part = |key: &str| data.as_object_mut().and_then(|object| object.remove(key));
    // References inside the payload start at the document's root, so its definitions go there.
    let definitions = part("$defs").unwrap_or_else(|| json!({}));
    let description = part("description").unwrap_or_else(|| json!(""));
    part("$schema");
    part("title");
    let mut properties = attributes(kind, version);
    properties.insert("data".to_owned(), data);
    let example = sample(kind).and_then(|event| event.encode().ok());
    let example: Option<Value> = example.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    json!({
        "$schema": DIALECT,
        "$id": identified(&format!("{kind}.v{version}")),
        "title": format!("{TYPE_PREFIX}{kind}.v{version}"),
        "description": description,
        "type": "object",
        "required": ["specversion", "id", "source", "type", "subject", "data"],
        "properties": properties,
        "$defs": definitions,
        "examples": example.into_iter().collect::<Vec<_>>(),
    })
}

fn attributes(kind: &str, version: u32) -> Map<String, Value> {
    let subject = match kind.split('.').next() {
        Some("host" | "warm") => json!({ "type": "string", "description": "The host's name", "maxLength": 40 }),
        Some("message") => {
            json!({ "type": "string", "format": "uuid", "description": "The dead letter's UUID: version 5 of queue, message id and body" })
        }
        Some("pool") => json!({ "type": "string", "description": "The pool's name", "maxLength": 40 }),
        _ => {
            json!({ "type": "string", "format": "uuid", "description": "The job's UUID: version 7, or version 5 of its idempotency key. The same UUID again is the same job." })
        }
    };
    let number = |description: &str| json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX, "default": 0, "description": description });
    let attributes = json!({
        "specversion": { "const": SPEC_VERSION, "description": "CloudEvents version" },
        "id": { "type": "string", "minLength": 1, "description": "Required by CloudEvents. Stoker derives its own from subject, attempt, delivery and kind, so that a repeated message is recognised whatever stands here." },
        "source": { "type": "string", "minLength": 1, "maxLength": 200, "description": "Who says so: /producers/<name> or /hosts/<name>" },
        "type": { "const": format!("{TYPE_PREFIX}{kind}.v{version}") },
        "subject": subject,
        "time": { "type": "string", "format": "date-time", "description": "When, RFC 3339. Left out, the time of arrival counts: send it where the order matters." },
        "datacontenttype": { "type": "string", "default": "application/json" },
        "attempt": number("Which attempt at the job; 0 for the job as a whole"),
        "delivery": number("Earlier deliveries of that attempt"),
        "traceparent": { "type": "string", "pattern": "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$", "description": "W3C trace context" },
    });
    match attributes {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_published_with_an_example() {
        let files = published();
        for (kind, version) in EventData::KINDS {
            let name = event_file(kind, *version);
            let (_, text) = files.iter().find(|(n, _)| *n == name).unwrap();
            let schema: Value = serde_json::from_str(text).unwrap();
            assert_eq!(schema["examples"].as_array().unwrap().len(), 1, "{name}");
            assert!(!schema["description"].as_str().unwrap().is_empty(), "{name}");
        }
    }

    #[test]
    fn the_same_code_publishes_the_same_text() {
        assert_eq!(published(), published());
    }
}
