//! A host of the simulation: the real worker in a process of its own, on a disk and in a world of guests
//! that both outlive it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use stoker_schemas::image::Driver;
use stoker_schemas::{Event, Time};
use stoker_worker::attempt::Rig;
use stoker_worker::broker::embedded::EmbeddedBroker;
use stoker_worker::clock::Clock;
use stoker_worker::config::{Config, Flags, RawConfig};
use stoker_worker::dirs::Dirs;
use stoker_worker::host::{Host, HostError};
use stoker_worker::images::ImageStore;
use stoker_worker::log::{Disk, EventLog, Fate, LogOptions};
use stoker_worker::ports::broker::Broker;
use stoker_worker::supervisor::{Capacity, Shutdown};
use stoker_worker::vm::simulated::{SimWorld, Simulated, SimulatedNetwork, SimulatedProber};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::broker::{Model, SimBroker};
use super::node::Process;
use super::plan::HostPlan;

/// Events read from a log at a time.
const PAGE: usize = 1_024;

/// What a clock shows that is so far ahead.
pub(super) fn ahead(wall: Time, seconds: i64) -> Time {
    Time::from_unix_micros(wall.unix_micros() + seconds * 1_000_000)
}

/// The disk under a host's log.
#[derive(Debug)]
pub struct SimDisk {
    latency_ms: (u64, u64),
    state: Mutex<(fastrand::Rng, Option<Fate>)>,
}

impl SimDisk {
    /// A disk whose commits take this long.
    pub fn new(latency_ms: (u64, u64), seed: u64) -> Arc<Self> {
        Arc::new(Self { latency_ms, state: Mutex::new((fastrand::Rng::with_seed(seed), None)) })
    }

    /// The next commit meets this fate.
    pub fn fail_next(&self, fate: Fate) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1 = Some(fate);
    }
}

#[async_trait]
impl Disk for SimDisk {
    async fn fate(&self) -> Fate {
        let (wait, fate) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            (state.0.u64(self.latency_ms.0..=self.latency_ms.1), state.1.take())
        };
        if wait > 0 {
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
        fate.unwrap_or(Fate::Kept)
    }
}

/// A life of its worker.
struct Life {
    process: Arc<Process>,
    /// Its connection to the broker, or the broker in it.
    broker: LinkOrBroker,
    log: EventLog,
    shutdown: watch::Sender<Shutdown>,
    running: JoinHandle<Result<(), HostError>>,
}

enum LinkOrBroker {
    Link(u64),
    InProcess(Arc<EmbeddedBroker>),
}

/// The host.
pub struct SimHost {
    /// Its name.
    pub name: String,
    /// Its guests.
    pub world: SimWorld,
    /// Its disk.
    pub disk: Arc<SimDisk>,
    /// When it is started next, ms; unless it runs.
    pub start_at_ms: u64,
    plan: HostPlan,
    in_process: bool,
    folder: PathBuf,
    life: Option<Life>,
    lives: usize,
    /// Events read from its log.
    read: u64,
}

impl SimHost {
    /// A host that was never started.
    pub fn new(name: &str, plan: HostPlan, in_process: bool, folder: &Path, disk: Arc<SimDisk>) -> Self {
        let (folder, world) = (folder.join(name), SimWorld::new());
        world.set_removal(Duration::from_millis(plan.removal_ms));
        let name = name.to_owned();
        Self { name, world, disk, start_at_ms: 0, plan, in_process, folder, life: None, lives: 0, read: 0 }
    }

    /// Whether its worker runs.
    pub fn is_running(&self) -> bool {
        self.life.is_some()
    }

    /// Its connection to the broker.
    pub fn link(&self) -> Option<u64> {
        match self.life.as_ref()?.broker {
            LinkOrBroker::Link(link) => Some(link),
            LinkOrBroker::InProcess(_) => None,
        }
    }

    /// The process that it runs in, and the broker that is in there.
    pub fn in_process(&self) -> Option<(Arc<Process>, Arc<EmbeddedBroker>)> {
        let life = self.life.as_ref()?;
        match &life.broker {
            LinkOrBroker::Link(_) => None,
            LinkOrBroker::InProcess(broker) => Some((life.process.clone(), broker.clone())),
        }
    }

    /// Warm VMs that it may keep.
    pub fn warm(&self) -> usize {
        self.plan.warm as usize
    }

    /// VMs that may boot on it at once.
    pub fn max_booting(&self) -> usize {
        self.plan.max_booting as usize
    }

    /// Its settings.
    fn config(&self) -> Config {
        let flags = Flags {
            host: Some(self.name.clone()),
            data: Some(self.folder.clone()),
            driver: Some(Driver::Simulated),
            broker: (!self.in_process).then(|| "amqp://simulated".to_owned()),
            pools: self.plan.pools.clone(),
            warm: match self.plan.warm {
                0 => Vec::new(),
                count => vec![format!("simulated={count}").parse().expect("a warm kind")],
            },
            ..Flags::default()
        };
        let mut config = Config::merge(RawConfig::default(), flags).expect("settings of a simulated host");
        let HostPlan { slots, memory_mib, max_booting, hold_ms, settle_after_ms, .. } = self.plan;
        config.capacity = Capacity { slots, vcpus: slots * 4, memory_mib };
        config.max_booting = max_booting;
        config.hold = Duration::from_millis(hold_ms);
        config.settle_after = Duration::from_millis(settle_after_ms);
        config.drain = Duration::from_secs(5);
        config
    }

    /// Starts its worker.
    ///
    /// # Errors
    /// When its log cannot be opened, which nothing may lead to.
    pub fn start(&mut self, now_ms: u64, wall: Time, model: &Model) -> Result<(), String> {
        let process = Arc::new(Process::start());
        let wall = ahead(wall, self.plan.clock.ahead_in(self.lives));
        self.lives += 1;
        let config = self.config();
        let started = process.within(|| {
            self.world.continue_at(Duration::from_millis(now_ms));
            let options = LogOptions { disk: Some(self.disk.clone()), cache_bytes: 8 << 20, ..LogOptions::default() };
            let log = EventLog::open(self.folder.join("log"), options).map_err(|e| e.to_string())?;
            let world = self.world.clone();
            let rig = Rig {
                hypervisor: Arc::new(Simulated::new(world.clone())),
                network: Arc::new(SimulatedNetwork::with_pool(world.clone(), self.plan.addresses)),
                prober: Arc::new(SimulatedProber::new(world)),
                images: Arc::new(ImageStore::Simulated),
                dirs: Some(Dirs::open(&self.folder).map_err(|e| e.to_string())?),
                clock: Clock::starting_at(wall),
                stop_grace: Duration::from_millis(100),
            };
            let (shutdown, asked) = watch::channel(Shutdown::No);
            let host = Host::with_rig(&config, rig, log.clone());
            let (broker, port): (_, Arc<dyn Broker>) = if self.in_process {
                let broker = Arc::new(host.embedded_broker().map_err(|e| e.to_string())?);
                (LinkOrBroker::InProcess(broker.clone()), broker)
            } else {
                let broker = SimBroker::connect(model, &self.name, Some(&self.name));
                (LinkOrBroker::Link(broker.link()), Arc::new(broker))
            };
            let running = process.spawn(host.run(port, asked));
            Ok::<_, String>((broker, log, shutdown, running))
        });
        let (broker, log, shutdown, running) = started.map_err(|e| format!("{} cannot be started: {e}", self.name))?;
        self.life = Some(Life { process, broker, log, shutdown, running });
        Ok(())
    }

    /// Lets it run for a while. How it ended, if it did.
    pub fn step(&mut self, time: Duration) -> Option<String> {
        let life = self.life.as_mut()?;
        life.process.step(self.plan.clock.counts(time));
        let ended = (&mut life.running).now_or_never()?;
        Some(match ended {
            Ok(Ok(())) => "ended".to_owned(),
            // Where its files are differs from run to run.
            Ok(Err(error)) => format!("ended: {}", error.to_string().replace(&*self.folder.to_string_lossy(), "data")),
            Err(error) => format!("failed: {error}"),
        })
    }

    /// Asks its worker to end.
    pub fn ask_to_end(&self) {
        if let Some(life) = &self.life {
            let _ = life.shutdown.send(Shutdown::Drain);
        }
    }

    /// Ends its worker in the middle of what it does.
    pub fn kill(&mut self, looks: u32, model: &Model) {
        let Some(Life { process, broker, log, shutdown, running }) = self.life.take() else { return };
        process.look(looks);
        match broker {
            LinkOrBroker::Link(link) => model.lock().lose(link),
            // What its consumers hold ends with them.
            LinkOrBroker::InProcess(broker) => drop(broker.close().now_or_never()),
        }
        drop((process, log, running, shutdown));
    }

    /// Ends all its VMs.
    pub fn kill_vms(&self) {
        match &self.life {
            Some(life) => life.process.within(|| self.world.kill_all()),
            None => self.world.kill_all(),
        }
    }

    /// Says so when it runs more than it may.
    pub fn overfull(&self) -> Option<String> {
        let running = self.living().len();
        (running > self.plan.slots as usize)
            .then(|| format!("{} has {} slots and runs {running} VMs", self.name, self.plan.slots))
    }

    /// VMs that run on it now.
    pub fn living(&self) -> Vec<stoker_schemas::VmId> {
        self.life.as_ref().map_or_else(Vec::new, |life| life.process.within(|| self.world.living()))
    }

    /// What its log has that was not read before.
    ///
    /// # Errors
    /// When an event in it cannot be read.
    pub fn news(&mut self) -> Result<Vec<Event>, String> {
        let Some(life) = &self.life else { return Ok(Vec::new()) };
        let mut news = Vec::new();
        while life.log.durable() > self.read {
            let records = life.log.scan(self.read + 1, PAGE).map_err(|e| e.to_string())?;
            let Some(last) = records.last() else { break };
            self.read = last.position;
            for record in &records {
                let event = Event::decode(&record.payload, Time::UNIX_EPOCH);
                news.push(event.map_err(|e| format!("{}: event {}: {e}", self.name, record.position))?);
            }
        }
        Ok(news)
    }
}
