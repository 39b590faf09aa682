//! How a message came to the queue of dead letters, by its headers: those that a worker parked it with, or
//! those that RabbitMQ writes (`x-death`).

use std::time::Duration;

use lapin::{
    message::Delivery as Received,
    types::{AMQPValue, FieldTable},
};
use stoker_schemas::{
    Time,
    letter::{Death, GivenUpBy},
};

use super::{
    consuming::number,
    message::{HEADER_MESSAGE_ID, HEADER_PARKED_AT, HEADER_QUEUE, HEADER_REASON, HEADER_ROUTING_KEY},
};
use crate::ports::broker::About;

/// RabbitMQ's list of what a message died of, a table for each queue and reason.
const X_DEATH: &str = "x-death";
/// The latest of them, where RabbitMQ says which one that is; else it is the first.
const X_LAST_QUEUE: &str = "x-last-death-queue";
const X_LAST_REASON: &str = "x-last-death-reason";

/// What is known of a message besides its payload; `is_letter` where it is from the queue of dead letters.
pub(crate) fn about(received: &Received, queue: &str, is_letter: bool) -> About {
    let properties = &received.properties;
    let headers = properties.headers().as_ref();
    let parked_id = headers.and_then(|h| text(h, HEADER_MESSAGE_ID)).filter(|_| is_letter);
    About {
        queue: queue.to_owned(),
        message_id: parked_id.or_else(|| properties.message_id().as_ref().map(ToString::to_string)),
        content_type: properties.content_type().as_ref().map(ToString::to_string),
        death: is_letter.then(|| {
            let by_broker = headers.and_then(|h| by_broker(h, received.routing_key.as_str()));
            // A worker parks with a message of its own, so what RabbitMQ says is later than what a worker did.
            let told = by_broker.or_else(|| by_worker(headers?, received.exchange.as_str()));
            told.unwrap_or_else(|| Death {
                by: GivenUpBy::Publisher,
                queue: String::new(),
                exchange: received.exchange.to_string(),
                routing_key: received.routing_key.to_string(),
                count: 1,
                at: properties.timestamp().map(seconds),
            })
        }),
    }
}

fn by_worker(headers: &FieldTable, exchange: &str) -> Option<Death> {
    let why = text(headers, HEADER_REASON)?;
    Some(Death {
        by: GivenUpBy::Worker(why),
        queue: text(headers, HEADER_QUEUE).unwrap_or_default(),
        exchange: exchange.to_owned(),
        routing_key: text(headers, HEADER_ROUTING_KEY).unwrap_or_default(),
        count: 1,
        at: text(headers, HEADER_PARKED_AT).and_then(|at| at.parse().ok()),
    })
}

fn by_broker(headers: &FieldTable, routing_key: &str) -> Option<Death> {
    let AMQPValue::FieldArray(deaths) = headers.inner().get(X_DEATH)? else { return None };
    let tables = || {
        deaths.as_slice().iter().filter_map(|death| match death {
            AMQPValue::FieldTable(table) => Some(table),
            _ => None,
        })
    };
    let (queue, reason) = (text(headers, X_LAST_QUEUE), text(headers, X_LAST_REASON));
    let is_last = |table: &&FieldTable| text(table, "queue") == queue && text(table, "reason") == reason;
    let last = tables().find(is_last).or_else(|| tables().next())?;
    let keys = match last.inner().get("routing-keys") {
        Some(AMQPValue::FieldArray(keys)) => keys.as_slice().iter().find_map(string),
        _ => None,
    };
    let at = match last.inner().get("time") {
        Some(AMQPValue::Timestamp(at)) => Some(seconds(*at)),
        _ => None,
    };
    Some(Death {
        by: GivenUpBy::Broker(text(last, "reason").unwrap_or_default()),
        queue: text(last, "queue").unwrap_or_default(),
        exchange: text(last, "exchange").unwrap_or_default(),
        routing_key: keys.unwrap_or_else(|| routing_key.to_owned()),
        count: last.inner().get("count").and_then(number).unwrap_or(1),
        at,
    })
}

fn text(table: &FieldTable, name: &str) -> Option<String> {
    table.inner().get(name).and_then(string)
}

fn string(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => Some(text.to_string()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

/// AMQP's timestamps are in seconds since 1970.
fn seconds(at: u64) -> Time {
    Time::UNIX_EPOCH.plus(Duration::from_secs(at))
}
