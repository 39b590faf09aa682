//! AsyncAPI 3.0: exchange, queues, routing keys and messages, for publishers and readers in other
//! languages. Names and keys come from [`topology`](crate::topology), payloads from the schemas.

use serde_json::{Map, Value, json};

use super::event_file;
use crate::event::{EventData, TYPE_PREFIX, sample};
use crate::limits::MAX_EVENT_BYTES;
use crate::topology::{DELAY_TIERS_MS, HISTORY_BINDING, Names, deferred_binding, delay_bindings};

/// Media type of one event, as AMQP's content_type.
const CONTENT_TYPE: &str = "application/cloudevents+json";
const DESCRIPTION: &str = include_str!("asyncapi.md");

pub(super) fn document() -> Value {
    let mut channels = Map::new();
    let mut operations = Map::new();
    for (kind, version) in EventData::KINDS {
        channels.insert((*kind).to_owned(), key_channel(kind));
        let mut operation = key_operation(kind);
        operation["summary"] = json!(format!("{TYPE_PREFIX}{kind}.v{version}"));
        operations.insert(format!("{}-{kind}", if from_outside(kind) { "accept" } else { "tell" }), operation);
    }
    for (name, channel) in queue_channels() {
        channels.insert(name.to_owned(), channel);
    }
    let messages: Map<_, _> = EventData::KINDS.iter().map(|(k, v)| ((*k).to_owned(), message(k, *v))).collect();
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Stoker",
            "version": "1",
            "description": DESCRIPTION.replace("{max_bytes}", &MAX_EVENT_BYTES.to_string()),
        },
        "defaultContentType": CONTENT_TYPE,
        "servers": { "rabbitmq": {
            "host": "localhost:5672",
            "protocol": "amqp",
            "protocolVersion": "0.9.1",
            "description": "RabbitMQ 3.10 or newer (quorum queues, streams)",
        }},
        "channels": channels,
        "operations": operations,
        "components": { "messages": messages },
    })
}

/// Kinds that others may publish; the rest is told by hosts.
fn from_outside(kind: &str) -> bool {
    kind == "job.enqueued" || kind == "attempt.superseded" || kind.ends_with("-requested")
}

/// Routing key of a kind, with its parameters, as [`route`](crate::topology::route) makes it.
pub(super) fn key_pattern(kind: &str) -> String {
    match kind {
        "job.enqueued" => "job.enqueued.{pool}.{lane}".to_owned(),
        "job.retry-scheduled" => format!("{kind}.{{pool}}.{{lane}}.{{tier}}"),
        "job.cancel-requested" | "job.stop-requested" | "job.snooze-requested" | "pool.configured" => {
            "command.all".to_owned()
        }
        "attempt.superseded" | "host.drain-requested" => "command.host.{host}".to_owned(),
        other => other.to_owned(),
    }
}

fn parameters(address: &str) -> Value {
    let tiers: Vec<_> = DELAY_TIERS_MS.iter().map(ToString::to_string).collect();
    let known = [
        ("pool", json!({ "description": "data.spec.pool: 1-40 of a-z, 0-9 and '-'", "default": "default" })),
        ("lane", json!({ "description": "data.spec.priority", "enum": ["normal", "high"], "default": "normal" })),
        ("tier", json!({ "description": "The least that is not below data.delay_ms", "enum": tiers })),
        ("host", json!({ "description": "The host's name: 1-40 of a-z, 0-9 and '-'" })),
    ];
    let used = known.into_iter().filter(|(name, _)| address.contains(&format!("{{{name}}}")));
    Value::Object(used.map(|(name, about)| (name.to_owned(), about)).collect())
}

fn with_parameters(mut channel: Value, address: &str) -> Value {
    let parameters = parameters(address);
    if parameters != json!({}) {
        channel["parameters"] = parameters;
    }
    channel
}

fn key_channel(kind: &str) -> Value {
    let address = key_pattern(kind);
    let channel = json!({
        "address": address,
        "description": format!("Routing key of {kind} on the exchange {}", Names::default().events_exchange()),
        "messages": { kind: { "$ref": format!("#/components/messages/{kind}") } },
        "bindings": { "amqp": {
            "is": "routingKey",
            "exchange": {
                "name": Names::default().events_exchange(),
                "type": "topic", "durable": true, "autoDelete": false, "vhost": "/",
            },
            "bindingVersion": "0.3.0",
        }},
    });
    with_parameters(channel, &address)
}

/// From Stoker's side: it receives what others may publish, and sends the rest.
fn key_operation(kind: &str) -> Value {
    json!({
        "action": if from_outside(kind) { "receive" } else { "send" },
        "channel": { "$ref": format!("#/channels/{kind}") },
        "messages": [{ "$ref": format!("#/channels/{kind}/messages/{kind}") }],
        "bindings": { "amqp": { "deliveryMode": 2, "mandatory": true, "ack": true, "bindingVersion": "0.3.0" } },
    })
}

fn message(kind: &str, version: u32) -> Value {
    let event = sample(kind);
    let example = event.as_ref().and_then(|e| e.encode().ok());
    let example: Value = example.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let mut message = json!({
        "name": format!("{TYPE_PREFIX}{kind}.v{version}"),
        "contentType": CONTENT_TYPE,
        "payload": { "$ref": event_file(kind, version) },
        "bindings": { "amqp": { "contentEncoding": "utf-8", "bindingVersion": "0.3.0" } },
        "examples": [{ "name": kind, "payload": example }],
    });
    if let Some(event) = event {
        message["x-example-routing-key"] = json!(crate::topology::route(&event).0);
        message["x-example-message-id"] = json!(event.id());
    }
    message
}

/// The queues, with what is bound to them. Workers declare all of them.
fn queue_channels() -> Vec<(&'static str, Value)> {
    let names = Names::default();
    let queue = |address: &str, kind: &str, bindings: Value, description: &str| {
        let channel = json!({
            "address": address,
            "description": description,
            "bindings": { "amqp": {
                "is": "queue",
                "queue": { "name": address, "durable": true, "exclusive": false, "autoDelete": false, "vhost": "/" },
                "bindingVersion": "0.3.0",
            }},
            "x-queue-type": kind,
            "x-bindings": bindings,
        });
        with_parameters(channel, address)
    };
    let (events, due) = (names.events_exchange(), names.due_exchange());
    let on = |exchange: &str, key: &str| json!({ "exchange": exchange, "routingKey": key });
    let tier = |exchange: &str, key: &str| on(exchange, &key.replace(".0", ".{tier}"));
    let mut delay = delay_bindings(0).map(|key| tier(&events, &key)).to_vec();
    delay.push(tier(&names.deferred_exchange(), &deferred_binding(0)));
    vec![
        (
            "queue-jobs",
            queue(
                "stoker.jobs.{pool}.{lane}",
                "quorum",
                json!([on(&events, "job.enqueued.{pool}.{lane}"), on(&due, "*.*.{pool}.{lane}.#")]),
                "Work. Only Stoker's workers consume it.",
            ),
        ),
        ("queue-delay", queue("stoker.delay.{tier}", "quorum", json!(delay), "Waits, then goes to the due exchange.")),
        (
            "queue-dead",
            queue(
                &names.dead_queue(),
                "quorum",
                json!([on(&names.dead_exchange(), "#")]),
                "Messages that could not be decoded (header x-stoker-reason says why), or that RabbitMQ gave up. Stoker's \
                 control plane consumes it and tells of each with message.dead-lettered.",
            ),
        ),
        (
            "queue-host",
            queue(
                "stoker.host.{host}",
                "quorum",
                json!([on(&events, "command.all"), on(&events, "command.host.{host}")]),
                "Commands to one host.",
            ),
        ),
        (
            "history",
            queue(
                &names.history_stream(),
                "stream",
                json!([on(&names.history_exchange(), HISTORY_BINDING)]),
                "Everything, in order, for any number of readers. basic.qos is required; start with the consumer \
                 argument x-stream-offset (first, last, next or a number). Besides single events there are batches: \
                 content_type application/cloudevents-batch+json, a JSON array of events. The same event may come \
                 more than once: recognise it by its id. It gets its messages through the exchange stoker.history, \
                 which is bound to stoker.events with the key #.",
            ),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::route;

    /// The documented key is the real one: each parameter stands for one word.
    #[test]
    fn documented_keys_are_the_routed_ones() {
        for (kind, _) in EventData::KINDS {
            let (key, _) = route(&sample(kind).unwrap());
            let pattern = key_pattern(kind);
            let (words, documented) = (key.split('.').count(), pattern.split('.').count());
            assert_eq!(words, documented, "{kind}: {key} is documented as {pattern}");
            for (word, documented) in key.split('.').zip(pattern.split('.')) {
                assert!(documented.starts_with('{') || word == documented, "{kind}: {key}, not {pattern}");
            }
        }
    }

    #[test]
    fn documented_queues_are_the_named_ones() {
        let names = Names::default();
        let (pool, host) = ("p".parse().unwrap(), "h".parse().unwrap());
        let real = [
            ("queue-jobs", names.jobs_queue(&pool, crate::spec::Priority::High)),
            ("queue-delay", names.delay_queue(100)),
            ("queue-dead", names.dead_queue()),
            ("queue-host", names.host_queue(&host)),
            ("history", names.history_stream()),
        ];
        for ((documented, channel), (name, real)) in queue_channels().iter().zip(real) {
            let address = channel["address"].as_str().unwrap();
            let filled = address
                .replace("{pool}", "p")
                .replace("{lane}", "high")
                .replace("{tier}", "100")
                .replace("{host}", "h");
            assert_eq!((*documented, filled.as_str()), (name, real.as_str()));
        }
    }
}
