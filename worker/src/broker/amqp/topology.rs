//! Declares exchanges, queues and bindings; everything here may be repeated at any time.
//!
//! Work queues are quorum queues that dead-letter at least once. That needs `overflow =
//! reject-publish` in the source queue, so a full queue refuses a publish instead of dropping its
//! oldest job.

use lapin::{
    Channel, Connection, ExchangeKind,
    options::{
        ExchangeBindOptions, ExchangeDeclareOptions, ExchangeUnbindOptions, QueueBindOptions, QueueDeclareOptions,
    },
    protocol::AMQPSoftError,
    types::{AMQPValue, FieldTable, ShortString},
};
use stoker_schemas::{
    HostName, PoolName,
    spec::Priority,
    topology::{
        DELAY_TIERS_MS, HISTORY_BINDING, deferred_binding, delay_bindings, due_binding, host_bindings, jobs_binding,
    },
};

use super::{
    config::AmqpConfig,
    fault::{Fault, answer},
};

/// Queues that must never dead-letter or drop by count: newer brokers have a default limit.
const NO_DELIVERY_LIMIT: u32 = 1_000_000_000;
/// Retention works by whole segments; RabbitMQ's 500 MB would keep a small history far too long.
const HISTORY_SEGMENT_BYTES: u32 = 64 * 1024 * 1024;
const LANES: [Priority; 2] = [Priority::High, Priority::Normal];
/// Matches every routing key of a dead letter.
const EVERYTHING: &str = "#";

/// Declares on a channel of its own, which a refused declaration may cost.
pub(super) struct Declarer<'a> {
    connection: &'a Connection,
    config: &'a AmqpConfig,
    channel: Option<Channel>,
}

impl<'a> Declarer<'a> {
    pub(super) fn new(connection: &'a Connection, config: &'a AmqpConfig) -> Self {
        Self { connection, config, channel: None }
    }

    /// Everything that work needs: what does not depend on a pool, and the pools and the host of
    /// the settings.
    pub(super) async fn work(&mut self) -> Result<(), Fault> {
        let names = &self.config.names;
        let history = names.history_exchange();
        let (events, deferred) = (names.events_exchange(), names.deferred_exchange());
        for exchange in [events, deferred, names.due_exchange(), names.dead_exchange(), history] {
            self.exchange(&exchange).await?;
        }
        self.dead_queue().await?;
        for tier_ms in DELAY_TIERS_MS {
            self.delay_queue(tier_ms).await?;
        }
        for pool in &self.config.pools {
            self.pool(pool).await?;
        }
        if let Some(host) = &self.config.host {
            self.host_queue(host).await?;
        }
        Ok(())
    }

    /// Both lanes of a pool.
    pub(super) async fn pool(&mut self, pool: &PoolName) -> Result<(), Fault> {
        let names = &self.config.names;
        for lane in LANES {
            let queue = names.jobs_queue(pool, lane);
            let arguments = self
                .dead_lettering(quorum(self.config.delivery_limit), &names.dead_exchange())
                .with("x-max-length", self.config.jobs_max_length);
            self.queue(&queue, arguments).await?;
            self.bind(&queue, &names.events_exchange(), &jobs_binding(pool, lane)).await?;
            self.bind(&queue, &names.due_exchange(), &due_binding(pool, lane)).await?;
        }
        Ok(())
    }

    /// Is there a queue of this name?
    pub(super) async fn exists(&mut self, queue: &str) -> Result<bool, Fault> {
        Ok(self.depth(queue).await?.is_some())
    }

    /// Messages waiting in a queue, if there is one.
    pub(super) async fn depth(&mut self, queue: &str) -> Result<Option<u64>, Fault> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let channel = self.channel().await?;
        let declared =
            answer("queue.declare", channel.queue_declare(queue.into(), options, FieldTable::default())).await;
        match declared {
            Ok(found) => Ok(Some(u64::from(found.message_count()))),
            Err(fault) => {
                self.channel = None;
                matches!(fault.soft(), Some(AMQPSoftError::NOTFOUND)).then_some(None).ok_or(fault)
            }
        }
    }

    /// Messages that could not be handled.
    pub(super) async fn dead_queue(&mut self) -> Result<(), Fault> {
        let names = &self.config.names;
        let queue = names.dead_queue();
        let arguments = quorum(NO_DELIVERY_LIMIT)
            .with("x-max-length", self.config.dead_max_length)
            .with("x-overflow", "reject-publish");
        self.queue(&queue, arguments).await?;
        self.bind(&queue, &names.dead_exchange(), EVERYTHING).await
    }

    /// The stream and the way into it.
    pub(super) async fn history(&mut self) -> Result<(), Fault> {
        let names = &self.config.names;
        let exchange = names.history_exchange();
        let arguments = Arguments::new("stream")
            .with("x-max-length-bytes", self.config.history_max_bytes)
            .with("x-max-age", self.config.history_max_age.as_str())
            .with("x-stream-max-segment-size-bytes", HISTORY_SEGMENT_BYTES);
        self.queue(&names.history_stream(), arguments).await?;
        self.bind(&names.history_stream(), &exchange, HISTORY_BINDING).await?;
        let channel = self.channel().await?;
        let (events, key) = (names.events_exchange(), HISTORY_BINDING.into());
        let options = ExchangeBindOptions::default();
        let bound = channel.exchange_bind(exchange.into(), events.into(), key, options, FieldTable::default());
        let result = answer("exchange.bind", bound).await;
        self.note(result)
    }

    /// Takes the history out of every message's way.
    pub(super) async fn cut_history(&mut self) -> Result<(), Fault> {
        let names = &self.config.names;
        let channel = self.channel().await?;
        let (exchange, events) = (names.history_exchange(), names.events_exchange());
        let options = ExchangeUnbindOptions::default();
        let key = HISTORY_BINDING.into();
        let unbound = channel.exchange_unbind(exchange.into(), events.into(), key, options, FieldTable::default());
        let result = answer("exchange.unbind", unbound).await;
        self.note(result)
    }

    async fn delay_queue(&mut self, tier_ms: u64) -> Result<(), Fault> {
        let names = &self.config.names;
        let queue = names.delay_queue(tier_ms);
        let arguments = self
            .dead_lettering(quorum(NO_DELIVERY_LIMIT), &names.due_exchange())
            .with("x-max-length", self.config.jobs_max_length)
            .with("x-message-ttl", tier_ms);
        self.queue(&queue, arguments).await?;
        for key in delay_bindings(tier_ms) {
            self.bind(&queue, &names.events_exchange(), &key).await?;
        }
        self.bind(&queue, &names.deferred_exchange(), &deferred_binding(tier_ms)).await
    }

    /// A host that is away must not make `command.all` fail for everybody, so its queue drops its
    /// oldest command instead of refusing; a host that stays away loses the queue.
    pub(super) async fn host_queue(&mut self, host: &HostName) -> Result<(), Fault> {
        let names = &self.config.names;
        let queue = names.host_queue(host);
        let expires = u64::try_from(self.config.host_expires.as_millis()).unwrap_or(u64::MAX);
        let arguments = quorum(NO_DELIVERY_LIMIT)
            .with("x-max-length", self.config.host_max_length)
            .with("x-overflow", "drop-head")
            .with("x-expires", expires);
        self.queue(&queue, arguments).await?;
        for key in host_bindings(host) {
            self.bind(&queue, &names.events_exchange(), &key).await?;
        }
        Ok(())
    }

    fn dead_lettering(&self, arguments: Arguments, exchange: &str) -> Arguments {
        arguments
            .with("x-dead-letter-exchange", exchange)
            .with("x-dead-letter-strategy", "at-least-once")
            .with("x-overflow", "reject-publish")
    }

    async fn exchange(&mut self, name: &str) -> Result<(), Fault> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let channel = self.channel().await?;
        let declared = channel.exchange_declare(name.into(), ExchangeKind::Topic, options, FieldTable::default());
        let result = answer("exchange.declare", declared).await;
        self.note(result)
    }

    /// A queue that exists with another limit or size is used as it is, with a warning: settings
    /// may differ between two releases that run side by side, and a worker that cannot start is
    /// the worse answer. One of another *type* does not keep our promises and is refused.
    async fn queue(&mut self, name: &str, arguments: Arguments) -> Result<(), Fault> {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let channel = self.channel().await?;
        let declared = channel.queue_declare(name.into(), options, arguments.0);
        let result = answer("queue.declare", declared).await.map(drop);
        match self.note(result) {
            Err(fault) if fault.soft() == Some(AMQPSoftError::PRECONDITIONFAILED) => {
                let told = fault.to_string();
                if told.contains("'x-queue-type'") || told.contains("'durable'") {
                    return Err(Fault::WrongQueue(told));
                }
                tracing::warn!(queue = name, %told, "queue exists with other settings; using it as it is");
                Ok(())
            }
            other => other,
        }
    }

    async fn bind(&mut self, queue: &str, exchange: &str, key: &str) -> Result<(), Fault> {
        let channel = self.channel().await?;
        let options = QueueBindOptions::default();
        let bound = channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default());
        let result = answer("queue.bind", bound).await;
        self.note(result)
    }

    async fn channel(&mut self) -> Result<Channel, Fault> {
        if let Some(channel) = &self.channel {
            return Ok(channel.clone());
        }
        let channel = answer("channel.open", self.connection.create_channel()).await?;
        Ok(self.channel.insert(channel).clone())
    }

    /// Any error ends an AMQP channel; the next declaration opens another.
    fn note(&mut self, result: Result<(), Fault>) -> Result<(), Fault> {
        result.inspect_err(|_| self.channel = None)
    }
}

/// Queue arguments, with the types RabbitMQ expects.
struct Arguments(FieldTable);

fn quorum(delivery_limit: u32) -> Arguments {
    Arguments::new("quorum").with("x-delivery-limit", delivery_limit)
}

impl Arguments {
    fn new(queue_type: &str) -> Self {
        Self(FieldTable::default()).with("x-queue-type", queue_type)
    }

    fn with(mut self, key: &'static str, value: impl Into<Argument>) -> Self {
        self.0.insert(ShortString::from(key), value.into().0);
        self
    }
}

struct Argument(AMQPValue);

impl From<&str> for Argument {
    fn from(text: &str) -> Self {
        Self(AMQPValue::LongString(text.into()))
    }
}
impl From<u32> for Argument {
    fn from(number: u32) -> Self {
        Self(AMQPValue::LongLongInt(number.into()))
    }
}
impl From<u64> for Argument {
    fn from(number: u64) -> Self {
        Self(AMQPValue::LongLongInt(i64::try_from(number).unwrap_or(i64::MAX)))
    }
}
