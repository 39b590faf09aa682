//! Names of our own on the RabbitMQ node of the run, removed afterwards.

use futures_util::{StreamExt, TryStreamExt, stream};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use stoker_schemas::spec::Priority;
use stoker_schemas::topology::{DELAY_TIERS_MS, Names};
use stoker_schemas::{HostName, PoolName};
use stoker_worker::broker::amqp::{AmqpBroker, AmqpConfig};
use stoker_worker::clock::Clock;
use stoker_worker::ports::broker::Broker as _;

use crate::Fallible;
use stoker_tests::crowd::Crowd;

/// Messages under way while a queue is filled.
const PUBLISHED_AT_ONCE: usize = 512;

/// Where a node listens; `scripts/dev bench` starts one and sets it.
pub const URL: &str = "STOKER_TEST_AMQP_URL";

/// One prefix on the node.
#[derive(Clone)]
pub struct Rabbit {
    url: String,
    names: Names,
}

impl Rabbit {
    /// `None` without a node.
    pub fn from_environment() -> Option<Self> {
        let url = std::env::var(URL).ok().filter(|url| !url.is_empty())?;
        let names = Names::with_prefix(format!("bench{}", uuid::Uuid::now_v7().simple()));
        Some(Self { url, names })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// A connection as a worker (with its host's name) or as a producer has it.
    pub async fn connect(&self, host: Option<HostName>) -> Fallible<AmqpBroker> {
        let config = AmqpConfig { names: self.names.clone(), host, ..AmqpConfig::new(self.url.as_str()) };
        Ok(AmqpBroker::connect(config).await?)
    }

    /// Puts what older Stokers left there into the queue of dead letters: a `job.dead` for each dead job.
    pub async fn fill_dead_queue(&self, letters: usize) -> Fallible<()> {
        // Declares the queue.
        self.connect(None).await?.close().await;
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let (queue, mut crowd) = (self.names.dead_queue(), Crowd::of_the_dead());
        let bodies = (0..letters).map(|_| {
            let told = crowd.tell(Clock::system().now())?;
            Fallible::Ok(told.last().ok_or("a job without events")?.encode()?)
        });
        let published = stream::iter(bodies).map(|body| async {
            let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
            let body = body?;
            let publishing = channel.basic_publish("".into(), queue.as_str().into(), options, &body, properties);
            if publishing.await?.await?.is_ack() { Ok(()) } else { Err("the queue of dead letters is full".into()) }
        });
        published.buffered(PUBLISHED_AT_ONCE).try_for_each(async |()| Fallible::Ok(())).await?;
        let _ = connection.close(200, "bye".into()).await;
        Ok(())
    }

    /// Removes everything under the prefix.
    pub async fn clean(&self, host: &HostName) -> Fallible<()> {
        let names = &self.names;
        let pool = PoolName::default();
        let mut queues = vec![names.dead_queue(), names.history_stream(), names.host_queue(host)];
        queues.extend(DELAY_TIERS_MS.map(|tier| names.delay_queue(tier)));
        queues.extend([Priority::High, Priority::Normal].map(|lane| names.jobs_queue(&pool, lane)));
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        for queue in queues {
            channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        }
        for exchange in [names.events_exchange(), names.due_exchange(), names.dead_exchange(), names.history_exchange()]
        {
            channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await?;
        }
        // The names are gone; a failed goodbye leaves nothing.
        let _ = connection.close(200, "bye".into()).await;
        Ok(())
    }
}
