//! A host in a box: real supervisor, log and embedded broker on simulated equipment, which outlives
//! the "process" so that a crash and a restart can be played.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use stoker_producer::submit;
use stoker_schemas::event::{Event, EventData, JOB_LEVEL, JobEnqueued, PoolConfigured, Request};
use stoker_schemas::{JobId, JobSpec, JobState, Phase, Time};
use stoker_worker::attempt::Rig;
use stoker_worker::clock::Clock;
use stoker_worker::config::{Config, Flags, RawConfig};
use stoker_worker::host::{Host, HostError};
use stoker_worker::images::ImageStore;
use stoker_worker::log::{EventLog, LogOptions};
use stoker_worker::ports::broker::Broker;
use stoker_worker::supervisor::Shutdown;
use stoker_worker::vm::simulated::{SimWorld, Simulated, SimulatedNetwork, SimulatedProber};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::{DEADLINE, within};

/// One life of a worker process.
pub struct Life {
    /// Its broker.
    pub broker: Arc<dyn Broker>,
    /// Its log.
    pub log: EventLog,
    clock: Clock,
    shutdown: watch::Sender<Shutdown>,
    running: JoinHandle<Result<(), HostError>>,
}

/// Settings for a simulated host.
///
/// # Panics
/// When the settings are wrong: a mistake in the test.
pub fn config(data: &Path, change: impl FnOnce(&mut Config)) -> Config {
    let flags = Flags {
        host: Some("h-1".to_owned()),
        data: Some(data.to_owned()),
        driver: Some(stoker_schemas::image::Driver::Simulated),
        ..Flags::default()
    };
    let mut config = Config::merge(RawConfig::default(), flags).unwrap();
    change(&mut config);
    config
}

/// Equipment of a simulated host.
pub fn rig(world: &SimWorld) -> Rig {
    Rig {
        hypervisor: Arc::new(Simulated::new(world.clone())),
        network: Arc::new(SimulatedNetwork::new(world.clone())),
        prober: Arc::new(SimulatedProber::new(world.clone())),
        images: Arc::new(ImageStore::Simulated),
        dirs: None,
        clock: Clock::system(),
        stop_grace: Duration::from_millis(10),
    }
}

impl Life {
    /// Begins a life on the log in `config.data`, with its broker in the process.
    ///
    /// # Panics
    /// When the log or broker cannot be opened.
    pub fn begin(config: &Config, world: &SimWorld) -> Self {
        let log = EventLog::open(config.data.join("log"), LogOptions::default()).unwrap();
        Self::begin_on(config, world, log)
    }

    /// Begins a life on an open log.
    ///
    /// # Panics
    /// When the broker cannot be opened.
    pub fn begin_on(config: &Config, world: &SimWorld, log: EventLog) -> Self {
        Self::begin_with(config, rig(world), log)
    }

    /// Begins a life with this equipment.
    ///
    /// # Panics
    /// When the broker cannot be opened.
    pub fn begin_with(config: &Config, rig: Rig, log: EventLog) -> Self {
        let clock = Clock::system();
        let host = Host::with_rig(config, rig, log.clone());
        let broker: Arc<dyn Broker> = Arc::new(host.embedded_broker().unwrap());
        let (shutdown, asked) = watch::channel(Shutdown::No);
        let running = tokio::spawn(host.run(broker.clone(), asked));
        Self { broker, log, clock, shutdown, running }
    }

    /// Enqueues a job as a producer does; returns after the confirm.
    ///
    /// # Panics
    /// When the spec is wrong or the broker refuses.
    pub async fn enqueue(&self, spec: serde_json::Value) -> JobId {
        self.enqueue_ago(spec, Duration::ZERO).await
    }

    /// Enqueues a job that has waited for some time already.
    ///
    /// # Panics
    /// When the spec is wrong or the broker refuses.
    pub async fn enqueue_ago(&self, spec: serde_json::Value, ago: Duration) -> JobId {
        let spec = JobSpec::from_value(&spec).unwrap();
        let id = JobId(uuid::Uuid::now_v7());
        let data = EventData::JobEnqueued(JobEnqueued { spec, by: "test".to_owned() });
        let micros = i64::try_from(ago.as_micros()).unwrap();
        let time = Time::from_unix_micros(self.clock.now().unix_micros() - micros);
        let event = Event::about_job(id, JOB_LEVEL, "/producers/test", time, data);
        submit::publish_event(self.broker.as_ref(), &event).await.unwrap();
        id
    }

    /// Asks for a job's cancellation.
    pub async fn cancel(&self, id: JobId) {
        let request = Request { by: "test".to_owned(), reason: String::new() };
        self.publish(id, EventData::CancelRequested(request.into())).await;
    }

    /// Asks for a VM's stop.
    pub async fn stop(&self, id: JobId) {
        let request = Request { by: "test".to_owned(), reason: String::new() };
        self.publish(id, EventData::StopRequested(request.into())).await;
    }

    /// Publishes a fact as a producer does.
    ///
    /// # Panics
    /// When the broker refuses.
    pub async fn publish(&self, id: JobId, data: EventData) {
        let event = Event::about_job(id, JOB_LEVEL, "/producers/test", self.clock.now(), data);
        submit::publish_event(self.broker.as_ref(), &event).await.unwrap();
    }

    /// Tells hosts what holds for a pool.
    ///
    /// # Panics
    /// When the broker refuses.
    pub async fn configure_pool(&self, pool: &str, rule: PoolConfigured) {
        let event = Event {
            source: "/producers/test".to_owned(),
            subject: pool.to_owned(),
            time: self.clock.now(),
            epoch: JOB_LEVEL,
            traceparent: None,
            data: EventData::PoolConfigured(rule),
        };
        submit::publish_event(self.broker.as_ref(), &event).await.unwrap();
    }

    /// The kinds of a job's events in the log, in order.
    ///
    /// # Panics
    /// When the log cannot be read.
    pub fn kinds(&self, id: JobId) -> Vec<&'static str> {
        let records = self.log.read_stream(id.0).unwrap();
        records.iter().map(|r| Event::decode(&r.payload, Time::UNIX_EPOCH).unwrap().data.kind()).collect()
    }

    /// What the log knows of a job.
    ///
    /// # Panics
    /// When the log cannot be read.
    pub fn state(&self, id: JobId) -> JobState {
        let records = self.log.read_stream(id.0).unwrap();
        let events: Vec<_> = records.iter().map(|r| Event::decode(&r.payload, Time::UNIX_EPOCH).unwrap()).collect();
        JobState::replay(id, &events).unwrap_or_else(|| JobState::new(id))
    }

    /// Waits until the log says that a job is in a phase.
    pub async fn reaches(&self, id: JobId, phase: Phase) -> JobState {
        self.until(id, &format!("job {phase}"), |state| state.phase() == phase).await
    }

    /// Waits until a job's state is as asked.
    pub async fn until(&self, id: JobId, what: &str, wanted: impl Fn(&JobState) -> bool) -> JobState {
        let mut head = self.log.head();
        let seen = async {
            loop {
                head.borrow_and_update();
                let state = self.state(id);
                if wanted(&state) {
                    return state;
                }
                if head.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        match tokio::time::timeout(DEADLINE, seen).await {
            Ok(state) => state,
            Err(_) => panic!("{what} did not happen; the log knows {:#?}", self.state(id)),
        }
    }

    /// Ends this life as a crash does: nothing is finished, nothing is said. The log stays open for
    /// the next life.
    pub async fn crash(self) -> EventLog {
        self.running.abort();
        let _ = self.running.await;
        self.broker.close().await;
        self.log
    }

    /// Ends this life in order.
    ///
    /// # Panics
    /// When the worker ends with an error.
    pub async fn drain(self) -> EventLog {
        let _ = self.shutdown.send(Shutdown::Drain);
        within("drained", self.running).await.unwrap().unwrap();
        self.broker.close().await;
        self.log
    }
}
