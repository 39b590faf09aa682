//! One host, put together: settings in, a running supervisor out.
//!
//! Order matters: log first (one process per data folder), then the network and the hypervisor,
//! then the books, then the reaper, and only then new work.

use std::collections::HashSet;
use std::sync::Arc;

use stoker_schemas::image::Driver;
use tokio::sync::watch;

use crate::attempt::Rig;
use crate::broker::amqp::{AmqpBroker, AmqpConfig};
use crate::broker::embedded::EmbeddedBroker;
use crate::clock::Clock;
use crate::config::{BrokerUrl, Config};
use crate::dirs::Dirs;
use crate::equipment::equip;
use crate::images::ImageStore;
use crate::log::{EventLog, LogError, LogOptions};
use crate::metrics_file;
use crate::outbox::{self, Progress};
use crate::ports::broker::{Broker, BrokerError};
use crate::ports::net::NetError;
use crate::ports::vm::VmError;
use crate::reaper::{self, Reaped};
use crate::supervisor::{Settings, Shutdown, Supervisor, SupervisorError};

/// Why a host could not be opened, or ended.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The data folder cannot be used.
    #[error(
        "data folder {0} cannot be used: {1}; is it another user's (left by a run as root)? give it to this user, or \
         name another with --data"
    )]
    Data(std::path::PathBuf, std::io::Error),
    /// The log cannot be used.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The network cannot be used.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The hypervisor cannot be used.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The broker cannot be used.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The supervisor ended.
    #[error(transparent)]
    Supervisor(#[from] SupervisorError),
}

/// An opened host that does not work yet.
pub struct Host {
    settings: Settings,
    rig: Rig,
    log: EventLog,
}

impl Host {
    /// Opens log, network and hypervisor.
    pub async fn open(config: &Config) -> Result<Self, HostError> {
        let data = |e| HostError::Data(config.data.clone(), e);
        let dirs = Dirs::open(&config.data).map_err(data)?;
        let options = LogOptions { cache_bytes: config.log_cache_bytes, ..LogOptions::default() };
        let log = EventLog::open(dirs.log(), options)?;
        let equipment = equip(config, &dirs).await?;
        let simulated = config.driver == Driver::Simulated;
        let images = match simulated {
            true => ImageStore::Simulated,
            false => ImageStore::folder_with_note(&config.images, dirs.digests()),
        };
        let rig = Rig {
            hypervisor: equipment.hypervisor,
            network: equipment.network,
            prober: equipment.prober,
            images: Arc::new(images),
            dirs: (!simulated).then_some(dirs),
            clock: Clock::system(),
            stop_grace: config.stop_grace,
        };
        Ok(Self::with_rig(config, rig, log))
    }

    /// A host on equipment made elsewhere (simulation, tests).
    pub fn with_rig(config: &Config, rig: Rig, log: EventLog) -> Self {
        let settings = Settings {
            host: config.host.clone(),
            labels: config.labels.clone(),
            pools: config.pools.clone(),
            capacity: config.capacity,
            max_booting: config.max_booting,
            hold: config.hold,
            settle_after: config.settle_after,
            drain: config.drain,
            warm: config.warm.clone(),
            shares_log: config.broker.is_none(),
            seed: fastrand::u64(..),
        };
        Self { settings, rig, log }
    }

    /// The host's log.
    pub fn log(&self) -> &EventLog {
        &self.log
    }

    /// The host's equipment.
    pub fn rig(&self) -> &Rig {
        &self.rig
    }

    /// A broker in this process, on this host's log.
    pub fn embedded_broker(&self) -> Result<EmbeddedBroker, BrokerError> {
        EmbeddedBroker::open(self.log.clone(), self.rig.clock)
    }

    /// The broker of the settings: RabbitMQ, or the one in this process.
    pub async fn broker(&self, config: &Config) -> Result<Arc<dyn Broker>, BrokerError> {
        Ok(match &config.broker {
            None => Arc::new(self.embedded_broker()?),
            Some(url) => Arc::new(AmqpBroker::connect(amqp_config(config, url)).await?),
        })
    }

    /// Works until asked to end. VMs keep running.
    pub async fn run(self, broker: Arc<dyn Broker>, shutdown: watch::Receiver<Shutdown>) -> Result<(), HostError> {
        let embedded = self.settings.shares_log;
        let source = format!("/hosts/{}", self.settings.host);
        let supervisor = Supervisor::open(self.settings, self.rig.clone(), self.log.clone(), broker.clone())?;
        let known: HashSet<_> = supervisor.known_vms().collect();
        report(&reaper::reap(&self.rig, &known).await);
        let (published, publishing) = watch::channel(Progress::default());
        let outbox = if embedded {
            // The log is the broker's own: what is durable is published.
            None
        } else {
            Some(tokio::spawn(outbox::run(self.log.clone(), broker, source, self.rig.clock, published)))
        };
        let counted = metrics_file::Counted {
            hypervisor: self.rig.hypervisor.clone(),
            outbox: (!embedded).then(|| (self.log.clone(), publishing.clone())),
            clock: self.rig.clock,
        };
        let counts = self.rig.dirs.as_ref().map(|dirs| (dirs.metrics(), counted));
        let counting = counts.clone().map(|(file, counted)| tokio::spawn(metrics_file::keep(file, counted)));
        let ended = supervisor.run(publishing, shutdown).await;
        if let (Some(counting), Some((file, counted))) = (counting, counts) {
            counting.abort();
            metrics_file::write(&file, &counted);
        }
        if let Some(outbox) = outbox {
            flush(&self.log, &outbox).await;
            if outbox.is_finished() {
                // Why it ended says more than that it did.
                outbox.await.unwrap_or(Ok(()))?;
            } else {
                outbox.abort();
            }
        }
        self.log.flush_cursors().await?;
        Ok(ended?)
    }
}

/// How long the outbox may take to publish the last words.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(2);
/// How often it is looked at meanwhile.
const LAST_WORDS_LOOK: std::time::Duration = std::time::Duration::from_millis(10);

async fn flush(log: &EventLog, outbox: &tokio::task::JoinHandle<Result<(), LogError>>) {
    let head = log.durable();
    let flushed = async {
        while !outbox.is_finished() && log.cursor(outbox::CURSOR).is_ok_and(|at| at < head) {
            tokio::time::sleep(LAST_WORDS_LOOK).await;
        }
    };
    // What is not published now is published by the next worker.
    let _ = tokio::time::timeout(LAST_WORDS, flushed).await;
}

fn report(reaped: &Reaped) {
    if *reaped != Reaped::default() {
        tracing::info!(vmms = reaped.vmms, folders = reaped.folders, taps = reaped.taps, "removed what no job owns");
    }
    for failure in &reaped.failed {
        tracing::error!(failure, "left-over could not be removed");
    }
}

fn amqp_config(config: &Config, url: &BrokerUrl) -> AmqpConfig {
    AmqpConfig {
        pools: config.pools.clone(),
        host: Some(config.host.clone()),
        ca: config.broker_ca.clone(),
        ..AmqpConfig::new(url.expose())
    }
}
