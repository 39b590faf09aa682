//! A message as it goes over the wire, checked before it is queued: lapin panics on strings that
//! AMQP cannot carry, and RabbitMQ closes the channel over bodies it finds too large.

use std::time::Duration;

use bytes::Bytes;
use lapin::{
    BasicProperties,
    message::BasicReturnMessage,
    types::{AMQPValue, FieldTable, ShortString},
};
use stoker_schemas::{
    PoolName,
    spec::Priority,
    topology::{Names, deferred_key},
};

use super::{
    config::{MAX_BODY_BYTES, MAX_REASON_BYTES},
    deferring::Copy,
    route::{self, Route},
};
use crate::ports::broker::{BrokerError, CONTENT_EVENT, Outgoing, Parked};

/// Header of a parked message: why it was parked.
pub const HEADER_REASON: &str = "x-stoker-reason";
/// Header of a parked message: the routing key it came with.
pub const HEADER_ROUTING_KEY: &str = "x-stoker-routing-key";
/// Header of a parked message: the queue it came from.
pub const HEADER_QUEUE: &str = "x-stoker-queue";
/// Header of a parked message: its own id. As a property it would make two parked messages look like one to who
/// looks for a returned message.
pub const HEADER_MESSAGE_ID: &str = "x-stoker-message-id";
/// Header of a parked message: when it was parked, RFC 3339.
pub const HEADER_PARKED_AT: &str = "x-stoker-parked-at";
/// Header of a job that was put back for a while: how often.
pub(super) const HEADER_DEFERRALS: &str = "x-stoker-deferrals";
/// AMQP's `delivery-mode` for messages that survive a restart.
const PERSISTENT: u8 = 2;

/// Ready to be published, as often as it takes.
#[derive(Debug)]
pub(super) struct Message {
    pub exchange: ShortString,
    pub routing_key: ShortString,
    pub route: Route,
    pub properties: BasicProperties,
    pub body: Bytes,
}

impl Message {
    pub(super) fn event(names: &Names, outgoing: Outgoing) -> Result<Self, BrokerError> {
        check_size(&outgoing.body)?;
        let route = route::of(&outgoing.routing_key)?;
        let mut properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_content_type(outgoing.content_type.into())
            .with_message_id(short(&outgoing.message_id)?);
        // On any other key an expiration would throw the message out of the queue it waits in.
        if let (Route::DelayedPool(_), Some(delay)) = (&route, outgoing.delay) {
            properties = properties.with_expiration(delay.as_millis().to_string().into());
        }
        let exchange = short(&names.events_exchange())?;
        let routing_key = short(&outgoing.routing_key)?;
        Ok(Self { exchange, routing_key, route, properties, body: outgoing.body })
    }

    /// Straight into the dead queue, through the default exchange: the topic exchange would write
    /// what cannot be read into the history as well.
    pub(super) fn parked(names: &Names, parked: Parked) -> Result<Self, BrokerError> {
        check_size(&parked.body)?;
        let mut headers = FieldTable::default();
        let mut header = |name: &'static str, text: &str| {
            headers.insert(name.into(), AMQPValue::LongString(clip(text).into()));
        };
        header(HEADER_REASON, &parked.reason);
        header(HEADER_ROUTING_KEY, &parked.routing_key);
        header(HEADER_QUEUE, &parked.about.queue);
        header(HEADER_PARKED_AT, &parked.at.to_string());
        if let Some(id) = &parked.about.message_id {
            header(HEADER_MESSAGE_ID, id);
        }
        let mut properties = BasicProperties::default().with_delivery_mode(PERSISTENT).with_headers(headers);
        if let Some(kind) = &parked.about.content_type {
            properties = properties.with_content_type(short(kind)?);
        }
        let routing_key = short(&names.dead_queue())?;
        Ok(Self { exchange: "".into(), routing_key, route: Route::History, properties, body: parked.body })
    }

    /// A job as it was delivered, on its way into a delay queue and back to its lane.
    pub(super) fn deferred(
        names: &Names,
        (pool, lane): (&PoolName, Priority),
        copy: &Copy,
        delay: Duration,
    ) -> Result<Self, BrokerError> {
        check_size(&copy.body)?;
        let mut headers = FieldTable::default();
        headers.insert(HEADER_DEFERRALS.into(), AMQPValue::LongLongInt(i64::from(copy.deferrals.saturating_add(1))));
        let mut properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_content_type(CONTENT_EVENT.into())
            .with_expiration(delay.as_millis().to_string().into())
            .with_headers(headers);
        if let Some(id) = &copy.message_id {
            properties = properties.with_message_id(id.clone());
        }
        let exchange = short(&names.deferred_exchange())?;
        let routing_key = short(&deferred_key(pool, lane, delay))?;
        let route = Route::DelayedPool(pool.clone());
        Ok(Self { exchange, routing_key, route, properties, body: copy.body.clone() })
    }

    /// Was this one returned? (Only parked messages have no id.)
    pub(super) fn is(&self, returned: &BasicReturnMessage) -> bool {
        self.properties.message_id() == returned.properties.message_id()
            && self.routing_key == returned.routing_key
            && self.exchange == returned.exchange
    }
}

fn check_size(body: &Bytes) -> Result<(), BrokerError> {
    if body.len() > MAX_BODY_BYTES {
        return Err(BrokerError::Refused(format!("{} bytes; at most {MAX_BODY_BYTES} are taken", body.len())));
    }
    Ok(())
}

fn short(text: &str) -> Result<ShortString, BrokerError> {
    ShortString::try_new(text).map_err(|e| BrokerError::Refused(e.to_string()))
}

/// The longest start of a text that fits into a header.
fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_REASON_BYTES)]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use stoker_schemas::Time;

    use super::*;
    use crate::ports::broker::{About, CONTENT_EVENT};

    fn outgoing(key: &str, delay: Option<Duration>) -> Outgoing {
        Outgoing {
            routing_key: key.into(),
            message_id: "id".into(),
            content_type: CONTENT_EVENT,
            delay,
            body: Bytes::from_static(b"{}"),
        }
    }

    #[test]
    fn only_a_delayed_key_gets_an_expiration() {
        let names = Names::default();
        let delay = Some(Duration::from_millis(120));
        let delayed = Message::event(&names, outgoing("job.deferred.a.normal.250", delay)).expect("valid");
        assert_eq!(delayed.properties.expiration().as_ref().map(ShortString::as_str), Some("120"));
        let job = Message::event(&names, outgoing("job.enqueued.a.normal", delay)).expect("valid");
        assert_eq!(*job.properties.expiration(), None);
    }

    #[test]
    fn what_amqp_cannot_carry_is_refused_before_it_is_sent() {
        let names = Names::default();
        let mut long_id = outgoing("vm.ready", None);
        long_id.message_id = "x".repeat(256);
        assert!(matches!(Message::event(&names, long_id), Err(BrokerError::Refused(_))));
        let mut large = outgoing("vm.ready", None);
        large.body = Bytes::from(vec![0; MAX_BODY_BYTES + 1]);
        assert!(matches!(Message::event(&names, large), Err(BrokerError::Refused(_))));
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let reason = "é".repeat(MAX_REASON_BYTES);
        let (at, about) = (Time::UNIX_EPOCH, About::default());
        let parked = Parked { routing_key: "k".into(), reason, at, about, body: Bytes::new() };
        assert!(Message::parked(&Names::default(), parked).is_ok());
    }
}
