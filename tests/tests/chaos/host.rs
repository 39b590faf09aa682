//! A simulated host that is fed by RabbitMQ, as `stoker-worker run --driver simulated` puts it
//! together, with its log and its world within reach.

#![allow(dead_code, reason = "each suite uses its part")]

use std::{sync::Arc, time::Duration};

use stoker_schemas::{JobId, JobState, Time, event::Event, image::Driver};
use stoker_tests::harness;
use stoker_worker::{
    attempt::Rig,
    broker::amqp::{AmqpBroker, AmqpConfig},
    config::{Config, Flags, RawConfig},
    host::{Host, HostError},
    log::{EventLog, LogOptions},
    ports::broker::Broker,
    supervisor::Shutdown,
    vm::simulated::SimWorld,
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};

pub struct SimHost {
    pub world: SimWorld,
    pub log: EventLog,
    pub broker: Arc<dyn Broker>,
    shutdown: watch::Sender<Shutdown>,
    running: JoinHandle<Result<(), HostError>>,
    process: Process,
}

/// Stands for the worker's process: all of its tasks, which end with it.
struct Process(Option<Runtime>);

impl Process {
    fn start() -> Self {
        Self(Some(Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()))
    }

    fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.0.as_ref().expect("it runs until it is dropped").spawn(task)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Waiting for it would block the test's own runtime.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl SimHost {
    pub async fn start(config: &Config, url: &str) -> Self {
        Self::start_with(config, url, |_| {}).await
    }

    /// With another broker's limits than usual.
    pub async fn start_with(config: &Config, url: &str, limits: impl FnOnce(&mut AmqpConfig)) -> Self {
        let log = EventLog::open(config.data.join("log"), LogOptions::default()).unwrap();
        Self::start_on(config, url, SimWorld::new(), log, limits).await
    }

    /// In a world and on a log that an earlier worker left.
    pub async fn start_on(
        config: &Config,
        url: &str,
        world: SimWorld,
        log: EventLog,
        limits: impl FnOnce(&mut AmqpConfig),
    ) -> Self {
        let rig = harness::rig(&world);
        Self::start_with_rig(config, url, world, rig, log, limits).await
    }

    /// The same with other equipment than usual in that world.
    pub async fn start_with_rig(
        config: &Config,
        url: &str,
        world: SimWorld,
        rig: Rig,
        log: EventLog,
        limits: impl FnOnce(&mut AmqpConfig),
    ) -> Self {
        let mut amqp =
            AmqpConfig { pools: config.pools.clone(), host: Some(config.host.clone()), ..AmqpConfig::new(url) };
        limits(&mut amqp);
        let process = Process::start();
        let broker = process.spawn(AmqpBroker::connect(amqp)).await.unwrap();
        let broker: Arc<dyn Broker> = Arc::new(broker.unwrap());
        let host = Host::with_rig(&fed_by(config, url), rig, log.clone());
        let (shutdown, asked) = watch::channel(Shutdown::No);
        let running = process.spawn(host.run(broker.clone(), asked));
        Self { world, log, broker, shutdown, running, process }
    }

    /// What the log knows of a job.
    pub fn state(&self, id: JobId) -> JobState {
        let records = self.log.read_stream(id.0).unwrap();
        let events: Vec<_> = records.iter().map(|r| Event::decode(&r.payload, Time::UNIX_EPOCH).unwrap()).collect();
        JobState::replay(id, &events).unwrap_or_else(|| JobState::new(id))
    }

    /// The kinds of a job's events in the log, in order.
    pub fn kinds(&self, id: JobId) -> Vec<&'static str> {
        let records = self.log.read_stream(id.0).unwrap();
        records.iter().map(|r| Event::decode(&r.payload, Time::UNIX_EPOCH).unwrap().data.kind()).collect()
    }

    /// Whether something holds in time; looks again whenever the log has grown.
    pub async fn holds(&self, patience: Duration, mut holds: impl FnMut(&Self) -> bool) -> bool {
        let mut head = self.log.head();
        let seen = async {
            loop {
                head.borrow_and_update();
                if holds(self) || head.changed().await.is_err() {
                    return;
                }
                // A log that grows all the time must not keep the deadline from being looked at.
                tokio::task::yield_now().await;
            }
        };
        timeout(patience, seen).await.is_ok()
    }

    /// Waits until something holds.
    pub async fn until(&self, what: &str, patience: Duration, mut holds: impl FnMut(&Self) -> bool) {
        let in_time = self.holds(patience, &mut holds).await;
        // Asked once more only to have the caller know what is missing.
        let late = in_time || holds(self);
        assert!(
            in_time,
            "{what} did not happen within {patience:?} (holds now, so the log did not tell: {late}); the broker is {:?}",
            *self.broker.status().borrow()
        );
        assert!(!self.running.is_finished(), "the worker ended");
    }

    /// Ends as a crash does: nothing is finished, nothing is said, and the broker takes its messages back.
    pub async fn crash(self) -> (SimWorld, EventLog) {
        self.running.abort();
        let _ = self.running.await;
        self.broker.close().await;
        drop(self.process);
        (self.world, self.log)
    }

    /// Ends in order.
    pub async fn end(self, patience: Duration) {
        let _ = self.shutdown.send(Shutdown::Drain);
        timeout(patience, self.running).await.expect("does not end").unwrap().unwrap();
        self.broker.close().await;
    }
}

/// These settings with that broker: a host whose broker is its own log has nothing to publish.
fn fed_by(config: &Config, url: &str) -> Config {
    let flags = Flags {
        host: Some(config.host.to_string()),
        data: Some(config.data.clone()),
        driver: Some(Driver::Simulated),
        broker: Some(url.to_owned()),
        ..Flags::default()
    };
    Config { broker: Config::merge(RawConfig::default(), flags).unwrap().broker, ..config.clone() }
}
