//! What messages bring besides their payload, and the look at a payload that decides whether it is read at all.

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldArray, FieldTable, generation, parsing};
use serde_json::{Map, Value};
use stoker_schemas::Time;
use stoker_schemas::event::{Event, samples};
use stoker_schemas::fuzz::{Target, texts, written};
use stoker_schemas::letter::{Letter, dead_lettered};

use crate::broker::amqp::death;
use crate::broker::embedded::follower;

/// The parsers of this part.
pub const TARGETS: [Target; 3] = [
    Target { name: "dead-letter-headers", run: dead_letter_headers, samples: headers },
    Target { name: "amqp-headers", run: amqp_headers, samples: encoded_headers },
    Target { name: "event-kind", run: event_kind, samples: events },
];

/// Headers as JSON, which the fuzzer can change as a tree. `{"at": 7}` stands for a timestamp, `{"short": "a"}` for
/// a short text.
fn headers() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"x-death":[{"count":7,"exchange":"stoker.events","queue":"stoker.jobs.default","reason":"delivery_limit",
            "routing-keys":["jobs.default.normal"],"time":{"at":1700000000}},{"count":1,"reason":"expired"}],
            "x-last-death-queue":"stoker.jobs.default","x-last-death-reason":"delivery_limit"}"#,
        r#"{"x-death":[{"count":1,"exchange":"","queue":{"short":"stoker.dead"},"reason":"maxlen","routing-keys":[],
            "time":{"at":18446744073709551615}}],"x-first-death-reason":"maxlen"}"#,
        r#"{"x-stoker-reason":"it is not an event","x-stoker-queue":"stoker.jobs.default","x-stoker-message-id":"m-1",
            "x-stoker-routing-key":"jobs.default.normal","x-stoker-parked-at":"2026-11-24T16:00:00Z"}"#,
    ])
}

/// However a message says that it died, the event about it can be written.
fn dead_letter_headers(bytes: &[u8]) {
    let Ok(Value::Object(headers)) = serde_json::from_slice(bytes) else { return };
    judge(table(headers), bytes);
}

fn judge(headers: FieldTable, body: &[u8]) {
    let mut received = Delivery::mock(1, "stoker.events".into(), "jobs.default".into(), false, body.to_vec());
    received.properties = BasicProperties::default().with_headers(headers).with_timestamp(u64::MAX);
    assert_eq!(
        death::about(&received, "stoker.jobs.default", false).death,
        None,
        "what is no dead letter has no death"
    );
    let about = death::about(&received, "stoker.dead", true);
    let death = about.death.expect("a dead letter has a death");
    let (message_id, content_type) = (about.message_id.as_deref(), about.content_type.as_deref());
    let letter = Letter { death: &death, message_id, content_type, body };
    written(&dead_lettered(letter, "/producers/fuzz", Time::UNIX_EPOCH));
}

fn table(map: Map<String, Value>) -> FieldTable {
    let mut table = FieldTable::default();
    for (mut key, value) in map {
        // AMQP has no longer names, and panics are for who writes them, not for who reads them.
        key.truncate(key.floor_char_boundary(usize::from(u8::MAX)));
        table.insert(key.into(), amqp(value));
    }
    table
}

fn amqp(value: Value) -> AMQPValue {
    match value {
        Value::Null => AMQPValue::Void,
        Value::Bool(yes) => AMQPValue::Boolean(yes),
        Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => i32::try_from(n).map_or(AMQPValue::LongLongInt(n), AMQPValue::LongInt),
            (None, Some(n)) => AMQPValue::Timestamp(n),
            (None, None) => AMQPValue::Double(n.as_f64().unwrap_or_default()),
        },
        Value::String(text) => AMQPValue::LongString(text.into()),
        Value::Array(list) => {
            let mut array = FieldArray::default();
            list.into_iter().for_each(|item| array.push(amqp(item)));
            AMQPValue::FieldArray(array)
        }
        Value::Object(map) => {
            let only = |key: &str| map.get(key).filter(|_| map.len() == 1);
            match (only("at").and_then(Value::as_u64), only("short").and_then(Value::as_str)) {
                (Some(at), _) => AMQPValue::Timestamp(at),
                (_, Some(text)) if text.len() <= usize::from(u8::MAX) => AMQPValue::ShortString(text.into()),
                _ => AMQPValue::FieldTable(table(map)),
            }
        }
    }
}

/// The same headers as they come over the wire.
fn encoded_headers() -> Vec<Vec<u8>> {
    let tables = headers().into_iter().filter_map(|bytes| match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) => Some(table(map)),
        _ => None,
    });
    tables.filter_map(|table| generation::gen_field_table(&table)(Vec::new().into()).ok()).map(|c| c.write).collect()
}

fn amqp_headers(bytes: &[u8]) {
    if let Ok((_, headers)) = parsing::parse_field_table(bytes) {
        judge(headers, b"{}");
    }
}

fn events() -> Vec<Vec<u8>> {
    samples().iter().filter_map(|event| event.encode().ok()).collect()
}

/// The look at a payload sees what reading it would: else work would be left lying.
fn event_kind(bytes: &[u8]) {
    let kind = follower::kind_of(bytes);
    if let Ok(event) = Event::decode(bytes, Time::UNIX_EPOCH) {
        assert_eq!(kind.as_deref(), Some(event.data.kind()), "what can be read is taken for what it is");
    }
}
