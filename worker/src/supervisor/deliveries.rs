//! Jobs as the broker delivers them: taken, recognised, put back or parked.

use stoker_schemas::command::{Begin, Command, Context, Rejection};
use stoker_schemas::decide::decide;
use stoker_schemas::event::Event;
use stoker_schemas::letter::{Work, work};
use stoker_schemas::next::{Next, next};
use stoker_schemas::retry::Jitter;
use stoker_schemas::seeded::{self, Bug};
use stoker_schemas::spec::Network;
use stoker_schemas::{JobId, JobSpec, JobState, VmId};
use tokio::time::Instant;

use super::admission::{Capacity, Full};
use super::books::{Claim, Held, Job, Live};
use super::turn::Turn;
use super::waiting::{Obstacle, Waiting};
use super::{Supervisor, SupervisorError};
use crate::boots::Booting;
use crate::counts::ATTEMPTS;
use crate::damaged;
use crate::log::LogError;
use crate::ports::broker::{BrokerError, Delivery, Parked};
use crate::ports::handle::Handle;

/// What an attempt gets of the host.
pub(super) struct Place {
    pub(super) need: Capacity,
    pub(super) address: Option<std::net::Ipv4Addr>,
    pub(super) boot: Option<Booting>,
    /// A VM that is up already.
    pub(super) warm: Option<VmId>,
}

impl Supervisor {
    pub(super) fn on_delivery(&mut self, delivery: Delivery, turn: &mut Turn) -> Result<(), SupervisorError> {
        match self.understand(&delivery) {
            Ok(understood) => self.arrived(understood(delivery), turn),
            Err(reason) => {
                self.park(delivery, reason);
                Ok(())
            }
        }
    }

    /// Reads a delivery. What cannot be read must not block the queue.
    fn understand(&self, delivery: &Delivery) -> Result<impl FnOnce(Delivery) -> Claim + use<>, String> {
        let Work { event, job, attempt, spec, enqueued_at } = work(&delivery.body, self.rig.clock.now())?;
        Ok(move |delivery: Delivery| Claim {
            job,
            attempt,
            held: Held { ack: delivery.ack, lane: spec.priority, since: Instant::now() },
            delivery: delivery.delivery_count,
            deferrals: delivery.deferrals,
            spec,
            enqueued_at,
            event,
            body: delivery.body,
            routing_key: delivery.routing_key,
            about: delivery.about,
        })
    }

    pub(super) fn park(&self, delivery: Delivery, reason: String) {
        let Delivery { routing_key, about, body, ack, .. } = delivery;
        self.park_parts(Parked { routing_key, reason, at: self.rig.clock.now(), about, body }, ack);
    }

    /// The job's own events here are damaged: nobody knows what it did. Its message goes to who looks after such.
    fn park_damaged(&self, claim: Claim, damage: &LogError) {
        let Claim { routing_key, about, body, held, .. } = claim;
        let reason = damaged::words(damage);
        self.park_parts(Parked { routing_key, reason, at: self.rig.clock.now(), about, body }, held.ack);
    }

    fn park_parts(&self, parked: Parked, ack: Handle) {
        let Parked { routing_key, reason, .. } = &parked;
        tracing::warn!(routing_key, reason, "message cannot be worked on, parked");
        let broker = self.broker.clone();
        tokio::spawn(async move {
            let settled = match broker.park(parked).await {
                Ok(()) => ack.ack().await,
                // Too large to be published again with its reason, or no room for it: the broker moves it by itself,
                // and keeps it until there is room.
                Err(BrokerError::Refused(_)) if !seeded::is_on(Bug::TooLargeRequeued) => ack.dead_letter().await,
                Err(_) => ack.requeue().await,
            };
            if let Err(error) = settled {
                tracing::debug!(%error, "parked delivery not settled, it comes again");
            }
        });
    }

    /// A job has come. Those that wait for the same things go first.
    fn arrived(&mut self, claim: Claim, turn: &mut Turn) -> Result<(), SupervisorError> {
        let Some(claim) = self.absorb(claim, turn) else {
            self.room_made = true;
            return Ok(());
        };
        if self.waiting.is_empty() || self.jobs.contains_key(&claim.job) {
            return self.consider(Waiting::new(claim), turn);
        }
        self.wait(Waiting::new(claim));
        self.room_made = true;
        Ok(())
    }

    /// Decides about one job: re-attach, settle, wait or begin.
    pub(super) fn consider(&mut self, mut waiting: Waiting, turn: &mut Turn) -> Result<(), SupervisorError> {
        if self.jobs.contains_key(&waiting.claim.job) && !seeded::is_on(Bug::SecondVm) {
            return self.reattach(waiting, turn);
        }
        let claim = &waiting.claim;
        let state = match waiting.state.take() {
            Some(state) => state,
            None => match self.load_for(claim, turn) {
                Ok(state) => state,
                Err(SupervisorError::Log(damage)) if damage.is_damage() => {
                    self.park_damaged(waiting.claim, &damage);
                    return Ok(());
                }
                Err(error) => return Err(error),
            },
        };
        if state.pending_cancel().is_some() {
            return self.conclude(state, Command::SettleCancel { attempt: claim.attempt }, waiting.claim, turn);
        }
        let now = self.rig.clock.now();
        let waited = self.waited(claim);
        let left = claim.time_to_live_left(waited).filter(|_| !seeded::is_on(Bug::TtlIgnored));
        if left.is_some_and(|left| left.is_zero()) {
            let expire = Command::Expire { spec: claim.spec.clone(), attempt: claim.attempt };
            return self.conclude(state, expire, waiting.claim, turn);
        }
        let snoozed = state.snooze(claim.attempt).and_then(|snooze| {
            let left = self.snoozes.left(claim.job, snooze, now)?;
            Some(Obstacle::Snoozed { until: snooze.value.until, by: snooze.value.by.clone(), left })
        });
        let obstacle = match snoozed {
            Some(obstacle) => obstacle,
            None if !claim.spec.fits_labels(&self.settings.labels) => Obstacle::Labels,
            None => return self.admit(state, waiting, turn),
        };
        self.obstructed(Some(state), waiting, &obstacle, false, turn)
    }

    /// The job is on this host. The same attempt again: its end acknowledges the message. A later one
    /// (asked for by hand while the VM is being removed) waits until that is gone.
    fn reattach(&mut self, waiting: Waiting, turn: &mut Turn) -> Result<(), SupervisorError> {
        let claim = &waiting.claim;
        let id = claim.job;
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        let epoch = job.live.epoch;
        if next(&job.state, epoch) == Next::Settled && !seeded::is_on(Bug::AttachedToEnded) {
            // It ended in this very turn and is forgotten with it: who is delivered now is looked at after that.
            self.wait(Waiting { state: None, ..waiting });
            return Ok(());
        }
        let mut state = job.state.clone();
        state.apply(&claim.event);
        if claim.attempt > epoch.attempt && (!job.live.is_up || state.is_overtaken(epoch)) {
            return self.obstructed(None, waiting, &Obstacle::EarlierVm, false, turn);
        }
        let held = waiting.claim.held;
        let owns_itself = job.attempt().is_some_and(|a| a.message_settled.is_some());
        if waiting.claim.attempt == epoch.attempt && !job.live.is_up && !owns_itself {
            // One message stands for the job. The one before it is a duplicate, or was delivered over a connection that
            // is gone: then acknowledging it changes nothing.
            match job.ack.replace(held) {
                Some(earlier) if seeded::is_on(Bug::DuplicateReplaces) => drop(earlier),
                Some(earlier) => turn.settle_after(id, earlier.ack),
                None => {}
            }
        } else {
            turn.settle_after(id, held.ack);
        }
        Ok(())
    }

    fn admit(&mut self, state: JobState, waiting: Waiting, turn: &mut Turn) -> Result<(), SupervisorError> {
        let spec = &waiting.claim.spec;
        if self.draining || self.pools.is_paused(&spec.pool) {
            tokio::spawn(waiting.claim.held.ack.requeue());
            return Ok(());
        }
        if self.pool_room(&spec.pool) == Some(0) {
            let obstacle = Obstacle::PoolLimit(spec.pool.clone());
            return self.obstructed(Some(state), waiting, &obstacle, false, turn);
        }
        if let Some(place) = self.warm_place(spec) {
            return self.begin_attempt(state, waiting, place, turn);
        }
        match self.place(spec) {
            Ok(place) => self.begin_attempt(state, waiting, place, turn),
            Err((obstacle, warm)) => self.obstructed(Some(state), waiting, &obstacle, warm, turn),
        }
    }

    /// Takes what a VM needs: room, a place to boot in, an address. All of it, or nothing; then what is missing, and
    /// whether warm VMs make room for it.
    fn place(&mut self, spec: &JobSpec) -> Result<Place, (Obstacle, bool)> {
        let need = Capacity::of(spec);
        match self.books.take(need) {
            Ok(()) => {}
            Err(Full::Ever(total)) => return Err((Obstacle::TooLarge { total, need }, false)),
            Err(Full::ForNow(free)) => return Err((Obstacle::Full { free, need }, self.warm_makes_room(spec, false))),
        }
        let boot = match self.boot_place(spec) {
            Ok(boot) => boot,
            Err(comes) => {
                self.books.release(need);
                return Err((Obstacle::Booting(self.boots.most()), comes));
            }
        };
        let address = match spec.network {
            Network::Static(own) => {
                self.addresses.take_this(own.address).map_err(|_| Obstacle::OwnAddress(own.address))
            }
            Network::Dhcp => self.addresses.take().map_err(|_| Obstacle::NoAddress),
        };
        match address {
            Ok(address) => Ok(Place { need, address, boot: Some(boot), warm: None }),
            Err(obstacle) => {
                self.books.release(need);
                let warm = obstacle == Obstacle::NoAddress && self.warm_makes_room(spec, true);
                Err((obstacle, warm))
            }
        }
    }

    fn begin_attempt(
        &mut self,
        state: JobState,
        waiting: Waiting,
        place: Place,
        turn: &mut Turn,
    ) -> Result<(), SupervisorError> {
        let Waiting { claim, again, .. } = waiting;
        // What others wrote while it waited (this process's own control plane does) is not in its state.
        let mut state = if again { self.load_for(&claim, turn)? } else { state };
        let Place { need, address, boot, warm } = place;
        let epoch = state.epoch_for(claim.attempt, claim.delivery);
        let (pool, high) = (claim.spec.pool.clone(), claim.is_high());
        let begin = Begin {
            epoch,
            host: self.settings.host.clone(),
            vm: warm.unwrap_or_else(|| VmId::derive(claim.job, epoch, &self.settings.host)),
            driver: self.rig.hypervisor.driver(),
            address,
            spec: claim.spec.clone(),
            enqueued_at: claim.enqueued_at,
        };
        if let Err(rejection) = self.record(&mut state, Command::Begin(begin), turn)? {
            tracing::info!(job = %claim.job, %rejection, "delivery not started");
            // A warm VM goes on waiting.
            if warm.is_none() {
                self.books.release(need);
                if let Some(address) = address {
                    self.addresses.release(address);
                }
            }
            if rejection == Rejection::CancelPending {
                return self.conclude(state, Command::SettleCancel { attempt: claim.attempt }, claim, turn);
            }
            turn.settle_after(claim.job, claim.held.ack);
            return Ok(());
        }
        self.note_begin(high);
        self.snoozes.forget(claim.job);
        let warm = warm.and_then(|vm| self.take_warm(vm, claim.job, turn));
        let live = Live { epoch, pool, running: None, warm, need, address, boot, is_up: false, lost: None };
        self.jobs.insert(claim.job, Job { state, live, ack: Some(claim.held) });
        turn.touch(claim.job);
        Ok(())
    }

    /// Writes what follows from a command, into the state and the turn.
    pub(super) fn record(
        &mut self,
        state: &mut JobState,
        command: Command,
        turn: &mut Turn,
    ) -> Result<Result<(), Rejection>, SupervisorError> {
        let now = self.rig.clock.now();
        let context = Context { now, jitter: Jitter::from_random(self.jitter.u32(..)) };
        let facts = match decide(state, command, context) {
            Ok(facts) => facts,
            Err(rejection) => return Ok(Err(rejection)),
        };
        for (epoch, data) in facts {
            state.apply_data(epoch, now, &data);
            ATTEMPTS.add(&data, epoch, state);
            let event = Event::about_job(state.id, epoch, &self.source, now, data);
            self.write(turn, &event, self.index_of(state))?;
        }
        Ok(Ok(()))
    }

    /// A command that ends the claim without an attempt.
    fn conclude(
        &mut self,
        mut state: JobState,
        command: Command,
        claim: Claim,
        turn: &mut Turn,
    ) -> Result<(), SupervisorError> {
        if let Err(rejection) = self.record(&mut state, command, turn)? {
            tracing::info!(job = %claim.job, %rejection, "nothing to conclude");
        }
        turn.settle_after(claim.job, claim.held.ack);
        Ok(())
    }

    /// A job's state from the log and from what this turn is about to write there; `None` when this host knows
    /// nothing of it.
    pub(super) fn load(&self, id: JobId, turn: &Turn) -> Result<Option<JobState>, SupervisorError> {
        self.load_beyond(id, &[], turn)
    }

    /// What counts for the decision about a message: what is known here, and what the message says, which is
    /// another's to write down.
    fn load_for(&self, claim: &Claim, turn: &Turn) -> Result<JobState, SupervisorError> {
        let known = self.load_beyond(claim.job, &claim.body, turn)?;
        let mut state = known.unwrap_or_else(|| JobState::new(claim.job));
        state.apply(&claim.event);
        Ok(state)
    }

    /// As `load`, without the event that the caller has in hand and applies itself: on the broker in
    /// this process it is the job's only one, and reading it again costs a fifth of a turn's work.
    fn load_beyond(&self, id: JobId, known: &[u8], turn: &Turn) -> Result<Option<JobState>, SupervisorError> {
        let mut state: Option<JobState> = None;
        let records = self.log.read_stream(id.0)?;
        let written = records.iter().map(|record| (record.position, &record.payload));
        let head = self.log.durable();
        let fresh = if seeded::is_on(Bug::TurnNotSeen) { &[] } else { turn.written(id.0) };
        for (position, payload) in written.chain(fresh.iter().map(|payload| (head + 1, payload))) {
            if payload == known {
                continue;
            }
            let event = Event::decode(payload, self.rig.clock.now())
                .map_err(|e| SupervisorError::Corrupt { position, cause: e.to_string() })?;
            state.get_or_insert_with(|| JobState::new(id)).apply(&event);
        }
        Ok(state)
    }
}
