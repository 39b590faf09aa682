//! The one task that owns a host's jobs.
//!
//! ```text
//!  deliveries, commands, reports, ticks        (closed enum Input)
//!        |
//!      handle: state + command --decide--> facts     nothing happens yet
//!        |        (one turn: everything that has come in)
//!      commit: append to the log, flushed            one fdatasync for the whole turn
//!        |
//!      effects: start attempts, give orders, settle deliveries
//! ```
//!
//! While a turn commits, inputs queue up and make the next turn larger: group commit by itself.
//! Nothing is done, published or acknowledged before the facts behind it are on disk.

mod addresses;
mod admission;
mod age;
mod books;
mod commands;
mod credit;
mod deliveries;
mod pools;
mod refusals;
mod reports;
mod restore;
mod settling;
mod snooze;
mod turn;
mod waiting;
mod warm;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use stoker_schemas::event::{EventData, HostDraining, HostHypervisorChanged, HostStopped, WarmGoneWhy};
use stoker_schemas::{HostName, JobId, PoolName, Time};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use addresses::AddressPool;
use admission::Admission;
pub use admission::Capacity;
use age::Ages;
use books::Job;
use credit::Lanes;
use pools::Pools;
use refusals::Refusals;
use settling::Settling;
use snooze::Snoozes;
use turn::Turn;
pub use turn::{HOST_STREAM, tags};
use waiting::Waiting;
use warm::Stock;
pub use warm::Warm;

use crate::attempt::{Rig, Tagged};
use crate::boots::Boots;
use crate::log::{EventLog, LogError};
use crate::outbox::Progress;
use crate::ports::broker::{Broker, BrokerError, Delivery};

/// Inputs taken in one turn: enough to fill a disk flush, few enough to keep effects prompt.
const MAX_TURN: usize = 256;
/// Inputs waiting between turns; senders wait beyond.
const INPUT_QUEUE: usize = 1_024;
/// How often held deliveries and deadlines are looked at.
const TICK: Duration = Duration::from_millis(500);

/// What a supervisor is told at start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This host.
    pub host: HostName,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Pools it serves.
    pub pools: Vec<PoolName>,
    /// What it may give out.
    pub capacity: Capacity,
    /// VMs that boot at the same time on the whole host, warm ones and templates included.
    pub max_booting: u32,
    /// How long a job that does not fit is held before another host may have it.
    pub hold: Duration,
    /// An attempt that takes longer does not keep its message.
    pub settle_after: Duration,
    /// How long boots under way may take when the worker is asked to end.
    pub drain: Duration,
    /// The broker lives in this process and shares our log (embedded).
    pub shares_log: bool,
    /// VMs to keep up for jobs to come.
    pub warm: Vec<Warm>,
    /// Seed of the retry jitter.
    pub seed: u64,
}

/// How the worker is asked to end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shutdown {
    /// Not.
    #[default]
    No,
    /// Finish what boots, take nothing new; VMs keep running.
    Drain,
    /// At once; VMs keep running, boots are resumed by the next worker.
    Now,
}

/// What may come in.
enum Input {
    /// A job to work on.
    Job(Delivery),
    /// A command to this host.
    Command(Delivery),
    /// An attempt has something to say.
    Report(Tagged),
    /// The outbox has come so far.
    Published(Progress),
    /// The hypervisor boots VMs in another way from now on; why.
    HypervisorChanged(String),
    /// A message that the broker did not take back.
    StillHere(Box<Waiting>),
    /// Time passed.
    Tick,
}

/// Why a supervisor ended.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// The log takes no more: nothing may be done that is not written down.
    #[error("event log failed, the worker ends and its VMs keep running: {0}")]
    Log(#[from] LogError),
    /// The task that publishes has ended: nobody would learn of what happens here.
    #[error("publishing of events ended, the worker ends and its VMs keep running; a restart publishes what is left")]
    OutboxEnded,
    /// The broker could not be subscribed to.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// An event in our own log cannot be read.
    #[error("event {position} in the log cannot be read: {cause}; stoker log verify shows more")]
    Corrupt {
        /// Its position.
        position: u64,
        /// Why.
        cause: String,
    },
    /// An event could not be written as JSON.
    #[error("an event could not be encoded: {0}")]
    Encode(String),
}

/// The task's state.
pub struct Supervisor {
    settings: Settings,
    source: String,
    rig: Rig,
    log: EventLog,
    broker: Arc<dyn Broker>,
    jobs: BTreeMap<JobId, Job>,
    books: Admission,
    addresses: AddressPool,
    stock: Stock,
    /// Warm VMs begun in this life.
    warm_made: u64,
    begun_at: Time,
    ages: Ages,
    /// Deliveries that do not fit now, the high lane first.
    waiting: VecDeque<Waiting>,
    /// High jobs that have begun since a normal one did.
    high_in_a_row: u32,
    /// Places of VMs that boot, jobs' and others'.
    boots: Boots,
    /// Boots whose message was settled.
    boots_without_message: u32,
    /// Deliveries to acknowledge once what their jobs wrote is published.
    settling: Settling,
    /// Queues that refuse what we publish, as far as it was told.
    refusals: Refusals,
    lanes: Lanes,
    pools: Pools,
    /// Held because dropping it would end the subscription to commands.
    command_credit: Option<watch::Sender<u32>>,
    reports: mpsc::Sender<Tagged>,
    reports_in: mpsc::Receiver<Tagged>,
    /// Messages that the broker did not take back.
    not_put_back: mpsc::Sender<Waiting>,
    not_put_back_in: mpsc::Receiver<Waiting>,
    jitter: fastrand::Rng,
    draining: bool,
    /// How many of the jobs are up: counting them anew for each turn would cost more than the turn.
    up: u32,
    /// A VM went: what waits may fit now.
    room_made: bool,
    /// The turn that is being put on disk. Where that fails or is cut off, the worker ends, and its deliveries go back
    /// with the subscriptions.
    in_hand: Option<Turn>,
    snoozes: Snoozes,
    /// Time of the last event about this host itself, also of earlier lives.
    last_host_fact: Time,
    /// Jobs that were here and cannot be read any more, until that is told.
    damaged: Vec<(JobId, LogError)>,
}

impl Supervisor {
    /// Opens the books from the log: what the host runs, holds and must still remove.
    pub fn open(settings: Settings, rig: Rig, log: EventLog, broker: Arc<dyn Broker>) -> Result<Self, SupervisorError> {
        let (reports, reports_in) = mpsc::channel(INPUT_QUEUE);
        let (not_put_back, not_put_back_in) = mpsc::channel(INPUT_QUEUE);
        let boots = Boots::new(settings.max_booting);
        rig.hypervisor.share_boots(boots.clone());
        let mut supervisor = Self {
            source: format!("/hosts/{}", settings.host),
            books: Admission::new(settings.capacity),
            addresses: AddressPool::new(rig.network.pool()),
            jitter: fastrand::Rng::with_seed(settings.seed),
            stock: Stock::new(settings.warm.clone()),
            warm_made: 0,
            begun_at: rig.clock.now(),
            ages: Ages::new(rig.clock.now()),
            settings,
            rig,
            log,
            broker,
            jobs: BTreeMap::new(),
            waiting: VecDeque::new(),
            high_in_a_row: 0,
            boots,
            boots_without_message: 0,
            settling: Settling::default(),
            refusals: Refusals::default(),
            lanes: Lanes::default(),
            pools: Pools::default(),
            command_credit: None,
            reports,
            reports_in,
            not_put_back,
            not_put_back_in,
            draining: false,
            up: 0,
            room_made: false,
            in_hand: None,
            snoozes: Snoozes::default(),
            last_host_fact: Time::UNIX_EPOCH,
            damaged: Vec::new(),
        };
        supervisor.restore()?;
        Ok(supervisor)
    }

    /// Works until asked to end. `published` tells how far the outbox has come.
    pub async fn run(
        mut self,
        mut published: watch::Receiver<Progress>,
        mut shutdown: watch::Receiver<Shutdown>,
    ) -> Result<(), SupervisorError> {
        // Before the subscriptions, so that they end first when the log fails: then what is in hand goes back by itself.
        let mut batch = VecDeque::with_capacity(MAX_TURN);
        let mut sources = self.subscribe().await?;
        self.begin().await?;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tagged = Vec::with_capacity(MAX_TURN);
        let mut drained_by: Option<Instant> = None;
        let mut hypervisor = self.rig.hypervisor.changes();
        loop {
            tokio::select! {
                biased;
                changed = shutdown.changed() => {
                    let asked = *shutdown.borrow_and_update();
                    // Whoever could ask us to end may be gone: the process is ending.
                    if asked == Shutdown::Now || changed.is_err() {
                        break;
                    }
                    if asked == Shutdown::Drain && drained_by.is_none() {
                        drained_by = Some(Instant::now() + self.settings.drain);
                        let mut turn = Turn::default();
                        self.drain(&mut turn);
                        self.commit(turn).await?;
                    }
                }
                _ = self.reports_in.recv_many(&mut tagged, MAX_TURN) => {
                    batch.extend(tagged.drain(..).map(Input::Report));
                }
                Some(input) = sources.next() => batch.push_back(input),
                Some(waiting) = self.not_put_back_in.recv() => batch.push_back(Input::StillHere(Box::new(waiting))),
                // On the broker in this process nothing is published, and nothing changes.
                changed = published.changed(), if !self.settings.shares_log => {
                    changed.map_err(|_| SupervisorError::OutboxEnded)?;
                    batch.push_back(Input::Published(published.borrow_and_update().clone()));
                }
                why = changed(&mut hypervisor) => batch.push_back(Input::HypervisorChanged(why)),
                _ = tick.tick() => batch.push_back(Input::Tick),
            }
            // Whatever else has come in shares the turn's disk flush.
            while batch.len() < MAX_TURN
                && let Some(Some(input)) = sources.next().now_or_never()
            {
                batch.push_back(input);
            }
            while batch.len() < MAX_TURN
                && let Ok(report) = self.reports_in.try_recv()
            {
                batch.push_back(Input::Report(report));
            }
            let mut turn = Turn::default();
            while let Some(input) = batch.pop_front() {
                if let Err(error) = self.handle(input, &mut turn) {
                    self.in_hand = Some(turn);
                    return Err(error);
                }
            }
            self.commit(turn).await?;
            if std::mem::take(&mut self.room_made) && !self.waiting.is_empty() {
                let mut turn = Turn::default();
                self.retry_waiting(&mut turn)?;
                self.commit(turn).await?;
            }
            let mut turn = Turn::default();
            self.refill(&mut turn);
            if !turn.is_empty() {
                self.commit(turn).await?;
            }
            // Drained by command, a host stays and watches its VMs; asked to end, it ends.
            if drained_by.is_some_and(|by| self.booting() == 0 && self.stock.is_empty() || Instant::now() >= by) {
                break;
            }
        }
        self.settle_last(&mut published).await;
        drop(sources);
        self.end().await
    }

    fn handle(&mut self, input: Input, turn: &mut Turn) -> Result<(), SupervisorError> {
        match input {
            Input::Job(delivery) => self.on_delivery(delivery, turn),
            Input::Command(delivery) => self.on_command(delivery, turn),
            Input::Report(tagged) => self.on_report(tagged, turn),
            Input::Published(progress) => {
                turn.settle.extend(self.settling.advance(progress));
                Ok(())
            }
            Input::HypervisorChanged(reason) => {
                let hypervisor = self.rig.hypervisor.describe();
                turn.host_fact(EventData::HostHypervisorChanged(HostHypervisorChanged { hypervisor, reason }));
                Ok(())
            }
            Input::StillHere(waiting) => {
                self.still_here(*waiting);
                Ok(())
            }
            Input::Tick => {
                // Another's write may have failed, of whom this host's log is the broker.
                self.log.writable()?;
                self.dismiss_outdated();
                turn.settle.extend(self.settling.expire(Instant::now()));
                self.tell_refusals(turn);
                self.settle_long(turn)?;
                self.retry_waiting(turn)
            }
        }
    }

    /// Takes nothing new: what waits goes back, what boots goes on.
    fn drain(&mut self, turn: &mut Turn) {
        if std::mem::replace(&mut self.draining, true) {
            return;
        }
        self.update_credit();
        for waiting in self.waiting.drain(..) {
            tokio::spawn(waiting.claim.held.ack.requeue());
        }
        self.dismiss_all(WarmGoneWhy::Draining);
        turn.host_fact(EventData::HostDraining(HostDraining { booting: self.booting(), running: self.up() }));
    }

    async fn end(mut self) -> Result<(), SupervisorError> {
        self.end_warm().await?;
        let mut turn = Turn::default();
        turn.host_fact(EventData::HostStopped(HostStopped { running: self.up() }));
        self.commit(turn).await
    }
}

/// Waits for the next change of the hypervisor; for ever where none can come.
async fn changed(hypervisor: &mut Option<watch::Receiver<Option<String>>>) -> String {
    if let Some(changes) = hypervisor {
        while changes.changed().await.is_ok() {
            if let Some(why) = changes.borrow_and_update().clone() {
                return why;
            }
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests;
