//! The published contract: what is checked in is what the code says, and examples, golden events
//! and what a foreign publisher would send are valid by it.

#![allow(clippy::expect_used, clippy::panic, reason = "a failed expectation is a failed test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jsonschema::Validator;
use serde_json::{Value, json};
use stoker_schemas::event::{EventData, samples};
use stoker_schemas::published::{event_file, published};
use stoker_schemas::{Event, JobSpec, Time};

/// Set, it rewrites the checked-in files instead of comparing them.
const BLESS: &str = "STOKER_BLESS";

fn below(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../schemas").join(folder)
}

fn read(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn schemas() -> BTreeMap<String, Value> {
    let parsed = |(name, text): (String, String)| (name, serde_json::from_str(&text).expect("published text is JSON"));
    published().into_iter().map(parsed).collect()
}

/// Formats are checked, too: a subject that is no UUID is no event.
fn validator(schema: &Value) -> Validator {
    jsonschema::options().should_validate_formats(true).build(schema).expect("a valid JSON Schema")
}

fn errors(schema: &Value, instance: &Value) -> Vec<String> {
    validator(schema).iter_errors(instance).map(|e| format!("{} at {}", e, e.instance_path())).collect()
}

#[test]
fn the_published_files_are_current() {
    let folder = below("json");
    let bless = std::env::var_os(BLESS).is_some();
    // That of the HTTP API is made, and held current, by the crate that serves it.
    let mut expected = vec!["openapi.json".to_owned()];
    expected.extend(published().into_iter().map(|(name, _)| name));
    for (name, text) in published() {
        let path = folder.join(&name);
        if bless {
            std::fs::write(&path, &text).expect("writable");
        }
        let known = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(known == text, "schemas/json/{name} is not what the code says; {BLESS}=1 rewrites it");
    }
    let mut found: Vec<_> = std::fs::read_dir(&folder)
        .expect("schemas/json")
        .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
        .collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected, "files that nothing publishes any more");
}

#[test]
fn every_schema_is_a_schema_and_its_examples_are_valid() {
    for (name, schema) in schemas() {
        if name == "asyncapi.json" {
            continue;
        }
        assert!(jsonschema::meta::is_valid(&schema), "{name}");
        for example in schema["examples"].as_array().into_iter().flatten() {
            assert_eq!(errors(&schema, example), Vec::<String>::new(), "{name}");
        }
    }
}

#[test]
fn every_golden_event_of_today_is_valid_and_decodes() {
    let schemas = schemas();
    for (kind, version) in EventData::KINDS {
        let file = event_file(kind, *version);
        let golden = read(&below("golden").join(&file));
        assert_eq!(errors(&schemas[&file], &golden), Vec::<String>::new(), "{file}");
        let bytes = serde_json::to_vec(&golden).expect("JSON");
        let event = Event::decode(&bytes, Time::UNIX_EPOCH).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert_eq!(event.data.kind(), *kind);
    }
}

/// What schema and decoder say about the same message: a publisher that validates first is never
/// surprised by the other side.
#[test]
fn schema_and_decoder_agree_about_jobs() {
    let schema = &schemas()["job.enqueued.v1.json"];
    let message = |spec: Value| {
        json!({
            "specversion": "1.0", "id": "1", "source": "/producers/python", "type": "dev.stoker.job.enqueued.v1",
            "subject": "6f2c1f0e-0a52-4c0e-9d1c-7a4b3b0d5e11", "data": {"by": "python", "spec": spec}
        })
    };
    let table = [
        (json!({"image": "golden"}), true),
        (json!({"image": "golden@7", "vcpus": 32, "priority": "high", "pool": "gpu"}), true),
        (json!({"image": "g", "network": {"static": {"address": "10.0.0.2", "gateway": "10.0.0.1"}}}), true),
        (json!({"image": "g", "retry": {"per_cause": {"agent_not_listening": 5}}, "vcpus": null}), true),
        (json!({"image": "g", "readiness": {"http": {"port": 9000}, "units": ["X"]}, "labels": {"a": "b"}}), true),
        (json!({}), false),
        (json!({"image": null}), false),
        (json!({"image": "../etc"}), false),
        (json!({"image": "Golden"}), false),
        (json!({"image": "g", "vcpus": 33}), false),
        (json!({"image": "g", "vcpus": "2"}), false),
        (json!({"image": "g", "memoryMiB": 1}), false),
        (json!({"image": "g", "pool": "a.b"}), false),
        (json!({"image": "g", "priority": "urgent"}), false),
        (json!({"image": "g", "network": "static"}), false),
        (json!({"image": "g", "readiness": {"http": {"port": 0}}}), false),
        (json!({"image": "g", "ttl_s": 0}), false),
    ];
    for (spec, valid) in table {
        let message = message(spec.clone());
        let found = errors(schema, &message);
        assert_eq!(found.is_empty(), valid, "schema about {spec}: {found:?}");
        let decoded = Event::decode(&serde_json::to_vec(&message).expect("JSON"), Time::UNIX_EPOCH);
        assert_eq!(decoded.is_ok(), valid, "decoder about {spec}: {decoded:?}");
    }
}

#[test]
fn what_is_written_is_valid_by_the_job_schema() {
    let schema = &schemas()["job-spec.json"];
    let spec =
        JobSpec::from_value(&json!({"image": "golden", "network": "dhcp", "labels": {"a": "b"}})).expect("valid");
    assert_eq!(errors(schema, &serde_json::to_value(spec).expect("JSON")), Vec::<String>::new());
}

#[test]
fn the_asyncapi_document_holds_together() {
    let schemas = schemas();
    let document = &schemas["asyncapi.json"];
    let mut references = Vec::new();
    collect(document, &mut references);
    for reference in references {
        match reference.strip_prefix('#') {
            Some(pointer) => assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere"),
            None => assert!(schemas.contains_key(&reference), "{reference} is not published"),
        }
    }
    for event in samples() {
        let message = &document["components"]["messages"][event.data.kind()];
        let schema = &schemas[message["payload"]["$ref"].as_str().expect("payload")];
        assert_eq!(errors(schema, &message["examples"][0]["payload"]), Vec::<String>::new());
    }
    let enqueue = &document["operations"]["accept-job.enqueued"]["bindings"]["amqp"];
    assert_eq!((&enqueue["deliveryMode"], &enqueue["mandatory"]), (&json!(2), &json!(true)));
    assert_eq!(document["channels"]["job.enqueued"]["address"], "job.enqueued.{pool}.{lane}");
}

/// The Python example is only as good as the message it makes: take it out and check it.
#[test]
fn the_example_in_the_document_makes_a_valid_job() {
    let schemas = schemas();
    let text = schemas["asyncapi.json"]["info"]["description"].as_str().expect("description");
    let literal = text.split("event = ").nth(1).and_then(|rest| rest.split("connection =").next()).expect("the event");
    let job = "\"6f2c1f0e-0a52-4c0e-9d1c-7a4b3b0d5e11\"";
    let filled = literal
        .replace(": job,", &format!(": {job},"))
        .replace("datetime.datetime.now(datetime.timezone.utc).isoformat()", "\"2025-11-04T19:20:00.123456+00:00\"")
        .replace("},\n}", "}\n}");
    let message: Value = serde_json::from_str(&filled).unwrap_or_else(|e| panic!("{e}: {filled}"));
    assert_eq!(errors(&schemas["job.enqueued.v1.json"], &message), Vec::<String>::new());
    Event::decode(filled.as_bytes(), Time::UNIX_EPOCH).expect("decodes");
}

fn collect(value: &Value, references: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            references.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
            map.values().for_each(|v| collect(v, references));
        }
        Value::Array(list) => list.iter().for_each(|v| collect(v, references)),
        _ => {}
    }
}
