//! The in-process broker through the same suite as the RabbitMQ adapter. Its store is the worker's
//! event log; what it cannot do by design is named in [`Setup::can`].

#![allow(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::sync::Arc;

use async_trait::async_trait;
use stoker_schemas::event::Event;
use stoker_tests::conformance::broker::{Ability, Setup};
use stoker_worker::{
    broker::embedded::EmbeddedBroker,
    clock::Clock,
    log::{Append, EventLog, Expected, IndexChange, LogOptions},
    ports::broker::{Broker, Delivery},
};

stoker_tests::broker_conformance!(setup);

async fn setup(_case: &str) -> Option<Box<dyn Setup>> {
    let dir = tempfile::tempdir().unwrap();
    let log = EventLog::open(dir.path().join("log"), LogOptions::default()).unwrap();
    Some(Box::new(OnLog { log, clock: Clock::system(), _dir: dir }))
}

/// One log, on which brokers are opened one after the other. That the log itself survives its
/// process is the log's own suite.
struct OnLog {
    log: EventLog,
    clock: Clock,
    _dir: tempfile::TempDir,
}

#[async_trait]
impl Setup for OnLog {
    async fn open(&self, _host: &str) -> Arc<dyn Broker> {
        Arc::new(EmbeddedBroker::open(self.log.clone(), self.clock).unwrap())
    }

    fn can(&self, ability: Ability) -> bool {
        match ability {
            // One process, one host.
            Ability::SeveralHosts => false,
            // Routes what the event says, so that key and event cannot disagree.
            Ability::RoutingByKey => false,
            // The log holds single events.
            Ability::Batches => false,
            // It keeps the history itself, and tells it of them.
            Ability::DeadQueue => false,
            // Counting would cost a disk flush per delivery; attempts are counted by events.
            Ability::CountsKept => false,
        }
    }

    /// The log's index of open jobs is the queue: it is what a worker changes with the facts that
    /// it writes before it acknowledges.
    async fn written_down(&self, delivery: &Delivery) {
        let event = Event::decode(&delivery.body, self.clock.now()).unwrap();
        let stream = event.job().unwrap().0;
        let closed = Append { stream, expected: Expected::Any, events: Vec::new(), index: IndexChange::Remove };
        self.log.append(vec![closed]).await.unwrap();
    }

    async fn clean(&self) {}
}
