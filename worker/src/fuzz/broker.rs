//! What messages bring besides their payload, and the look at a payload that decides whether it is read at all.

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::protocol::constants::{FRAME_END, FRAME_HEADER};
use lapin::types::{AMQPValue, FieldArray, FieldTable, generation, parsing};
use serde_json::{Map, Value};
use stoker_schemas::Time;
use stoker_schemas::event::{Event, samples};
use stoker_schemas::fuzz::{Target, texts, written};
use stoker_schemas::letter::{Letter, dead_lettered};

use crate::broker::amqp::death;
use crate::broker::amqp::nesting::{MAX_DEPTH, NestingLimit};
use crate::broker::embedded::follower;

/// The parsers of this part.
pub const TARGETS: [Target; 3] = [
    Target { name: "dead-letter-headers", run: dead_letter_headers, samples: headers },
    Target { name: "amqp-headers", run: amqp_headers, samples: encoded_headers },
    Target { name: "event-kind", run: event_kind, samples: events },
];

/// Levels of headers that overflow the stack of a thread, if they are parsed by recursion.
const DEEP_LEVELS: usize = 1_000;
/// Bytes of a frame before the headers: its head, and the content's up to the properties.
pub(crate) const HEADERS_AT: usize = 21;

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

/// The same headers as they come over the wire, and some that nest deeper than a thread's stack allows.
fn encoded_headers() -> Vec<Vec<u8>> {
    let tables = headers().into_iter().filter_map(|bytes| match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) => Some(table(map)),
        _ => None,
    });
    let encoded = tables.filter_map(|table| generation::gen_field_table(&table)(Vec::new().into()).ok());
    encoded.map(|c| c.write).chain(deep_headers()).collect()
}

/// Tables in tables, and arrays in arrays.
pub(crate) fn deep_headers() -> [Vec<u8>; 2] {
    let around = |inner: Vec<u8>, item: &[u8]| {
        let length = u32::try_from(item.len() + inner.len()).unwrap_or(u32::MAX);
        [&length.to_be_bytes(), item, &inner].concat()
    };
    let levels = |item: &[u8]| (0..DEEP_LEVELS).fold(vec![0; 4], |inner, _| around(inner, item));
    [levels(b"\x00F"), around(levels(b"A"), b"\x00A")]
}

/// The frame of a content header with these headers alone, after [`HEADERS_AT`] bytes.
pub(crate) fn header_frame(headers: &[u8]) -> Vec<u8> {
    let head = [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x20, 0];
    let size = u32::try_from(head.len() + headers.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&[FRAME_HEADER, 0, 1][..], &size, &head, headers, &[FRAME_END]].concat()
}

/// They reach lapin's parser as they do on a connection.
fn amqp_headers(bytes: &[u8]) {
    let mut frame = header_frame(bytes);
    NestingLimit::new().pass(&mut frame);
    // The frame's end is not the payload's: lapin does not read on into it, so a length that needs it is too long.
    let payload = &frame[..frame.len() - 1];
    if let Ok((_, headers)) = parsing::parse_field_table(&payload[HEADERS_AT..]) {
        assert!(depth(&headers) <= MAX_DEPTH, "nests deeper than it may");
        judge(headers, b"{}");
    }
}

/// Tables and arrays within each other.
pub(crate) fn depth(table: &FieldTable) -> usize {
    fn inner(value: &AMQPValue) -> usize {
        match value {
            AMQPValue::FieldTable(table) => depth(table),
            AMQPValue::FieldArray(array) => 1 + array.as_slice().iter().map(inner).max().unwrap_or(0),
            _ => 0,
        }
    }
    1 + table.inner().values().map(inner).max().unwrap_or(0)
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
