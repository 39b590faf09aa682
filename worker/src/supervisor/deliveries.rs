//! Jobs as the broker delivers them: taken, recognised, put back or parked.

use stoker_schemas::command::{Begin, Command, Context};
use stoker_schemas::decide::decide;
use stoker_schemas::event::Event;
use stoker_schemas::letter::{Work, work};
use stoker_schemas::limits::MAX_RETRY_DELAY_MS;
use stoker_schemas::next::{Next, next};
use stoker_schemas::retry::Jitter;
use stoker_schemas::spec::Network;
use stoker_schemas::{JobId, JobState, VmId};
use tokio::time::Instant;

use super::admission::{Capacity, Full};
use super::books::{Claim, Job, Live};
use super::turn::Turn;
use super::{Supervisor, SupervisorError};
use crate::counts::ATTEMPTS;
use crate::ports::broker::{BrokerError, Delivery, Parked};

/// Wait before a job that this host cannot take is offered again.
const DEFER_MS: u64 = 1_000;
/// Wait before a job that no host of its pool may ever take is offered again.
const MISFIT_DEFER_MS: u64 = 15_000;

/// What an attempt gets of the host.
pub(super) struct Place {
    pub(super) need: Capacity,
    pub(super) address: Option<std::net::Ipv4Addr>,
    /// A VM that is up already.
    pub(super) warm: Option<VmId>,
}

impl Supervisor {
    pub(super) fn on_delivery(&mut self, delivery: Delivery, turn: &mut Turn) -> Result<(), SupervisorError> {
        match self.understand(&delivery) {
            Ok(understood) => self.claim(understood(delivery), turn),
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
            delivery: delivery.delivery_count,
            spec,
            enqueued_at,
            event,
            body: delivery.body,
            ack: delivery.ack,
            since: Instant::now(),
        })
    }

    pub(super) fn park(&self, delivery: Delivery, reason: String) {
        tracing::warn!(routing_key = delivery.routing_key, reason, "message cannot be worked on, parked");
        let (broker, at) = (self.broker.clone(), self.rig.clock.now());
        tokio::spawn(async move {
            let Delivery { routing_key, about, body, ack, .. } = delivery;
            let settled = match broker.park(Parked { routing_key, reason, at, about, body }).await {
                Ok(()) => ack.ack().await,
                // Too large to be published again with its reason, or no room for it: the broker moves it by itself,
                // and keeps it until there is room.
                Err(BrokerError::Refused(_)) => ack.dead_letter().await,
                Err(_) => ack.requeue().await,
            };
            if let Err(error) = settled {
                tracing::debug!(%error, "parked delivery not settled, it comes again");
            }
        });
    }

    /// Decides about one claim: re-attach, settle, wait or begin.
    pub(super) fn claim(&mut self, claim: Claim, turn: &mut Turn) -> Result<(), SupervisorError> {
        if self.jobs.contains_key(&claim.job) {
            self.reattach(claim, turn);
            return Ok(());
        }
        let mut state = self.load_beyond(claim.job, &claim.body)?.unwrap_or_else(|| JobState::new(claim.job));
        // What the message says counts for the decision; it is somebody else's to write down.
        state.apply(&claim.event);
        if state.pending_cancel().is_some() {
            return self.conclude(state, Command::SettleCancel { attempt: claim.attempt }, claim, turn);
        }
        let now = self.rig.clock.now();
        let waited = self.waited(&claim);
        if claim.attempt == 1 && claim.spec.ttl_s.is_some_and(|ttl| waited.as_secs() >= ttl) {
            let expire = Command::Expire { spec: claim.spec.clone(), attempt: claim.attempt };
            return self.conclude(state, expire, claim, turn);
        }
        if let Some(snooze) = state.snooze(claim.attempt).filter(|snooze| snooze.value.until > now) {
            let wait = snooze.value.until.since(now).as_millis().max(1);
            let reason = format!("snoozed until {} by {}", snooze.value.until, snooze.value.by);
            // Longer than a delay queue holds it: it comes again in between.
            let delay_ms = u64::try_from(wait).unwrap_or(u64::MAX).min(MAX_RETRY_DELAY_MS);
            return self.defer(state, claim, delay_ms, reason, turn);
        }
        if !claim.spec.fits_labels(&self.settings.labels) {
            let reason = format!("host {} lacks the labels that the job requires", self.settings.host);
            return self.defer(state, claim, MISFIT_DEFER_MS, reason, turn);
        }
        self.admit(state, claim, turn)
    }

    /// The job is on this host. The same attempt again: its end acknowledges the message. A later one
    /// (asked for by hand while the VM is being removed) waits until that is gone.
    fn reattach(&mut self, claim: Claim, turn: &mut Turn) {
        let Some(job) = self.jobs.get_mut(&claim.job) else { return };
        let epoch = job.live.epoch;
        if next(&job.state, epoch) == Next::Settled {
            // It ended in this very turn and is forgotten with it: who is delivered now is looked at after that.
            self.wait(claim);
            return;
        }
        let mut state = job.state.clone();
        state.apply(&claim.event);
        if claim.attempt > epoch.attempt && (!job.live.is_up || state.is_overtaken(epoch)) {
            self.wait(claim);
        } else if claim.attempt == epoch.attempt && !job.live.is_up {
            // One message stands for the job. The one before it is a duplicate, or was delivered over a connection that
            // is gone: then acknowledging it changes nothing.
            if let Some(earlier) = job.ack.replace(claim.ack) {
                turn.settle_after(claim.job, earlier);
            }
        } else {
            turn.settle_after(claim.job, claim.ack);
        }
    }

    fn admit(&mut self, state: JobState, claim: Claim, turn: &mut Turn) -> Result<(), SupervisorError> {
        if self.draining || self.pools.is_paused(&claim.spec.pool) {
            tokio::spawn(claim.ack.requeue());
            return Ok(());
        }
        if self.pool_room(&claim.spec.pool) == Some(0) {
            if claim.since.elapsed() < self.settings.hold {
                self.wait(claim);
                return Ok(());
            }
            let reason = format!("host {} has as many VMs of pool {} as it may", self.settings.host, claim.spec.pool);
            return self.defer(state, claim, DEFER_MS, reason, turn);
        }
        if let Some(place) = self.warm_place(&claim.spec) {
            return self.begin_attempt(state, claim, place, turn);
        }
        let need = Capacity::of(&claim.spec);
        match self.books.take(need) {
            Ok(()) => {}
            Err(Full::Ever(total)) => {
                let reason = format!("host {} has {total} in all; the job needs {need}", self.settings.host);
                return self.defer(state, claim, MISFIT_DEFER_MS, reason, turn);
            }
            Err(Full::ForNow(_)) if self.warm_makes_room(&claim.spec, false) => {
                self.wait(claim);
                return Ok(());
            }
            Err(Full::ForNow(free)) if claim.since.elapsed() >= self.settings.hold => {
                let reason = format!("host {} is full: {free} free, the job needs {need}", self.settings.host);
                return self.defer(state, claim, DEFER_MS, reason, turn);
            }
            Err(Full::ForNow(_)) => {
                self.wait(claim);
                return Ok(());
            }
        }
        let address = match claim.spec.network {
            Network::Static(own) => self.addresses.take_this(own.address),
            Network::Dhcp => self.addresses.take(),
        };
        match address {
            Ok(address) => self.begin_attempt(state, claim, Place { need, address, warm: None }, turn),
            Err(_) => {
                self.books.release(need);
                let freed = claim.spec.network == Network::Dhcp && self.warm_makes_room(&claim.spec, true);
                if freed || claim.since.elapsed() < self.settings.hold {
                    self.wait(claim);
                    return Ok(());
                }
                let reason = match claim.spec.network {
                    Network::Static(own) => {
                        format!("host {} has another VM with address {}", self.settings.host, own.address)
                    }
                    Network::Dhcp => format!("host {} has no free address", self.settings.host),
                };
                self.defer(state, claim, DEFER_MS, reason, turn)
            }
        }
    }

    fn begin_attempt(
        &mut self,
        mut state: JobState,
        claim: Claim,
        place: Place,
        turn: &mut Turn,
    ) -> Result<(), SupervisorError> {
        let Place { need, address, warm } = place;
        let epoch = state.epoch_for(claim.attempt, claim.delivery);
        let pool = claim.spec.pool.clone();
        let begin = Begin {
            epoch,
            host: self.settings.host.clone(),
            vm: warm.unwrap_or_else(|| VmId::derive(claim.job, epoch, &self.settings.host)),
            driver: self.rig.hypervisor.driver(),
            address,
            spec: claim.spec,
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
            turn.settle_after(claim.job, claim.ack);
            return Ok(());
        }
        let warm = warm.and_then(|vm| self.take_warm(vm, claim.job, turn));
        let live = Live { epoch, pool, running: None, warm, need, address, is_up: false, lost: None };
        self.jobs.insert(claim.job, Job { state, live, ack: Some(claim.ack) });
        turn.touch(claim.job);
        Ok(())
    }

    /// Writes what follows from a command, into the state and the turn.
    pub(super) fn record(
        &mut self,
        state: &mut JobState,
        command: Command,
        turn: &mut Turn,
    ) -> Result<Result<(), stoker_schemas::command::Rejection>, SupervisorError> {
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
        turn.settle_after(claim.job, claim.ack);
        Ok(())
    }

    fn defer(
        &mut self,
        state: JobState,
        claim: Claim,
        delay_ms: u64,
        reason: String,
        turn: &mut Turn,
    ) -> Result<(), SupervisorError> {
        let Claim { attempt, enqueued_at, .. } = claim;
        let command = Command::Defer { attempt, delay_ms, reason, spec: claim.spec.clone(), enqueued_at };
        self.conclude(state, command, claim, turn)
    }

    fn wait(&mut self, claim: Claim) {
        if claim.is_high() {
            let after = self.waiting.iter().take_while(|c| c.is_high()).count();
            self.waiting.insert(after, claim);
        } else {
            self.waiting.push_back(claim);
        }
    }

    /// Looks again at what did not fit. Bounded by the credit: no more can be waiting.
    pub(super) fn retry_waiting(&mut self, turn: &mut Turn) -> Result<(), SupervisorError> {
        for claim in std::mem::take(&mut self.waiting) {
            self.claim(claim, turn)?;
        }
        Ok(())
    }

    /// A job's state from the log; `None` when this host knows nothing of it.
    pub(super) fn load(&self, id: JobId) -> Result<Option<JobState>, SupervisorError> {
        self.load_beyond(id, &[])
    }

    /// As `load`, without the event that the caller has in hand and applies itself: on the broker in
    /// this process it is the job's only one, and reading it again costs a fifth of a turn's work.
    fn load_beyond(&self, id: JobId, known: &[u8]) -> Result<Option<JobState>, SupervisorError> {
        let mut state: Option<JobState> = None;
        for record in self.log.read_stream(id.0)? {
            if record.payload == known {
                continue;
            }
            let event = Event::decode(&record.payload, self.rig.clock.now())
                .map_err(|e| SupervisorError::Corrupt { position: record.position, cause: e.to_string() })?;
            state.get_or_insert_with(|| JobState::new(id)).apply(&event);
        }
        Ok(state)
    }
}
