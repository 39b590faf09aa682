//! The control plane of the simulation: the real read model and what watches it, in a process of its own;
//! and the users, who act through it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use stoker_producer::clock::Clock;
use stoker_producer::readmodel::ReadModel;
use stoker_producer::submit::Submitter;
use stoker_producer::work::{self, Work};
use stoker_producer::{
    dead_letters, pools,
    reconcile::{self, Patience},
    supersede,
};
use stoker_schemas::Time;
use stoker_worker::ports::broker::Broker;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::broker::{Model, SimBroker};
use super::host::ahead;
use super::node::Process;
use super::plan::ClockPlan;
use super::user::{Book, Wish, carry_out};
use crate::say;
use crate::sim::trace::Trace;

/// Jobs that wait for so long while there is room are told of.
const STALLED_AFTER: Duration = Duration::from_secs(300);

/// A life of it.
struct Life {
    process: Arc<Process>,
    /// Its connection to the broker, where that is another process.
    link: Option<u64>,
    model: ReadModel,
    submitter: Submitter,
    work: watch::Receiver<Work>,
    /// Why a task of it ended, which none may.
    ended: Arc<Mutex<Option<String>>>,
}

/// The control plane.
pub struct SimControl {
    /// When it is started next, ms; unless it runs.
    pub start_at_ms: u64,
    /// What users know.
    pub book: Book,
    folder: PathBuf,
    life: Option<Life>,
    lives: usize,
    clock: ClockPlan,
    trace: Trace,
}

impl SimControl {
    /// One that was never started.
    pub fn new(folder: &Path, clock: ClockPlan, trace: Trace) -> Self {
        let folder = folder.join("control");
        Self { start_at_ms: 0, book: Book::default(), folder, life: None, lives: 0, clock, trace }
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.life.is_some()
    }

    /// Its connection to the broker.
    pub fn link(&self) -> Option<u64> {
        self.life.as_ref()?.link
    }

    /// Starts it in a process of its own.
    ///
    /// # Errors
    /// When its rows cannot be opened, which nothing may lead to.
    pub fn start(&mut self, wall: Time, broker: &Model) -> Result<(), String> {
        let process = Arc::new(Process::start());
        let port = SimBroker::connect(broker, "control", None);
        let link = port.link();
        self.start_in(process, Arc::new(port), Some(link), wall)
    }

    /// Starts it in this process.
    ///
    /// # Errors
    /// When its rows cannot be opened, which nothing may lead to.
    pub fn start_in(
        &mut self,
        process: Arc<Process>,
        port: Arc<dyn Broker>,
        link: Option<u64>,
        wall: Time,
    ) -> Result<(), String> {
        let wall = ahead(wall, self.clock.ahead_in(self.lives));
        self.lives += 1;
        let life = process.within(|| {
            let begun = Instant::now();
            let clock: Clock = Arc::new(move || wall.plus(begun.elapsed()));
            let model = ReadModel::open(&self.folder, clock.clone()).map_err(|e| e.to_string())?;
            let submitter = Submitter::new(port.clone(), "control", clock);
            let (stop, ended) = (CancellationToken::new(), Arc::new(Mutex::new(None)));
            process.spawn({
                let (model, stop, ended) = (model.clone(), stop.clone(), Arc::clone(&ended));
                async move {
                    let read = model.follow(port, stop).await;
                    *ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("follow ended: {read:?}"));
                }
            });
            let (told, work) = watch::channel(Work::default());
            process.spawn(work::run(model.clone(), submitter.clone(), STALLED_AFTER, told, stop.clone()));
            process.spawn(supersede::run(model.clone(), submitter.clone(), stop.clone()));
            process.spawn(pools::run(model.clone(), submitter.clone(), stop.clone()));
            process.spawn(reconcile::run(model.clone(), submitter.clone(), Patience::default(), stop.clone()));
            process.spawn(dead_letters::run(model.clone(), submitter.clone(), stop));
            Ok::<_, String>((model, submitter, work, ended))
        });
        let (model, submitter, work, ended) = life.map_err(|e| format!("the control plane cannot be started: {e}"))?;
        self.life = Some(Life { process, link, model, submitter, work, ended });
        Ok(())
    }

    /// What it says of the work: that it stands still, say.
    pub fn work(&self) -> Option<Work> {
        Some(self.life.as_ref()?.work.borrow().clone())
    }

    /// Lets it run for a while. Why a task of it ended, if one did.
    pub fn step(&mut self, time: Duration) -> Option<String> {
        let life = self.life.as_ref()?;
        // In a worker's process it has run with that.
        if life.link.is_some() {
            life.process.step(self.clock.counts(time));
        }
        life.ended.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Ends it in the middle of what it does.
    pub fn kill(&mut self, looks: u32, broker: &Model) {
        let Some(life) = self.life.take() else { return };
        if let Some(link) = life.link {
            life.process.look(looks);
            broker.lock().lose(link);
        }
    }

    /// A user asks for something; nothing happens while it is away.
    pub fn ask(&self, wish: Wish) {
        let Some(life) = &self.life else {
            say!(self.trace, "user: the control plane is away");
            return;
        };
        let (model, submitter) = (life.model.clone(), life.submitter.clone());
        life.process.spawn(carry_out(wish, model, submitter, self.book.clone(), self.trace.clone()));
    }

    /// Looks at its rows.
    pub fn rows<T>(&self, look: impl FnOnce(&ReadModel) -> T) -> Option<T> {
        let life = self.life.as_ref()?;
        Some(life.process.within(|| look(&life.model)))
    }
}
