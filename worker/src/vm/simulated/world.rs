//! The world that simulated guests live in. It outlives workers: a test keeps it while it drops
//! and restarts everything else, as hosts keep running VMs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use stoker_schemas::VmId;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use super::{
    guest::Guest,
    script::{Dhcp, Script},
};
use crate::ports::{net::NetSignal, vm::VmExit};

/// DHCP signals kept for a reader; a guest sends two.
const SIGNALS: usize = 8;

/// Shared by [`super::Simulated`], [`super::SimulatedNetwork`] and [`super::SimulatedProber`].
/// Clones are the same world.
#[derive(Debug, Clone, Default)]
pub struct SimWorld(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    attached: Notify,
    clock: Arc<WorldClock>,
}

/// Time as the world counts it. It goes on where it was when another runtime, with another paused clock, looks after
/// the world: guests live longer than workers.
#[derive(Debug)]
pub struct WorldClock(Mutex<(Instant, Duration)>);

impl Default for WorldClock {
    fn default() -> Self {
        Self(Mutex::new((Instant::now(), Duration::ZERO)))
    }
}

impl WorldClock {
    fn lock(&self) -> MutexGuard<'_, (Instant, Duration)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since the world began.
    pub fn now(&self) -> Duration {
        let (base, elapsed) = *self.lock();
        elapsed + base.elapsed()
    }

    /// When that will be, by the clock of the runtime that asks; now for what is past.
    pub fn instant(&self, at: Duration) -> Instant {
        Instant::now() + at.saturating_sub(self.now())
    }
}

#[derive(Debug, Default)]
struct State {
    guests: BTreeMap<VmId, Arc<Guest>>,
    cards: BTreeMap<VmId, Card>,
    by_agent: BTreeMap<SocketAddr, VmId>,
    stats: SimStats,
    /// How long removing what a VM has left takes.
    removal: Duration,
    /// VMs that were ended from outside, not by themselves.
    stopped: BTreeSet<VmId>,
    /// All comings and goings, where a test asked for them.
    changes: Option<Vec<SimChange>>,
}

impl State {
    fn note(&mut self, change: SimChange) {
        if let Some(changes) = &mut self.changes {
            changes.push(change);
        }
    }
}

/// A VM began to run, or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimChange {
    /// It runs from now on.
    Up(VmId),
    /// It no longer runs.
    Ended(VmId),
}

#[derive(Debug)]
struct Card {
    agent: SocketAddr,
    signals: mpsc::Sender<NetSignal>,
    /// Tells waiting probes that the guest behind this card came or went.
    changed: Arc<Notify>,
}

/// What has happened so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SimStats {
    /// Boots told to run.
    pub boots: u64,
    /// Boots refused.
    pub refused: u64,
    /// The most guests that lived at once.
    pub peak: usize,
    /// Cards attached with an address that another card had; must stay 0.
    pub address_conflicts: u64,
}

impl SimWorld {
    /// An empty world.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty world that remembers when each VM began to run and ended, which needs memory without bound. (Tests.)
    pub fn remembering() -> Self {
        let world = Self::default();
        world.lock().changes = Some(Vec::new());
        world
    }

    /// What it remembers, in order; nothing in a world that does not.
    pub fn changes(&self) -> Vec<SimChange> {
        self.lock().changes.clone().unwrap_or_default()
    }

    /// From now on the clock of the runtime that asks counts; the world is this old. (Simulation: a worker was
    /// restarted on a runtime of its own.)
    pub fn continue_at(&self, age: Duration) {
        *self.0.clock.lock() = (Instant::now(), age);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has happened so far.
    pub fn stats(&self) -> SimStats {
        self.lock().stats
    }

    /// VMs that run now, sorted.
    pub fn living(&self) -> Vec<VmId> {
        let mut living: Vec<VmId> =
            self.lock().guests.values().filter(|guest| guest.end().is_none()).map(|guest| guest.vm).collect();
        living.sort_unstable();
        living
    }

    /// How many VMs run now.
    pub fn running(&self) -> usize {
        self.lock().guests.values().filter(|guest| guest.end().is_none()).count()
    }

    /// Ends every guest at once, as when the host loses power under its VMs.
    pub fn kill_all(&self) {
        let guests: Vec<_> = self.lock().guests.values().cloned().collect();
        for guest in guests {
            guest.finish(VmExit { code: None, signal: Some(9), reason: "killed by signal 9 (SIGKILL)".to_owned() });
            self.bury(&guest);
        }
    }

    /// VMs that have a network card, sorted.
    pub fn attached(&self) -> Vec<VmId> {
        let mut vms: Vec<VmId> = self.lock().cards.keys().copied().collect();
        vms.sort_unstable();
        vms
    }

    /// From now on removing what a VM has left takes this long.
    pub fn set_removal(&self, takes: Duration) {
        self.lock().removal = takes;
    }

    pub(super) fn removal(&self) -> Duration {
        self.lock().removal
    }

    /// Whether a VM still ran when it was stopped.
    pub fn was_stopped(&self, vm: VmId) -> bool {
        self.lock().stopped.contains(&vm)
    }

    pub(super) fn note_stop(&self, vm: VmId) {
        self.lock().stopped.insert(vm);
    }

    pub(super) fn has_card(&self, vm: VmId) -> bool {
        self.lock().cards.contains_key(&vm)
    }

    pub(super) fn note_refusal(&self) {
        self.lock().stats.refused += 1;
    }

    /// Starts a guest; `None` when this VM runs already.
    pub(super) fn boot(&self, vm: VmId, script: Script) -> Option<Arc<Guest>> {
        let mut state = self.lock();
        if state.guests.get(&vm).is_some_and(|guest| guest.end().is_none()) {
            return None;
        }
        state.stats.boots += 1;
        let guest = Arc::new(Guest::new(vm, script, state.stats.boots, Arc::clone(&self.0.clock)));
        state.guests.insert(vm, Arc::clone(&guest));
        state.note(SimChange::Up(vm));
        state.stats.peak = state.stats.peak.max(state.guests.len());
        if let Some(card) = state.cards.get(&vm) {
            card.changed.notify_waiters();
            send_dhcp(&guest, card);
        }
        Some(guest)
    }

    pub(super) fn guest(&self, vm: VmId) -> Option<Arc<Guest>> {
        self.lock().guests.get(&vm).cloned()
    }

    /// Forgets an ended guest.
    pub(super) fn bury(&self, guest: &Guest) {
        let mut state = self.lock();
        if state.guests.get(&guest.vm).is_some_and(|known| known.serial == guest.serial) {
            state.guests.remove(&guest.vm);
            state.note(SimChange::Ended(guest.vm));
        }
        if let Some(card) = state.cards.get(&guest.vm) {
            card.changed.notify_waiters();
        }
    }

    /// Gives a VM a card, replacing the one it has. A running guest's lease is told again, as a
    /// DHCP server's lease file would.
    pub(super) fn attach(&self, vm: VmId, agent: SocketAddr) -> mpsc::Receiver<NetSignal> {
        let (signals, receiver) = mpsc::channel(SIGNALS);
        let card = Card { agent, signals, changed: Arc::new(Notify::new()) };
        let mut state = self.lock();
        if let Some(guest) = state.guests.get(&vm) {
            send_dhcp(guest, &card);
        }
        if let Some(old) = state.cards.insert(vm, card) {
            state.by_agent.remove(&old.agent);
            old.changed.notify_waiters();
        }
        if state.by_agent.insert(agent, vm).is_some_and(|other| other != vm) {
            state.stats.address_conflicts += 1;
        }
        drop(state);
        self.0.attached.notify_waiters();
        receiver
    }

    pub(super) fn detach(&self, vm: VmId) {
        let mut state = self.lock();
        if let Some(card) = state.cards.remove(&vm) {
            if state.by_agent.get(&card.agent) == Some(&vm) {
                state.by_agent.remove(&card.agent);
            }
            card.changed.notify_waiters();
        }
    }

    /// Who would answer at this address, and what to wait on for that to change.
    pub(super) fn at(&self, agent: SocketAddr) -> Option<(Option<Arc<Guest>>, Arc<Notify>)> {
        let state = self.lock();
        let vm = state.by_agent.get(&agent)?;
        let card = state.cards.get(vm)?;
        Some((state.guests.get(vm).cloned(), Arc::clone(&card.changed)))
    }

    /// Woken when any card is attached.
    pub(super) fn any_attached(&self) -> &Notify {
        &self.0.attached
    }
}

/// Sends what the DHCP server would see: at once where no time has to pass, which is the common
/// case and costs no task.
fn send_dhcp(guest: &Arc<Guest>, card: &Card) {
    if guest.script.dhcp == Dhcp::NoClient {
        return;
    }
    let address = match card.agent {
        SocketAddr::V4(agent) => *agent.ip(),
        SocketAddr::V6(_) => return,
    };
    // A full or closed channel means nobody reads: then nothing is lost.
    let _ = card.signals.try_send(NetSignal::Discover);
    match guest.script.dhcp {
        Dhcp::Lease(after) if guest.booted + after <= guest.clock.now() => {
            let _ = card.signals.try_send(NetSignal::Ack(address));
        }
        Dhcp::Lease(after) => {
            let (guest, signals) = (Arc::clone(guest), card.signals.clone());
            tokio::spawn(async move {
                tokio::select! {
                    biased;
                    () = tokio::time::sleep_until(guest.clock.instant(guest.booted + after)) => {
                        let _ = signals.try_send(NetSignal::Ack(address));
                    }
                    _ = guest.wait() => {}
                    () = signals.closed() => {}
                }
            });
        }
        Dhcp::Refused => {
            let _ = card.signals.try_send(NetSignal::Refused("no address available".to_owned()));
        }
        Dhcp::Silent | Dhcp::NoClient => {}
    }
}
