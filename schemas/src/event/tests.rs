//! On the wire and back: every kind, every version ever written, and whatever else may arrive.

// The golden files of old versions are read from the source tree: a test may.
#![expect(clippy::disallowed_methods, reason = "tests read the golden files")]

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::limits::MAX_EVENT_BYTES;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/golden");

fn received() -> Time {
    Time::from_unix_micros(1_764_000_000_000_000)
}

fn decode(value: &Value) -> Result<Event, DecodeError> {
    Event::decode(&serde_json::to_vec(value).unwrap(), received())
}

fn enqueued() -> Value {
    json!({
        "specversion": "1.0", "id": "any", "source": "/producers/python", "type": "dev.stoker.job.enqueued.v1",
        "subject": "018f6f0e-0a52-7c0e-9d1c-7a4b3b0d5e11", "data": {"spec": {"image": "golden"}, "by": "py"}
    })
}

/// The well-formed message with one attribute changed.
fn with(field: &str, value: Value) -> Value {
    let mut event = enqueued();
    event[field] = value;
    event
}

#[test]
fn every_kind_has_a_sample_that_survives_the_wire() {
    for (kind, version) in EventData::KINDS {
        let event = sample(kind).unwrap_or_else(|| panic!("{kind} has no sample"));
        assert_eq!((event.data.kind(), event.data.version()), (*kind, *version));
        let bytes = event.encode().unwrap();
        assert_eq!(Event::decode(&bytes, received()).unwrap(), event, "{kind}");
    }
    let ids: std::collections::BTreeSet<_> = samples().iter().map(Event::id).collect();
    assert_eq!(ids.len(), EventData::KINDS.len());
}

/// Files are written once and read for ever: an old one that fails here would be an event in
/// somebody's log that a new Stoker cannot read. Never edit one; add an upcast.
#[test]
fn every_version_ever_written_can_still_be_read() {
    for (kind, today) in EventData::KINDS {
        for version in 1..=*today {
            let path = format!("{GOLDEN}/{kind}.v{version}.json");
            if version == *today && std::env::var_os("STOKER_BLESS").is_some() && !std::fs::exists(&path).unwrap() {
                let value: Value = serde_json::from_slice(&sample(kind).unwrap().encode().unwrap()).unwrap();
                std::fs::write(&path, format!("{value:#}\n")).unwrap();
            }
            let text = std::fs::read(&path)
                .unwrap_or_else(|e| panic!("{path}: {e}; STOKER_BLESS=1 writes the file of a new version"));
            let event = Event::decode(&text, received()).unwrap_or_else(|e| panic!("{path}: {e}"));
            assert_eq!(event.data.kind(), *kind);
            if version == *today {
                assert_eq!(event, sample(kind).unwrap(), "{path} says something else than the sample");
            }
        }
    }
}

#[test]
fn what_other_languages_leave_out_is_filled_in() {
    let event = decode(&enqueued()).unwrap();
    assert_eq!((event.time, event.epoch, event.traceparent), (received(), JOB_LEVEL, None));
    for (field, value) in [
        ("id", Value::Null),
        ("time", Value::Null),
        ("attempt", Value::Null),
        ("datacontenttype", json!("application/json; charset=utf-8")),
        ("anything", json!({"nested": [1, 2, {"deep": true}]})),
        ("traceparent", json!("not one")),
        ("traceparent", json!("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01")),
        ("traceparent", json!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nX-Evil: 1")),
    ] {
        let event = decode(&with(field, value.clone())).unwrap_or_else(|e| panic!("{field}={value}: {e}"));
        assert_eq!(event.traceparent, None);
    }
    let shifted = decode(&with("time", json!("2025-11-04T21:20:00+02:00"))).unwrap();
    assert_eq!(shifted.time.to_string(), "2025-11-04T19:20:00.000000Z");
}

#[test]
fn a_subject_has_one_spelling_and_a_source_no_control_characters() {
    for spelling in ["018F6F0E-0A52-7C0E-9D1C-7A4B3B0D5E11", "urn:uuid:018f6f0e-0a52-7c0e-9d1c-7a4b3b0d5e11"] {
        let event = decode(&with("subject", json!(spelling))).unwrap();
        assert_eq!(event.id(), "018f6f0e-0a52-7c0e-9d1c-7a4b3b0d5e11/0.0/job.enqueued");
    }
    let event = decode(&with("source", json!(format!("a\nb\u{0}{}", "x".repeat(900))))).unwrap();
    assert!(event.source.starts_with("a b x") && event.source.len() <= 200);
}

#[test]
fn wrong_messages_are_typed_errors_that_name_the_field() {
    let table = [
        (with("specversion", json!("0.3")), "specversion"),
        (with("specversion", json!(1.0)), "CloudEvent"),
        (with("type", json!("dev.stoker.job.enqueued")), "type"),
        (with("type", json!("dev.stoker.job.enqueued.v0")), "version 0 never existed"),
        (with("type", json!("dev.stoker.job.enqueued.v2")), "newer"),
        (with("type", json!("dev.stoker.job.enqueued.v99999999999")), "unknown"),
        (with("type", json!("com.example.thing")), "unknown"),
        (with("subject", json!("../../etc")), "subject"),
        (with("subject", json!("")), "subject"),
        (with("time", json!("yesterday")), "CloudEvent"),
        (with("attempt", json!(-1)), "CloudEvent"),
        (with("attempt", json!(4_294_967_296_u64)), "CloudEvent"),
        (with("delivery", json!("1")), "CloudEvent"),
        (with("data", Value::Null), "job.enqueued"),
        (with("data", json!([])), "job.enqueued"),
        (with("data", json!({"spec": {"image": "golden"}})), "by"),
        (with("data", json!({"spec": {"image": "golden", "vcpus": 1e300}, "by": "py"})), "vcpus"),
        (with("data", json!({"spec": {"image": "gol\u{0}den"}, "by": "py"})), "image"),
        (with("data", json!({"spec": {"image": "golden", "kernel_args": "ip=dhcp"}, "by": "py"})), "two owners"),
        (json!([enqueued()]), "CloudEvent"),
        (json!("text"), "CloudEvent"),
    ];
    for (message, named) in table {
        let error = decode(&message).expect_err(named).to_string();
        assert!(error.contains(named), "{error:?} does not name {named:?}");
        assert!(error.len() < 5_000);
    }
    for field in ["specversion", "source", "type", "subject", "data"] {
        let mut event = enqueued();
        event.as_object_mut().unwrap().remove(field);
        assert!(decode(&event).unwrap_err().to_string().contains(field), "{field}");
    }
}

#[test]
fn hostile_bytes_are_typed_errors() {
    let good = serde_json::to_vec(&enqueued()).unwrap();
    for end in 0..good.len() {
        assert!(Event::decode(&good[..end], received()).is_err(), "cut at {end}");
    }
    let text = String::from_utf8(good).unwrap();
    let data = r#"{"by":"py","spec":{"image":"golden"}}"#;
    assert!(text.contains(data), "{text}");
    let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    let table = [
        ("nested deeply in data", text.replace(data, &deep)),
        ("nested deeply in the spec", text.replace(r#""golden""#, &deep)),
        ("a number beyond f64", text.replace(r#""golden""#, "1e999999")),
        ("a number of 40 kB", text.replace(r#""golden""#, &"9".repeat(40_000))),
        ("the same attribute twice", text.replacen('{', r#"{"source":"a","source":"b","#, 1)),
        ("half a surrogate", text.replace("golden", r"\ud800")),
        ("a raw NUL", text.replace("golden", "gol\0den")),
        ("text behind it", format!("{text} x")),
    ];
    for (what, message) in table {
        assert!(Event::decode(message.as_bytes(), received()).is_err(), "{what}");
    }
    let ignored = text.replacen('{', &format!(r#"{{"x":{deep},"#), 1);
    // serde_json skips an unknown attribute without recursion; whatever it says, it says it.
    let _either = Event::decode(ignored.as_bytes(), received());
    let big = with("data", json!({"spec": {"image": "golden"}, "by": "x".repeat(70_000)}));
    assert!(matches!(decode(&big), Err(DecodeError::TooLarge(size)) if size > MAX_EVENT_BYTES));
    let Ok(mut event) = decode(&enqueued()) else { panic!("it was good before") };
    event.data = EventData::JobEnqueued(JobEnqueued { by: "x".repeat(70_000), ..enqueued_payload(&event) });
    assert!(matches!(event.encode(), Err(DecodeError::TooLarge(_))), "what nobody takes is not sent");
}

fn enqueued_payload(event: &Event) -> JobEnqueued {
    match &event.data {
        EventData::JobEnqueued(payload) => payload.clone(),
        other => panic!("{}", other.kind()),
    }
}

#[test]
fn a_cause_of_a_newer_stoker_does_not_make_an_event_unreadable() {
    let text = String::from_utf8(sample("attempt.failed").unwrap().encode().unwrap()).unwrap();
    let event = Event::decode(text.replace("agent_not_listening", "gremlins").as_bytes(), received()).unwrap();
    let EventData::AttemptFailed(failed) = event.data else { panic!("{:?}", event.data) };
    assert_eq!(failed.diagnosis.cause, crate::diagnosis::Cause::Unknown);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
        let _either = Event::decode(&bytes, received());
    }

    #[test]
    fn a_good_message_with_bytes_changed_never_panics(
        index in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = index.get(&samples()).encode().unwrap();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Ok(event) = Event::decode(&bytes, received()) {
            // Whatever is taken can be stored and read again.
            let again = Event::decode(&event.encode().unwrap(), received()).unwrap();
            prop_assert_eq!(again, event);
        }
    }
}
