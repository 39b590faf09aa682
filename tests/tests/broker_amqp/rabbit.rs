//! An isolated set of queues on the test broker.

use std::{
    panic::{AssertUnwindSafe, resume_unwind},
    sync::Arc,
};

use async_trait::async_trait;
use futures_util::FutureExt;
use lapin::{
    Connection, ConnectionProperties,
    options::{ExchangeDeleteOptions, QueueDeleteOptions},
};
use stoker_schemas::{
    spec::Priority,
    topology::{DELAY_TIERS_MS, Names},
};
use stoker_tests::{
    conformance::broker::{FRESH, HOST, OTHER_HOST, OTHER_POOL, POOL, Setup},
    skipped,
};
use stoker_worker::{
    broker::amqp::{AmqpBroker, AmqpConfig},
    ports::broker::Broker,
};

const URL: &str = "STOKER_TEST_AMQP_URL";

/// One prefix on the test broker.
pub struct Rabbit {
    pub url: String,
    pub names: Names,
}

/// A prefix of its own, or `None` (and said so) without a broker.
pub fn rabbit(case: &str) -> Option<Rabbit> {
    let Ok(url) = std::env::var(URL) else {
        skipped(case, &format!("{URL} is not set"));
        return None;
    };
    let prefix = format!("t{}", uuid::Uuid::now_v7().simple());
    Some(Rabbit { url, names: Names::with_prefix(prefix) })
}

pub async fn setup(case: &str) -> Option<Box<dyn Setup>> {
    rabbit(case).map(|r| Box::new(r) as Box<dyn Setup>)
}

/// Runs a case that needs more than the `Setup` trait, and cleans up also after a failure.
pub async fn on_rabbit(case_name: &str, case: impl AsyncFnOnce(&Rabbit)) {
    let Some(place) = rabbit(case_name) else { return };
    let outcome = AssertUnwindSafe(case(&place)).catch_unwind().await;
    place.clean().await;
    if let Err(failure) = outcome {
        resume_unwind(failure);
    }
}

impl Rabbit {
    pub fn config(&self, host: &str) -> AmqpConfig {
        AmqpConfig {
            names: self.names.clone(),
            pools: vec![POOL.parse().unwrap(), OTHER_POOL.parse().unwrap()],
            host: Some(host.parse().unwrap()),
            ..AmqpConfig::new(self.url.as_str())
        }
    }

    /// Deletes a queue behind the adapter's back.
    pub async fn delete(&self, queue: &str) {
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
        let _ = connection.close(200, "bye".into()).await;
    }

    fn queues(&self) -> Vec<String> {
        let names = &self.names;
        let mut queues = vec![names.dead_queue(), names.history_stream()];
        queues.extend([HOST, OTHER_HOST].map(|h| names.host_queue(&h.parse().unwrap())));
        queues.extend(DELAY_TIERS_MS.map(|tier| names.delay_queue(tier)));
        for pool in [POOL, OTHER_POOL, FRESH] {
            let pool = pool.parse().unwrap();
            queues.extend([Priority::High, Priority::Normal].map(|lane| names.jobs_queue(&pool, lane)));
        }
        queues
    }
}

#[async_trait]
impl Setup for Rabbit {
    async fn open(&self, host: &str) -> Arc<dyn Broker> {
        Arc::new(AmqpBroker::connect(self.config(host)).await.unwrap())
    }

    async fn clean(&self) {
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        for queue in self.queues() {
            channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
        }
        let names = &self.names;
        let history = names.history_exchange();
        let (events, deferred) = (names.events_exchange(), names.deferred_exchange());
        for exchange in [events, deferred, names.due_exchange(), names.dead_exchange(), history] {
            channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
        }
        let _ = connection.close(200, "bye".into()).await;
    }
}
