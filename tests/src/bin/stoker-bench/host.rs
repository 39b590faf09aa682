//! A whole worker in this process: log, supervisor, equipment and broker as `stoker-worker` has them.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use stoker_producer::submit;
use stoker_schemas::event::{Event, EventData, JOB_LEVEL, JobEnqueued, Request};
use stoker_schemas::{JobId, JobSpec};
use stoker_worker::attempt::Rig;
use stoker_worker::clock::Clock;
use stoker_worker::config::{Config, Flags, RawConfig};
use stoker_worker::host::{Host, HostError};
use stoker_worker::log::EventLog;
use stoker_worker::ports::broker::Broker;
use stoker_worker::supervisor::Shutdown;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::journal::Journal;
use crate::rabbit::Rabbit;
use crate::{Fallible, disk};

/// Slots for simulated VMs: as many as the simulated network has addresses for.
const SIMULATED_SLOTS: u32 = 60_000;

/// A running worker with a producer at its broker.
pub struct BenchHost {
    pub rig: Rig,
    pub log: EventLog,
    /// Data folder, removed when the last one that works in it has ended.
    pub data: Arc<TempDir>,
    config: Config,
    producer: Arc<dyn Broker>,
    worker: Arc<dyn Broker>,
    rabbit: Option<Rabbit>,
    shutdown: watch::Sender<Shutdown>,
    running: JoinHandle<Result<(), HostError>>,
}

/// A new, empty data folder.
pub fn data_folder() -> Fallible<Arc<TempDir>> {
    Ok(Arc::new(tempfile::Builder::new().prefix("st-bench-").tempdir()?))
}

/// Settings of a simulated host with room for everything.
pub fn simulated(max_booting: u32) -> Value {
    json!({
        "host": "bench",
        "driver": "simulated",
        "slots": SIMULATED_SLOTS,
        "vcpus": SIMULATED_SLOTS,
        "memory_mib": u32::MAX,
        "max_booting": max_booting,
        "stop_grace_ms": 0,
    })
}

/// Settings, as the worker resolves them from its file.
pub fn resolve(settings: &Value, data: &Path) -> Fallible<Config> {
    let raw: RawConfig = serde_json::from_value(settings.clone())?;
    let flags = Flags { data: Some(data.to_owned()), ..Flags::default() };
    Ok(Config::merge(raw, flags)?)
}

impl BenchHost {
    /// Starts a worker; on RabbitMQ when there is one, else with the embedded broker.
    pub async fn start(settings: &Value, rabbit: Option<Rabbit>) -> Fallible<Self> {
        Self::start_in(data_folder()?, settings, rabbit).await
    }

    /// Starts a worker in a data folder that may hold the log of an earlier one.
    pub async fn start_in(data: Arc<TempDir>, settings: &Value, rabbit: Option<Rabbit>) -> Fallible<Self> {
        let mut config = resolve(settings, data.path())?;
        if let Some(rabbit) = &rabbit {
            let flags = Flags { broker: Some(rabbit.url().to_owned()), ..Flags::default() };
            config.broker = Config::merge(RawConfig::default(), flags)?.broker;
        }
        Self::start_with(config, data, rabbit).await
    }

    /// Starts a worker with settings that a settings file would refuse (no room at all).
    pub async fn start_with(config: Config, data: Arc<TempDir>, rabbit: Option<Rabbit>) -> Fallible<Self> {
        let host = Host::open(&config).await?;
        let (worker, producer): (Arc<dyn Broker>, Arc<dyn Broker>) = match &rabbit {
            Some(rabbit) => {
                let worker = rabbit.connect(Some(config.host.clone())).await?;
                (Arc::new(worker), Arc::new(rabbit.connect(None).await?))
            }
            None => {
                let broker = Arc::new(host.embedded_broker()?);
                (broker.clone(), broker)
            }
        };
        let (log, rig) = (host.log().clone(), host.rig().clone());
        let (shutdown, asked) = watch::channel(Shutdown::No);
        let running = tokio::spawn(host.run(worker.clone(), asked));
        Ok(Self { rig, log, data, config, producer, worker, rabbit, shutdown, running })
    }

    /// Notes the times of this host's events of these kinds from now on.
    pub fn journal(&self, kinds: &'static [&'static str]) -> Journal {
        Journal::follow(self.log.clone(), kinds)
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where jobs are enqueued and the history is read: a control plane's broker.
    pub fn front(&self) -> Arc<dyn Broker> {
        self.producer.clone()
    }

    /// Enqueues as a producer does; answers when the broker had confirmed it.
    pub async fn enqueue(&self, spec: &JobSpec) -> Fallible<(JobId, Instant)> {
        let id = JobId(uuid::Uuid::now_v7());
        let data = EventData::JobEnqueued(JobEnqueued { spec: spec.clone(), by: "bench".to_owned() });
        self.publish(id, data).await?;
        Ok((id, Instant::now()))
    }

    /// Asks for a VM's stop.
    pub async fn stop_vm(&self, id: JobId) -> Fallible<()> {
        let request = Request { by: "bench".to_owned(), reason: "measured".to_owned() };
        self.publish(id, EventData::StopRequested(request.into())).await
    }

    async fn publish(&self, id: JobId, data: EventData) -> Fallible<()> {
        let event = Event::about_job(id, JOB_LEVEL, "/producers/bench", Clock::system().now(), data);
        Ok(submit::publish_event(self.producer.as_ref(), &event).await?)
    }

    /// Ends the worker and removes what it had at the broker. Real VMs must be stopped before.
    pub async fn end(self) -> Fallible<()> {
        let of_broker = self.rabbit.clone().map(|rabbit| (rabbit, self.config.host.clone()));
        let ended = self.end_for_now().await;
        if let Some((rabbit, host)) = of_broker {
            rabbit.clean(&host).await?;
        }
        ended
    }

    /// Ends the worker; another may go on in its data folder, and finds it free.
    pub async fn end_for_now(self) -> Fallible<()> {
        let _ = self.shutdown.send(Shutdown::Now);
        let ended = self.running.await?;
        self.producer.close().await;
        self.worker.close().await;
        let data = self.data;
        drop((self.rig, self.log, self.producer, self.worker));
        disk::closed(data.path()).await?;
        Ok(ended?)
    }
}

/// A small VM of this image.
pub fn spec(image: &str, memory_mib: u32) -> Fallible<JobSpec> {
    Ok(JobSpec::from_value(&json!({"image": image, "vcpus": 1, "memory_mib": memory_mib}))?)
}
