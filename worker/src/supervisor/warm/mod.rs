//! VMs that are up before their job comes: booted while nothing else wants to, handed over in
//! milliseconds, given up as soon as a job needs their place.
//!
//! ```text
//!   warm.started -> boots like any try -> warm.ready -> warm.taken + attempt.started (the same VM)
//!                                     \-> warm.gone: failed, evicted, outdated, draining
//! ```
//!
//! They take room and addresses from the same books as jobs do. A restarted worker does not take
//! them over: the reaper removes them, and it says so.

mod stock;

use std::sync::Arc;

use stoker_schemas::event::{AttemptReady, EventData, WarmGone, WarmGoneWhy, WarmReady, WarmStarted, WarmTaken};
use stoker_schemas::retry::Jitter;
use stoker_schemas::{JobId, JobSpec, VmId};
use tokio::time::{Instant, timeout_at};

pub(super) use stock::Stock;
pub use stock::Warm;
use stock::{Stage, WarmVm};

use super::admission::Capacity;
use super::deliveries::Place;
use super::turn::Turn;
use super::{Supervisor, SupervisorError};
use crate::attempt::{Order, Plan, Report, Running, Whose};
use crate::boots::Booting;
use crate::images::Image;

/// How many boot at once: jobs of their own come first.
const REFILL_AT_ONCE: u32 = 2;
/// How long the last ones may take to go when the worker ends; none takes more than a kill.
const LAST_GO: std::time::Duration = std::time::Duration::from_secs(5);

impl Supervisor {
    /// Boots what lacks, as far as there is room that no job waits for.
    pub(super) fn refill(&mut self, turn: &mut Turn) {
        if self.stock.is_unused() || self.draining || !self.waiting.is_empty() {
            return;
        }
        let now = self.rig.clock.now();
        while self.stock.booting() < REFILL_AT_ONCE {
            let Some(boot) = self.boots.try_begin() else { return };
            let lacking = self.stock.lacking(now);
            let Some((kind, spec, image, need)) = lacking.into_iter().find_map(|kind| self.take_room(kind)) else {
                return;
            };
            let Ok(address) = self.addresses.take() else {
                self.books.release(need);
                return;
            };
            self.warm_made += 1;
            let vm = VmId::warm(&self.settings.host, self.begun_at, self.warm_made);
            let JobSpec { image: name, vcpus, memory_mib, .. } = spec.clone();
            let wanted = self.stock.wanted(kind).map_or(0, |wanted| wanted.count);
            let started = WarmStarted { vm, image: name, vcpus, memory_mib, address, wanted };
            turn.host_fact(EventData::WarmStarted(started));
            let (stage, boot, running, started_at) = (Stage::Booting, Some(boot), None, now);
            self.stock.add(WarmVm { vm, kind, spec, need, address, image, started_at, stage, boot, running });
            turn.start_warm(vm);
        }
    }

    /// What one more of this kind is, with room for it; `None` if there is no room.
    fn take_room(&mut self, kind: usize) -> Option<(usize, JobSpec, Option<Arc<Image>>, Capacity)> {
        let mut spec = self.stock.wanted(kind)?.spec.clone();
        let need = Capacity::of(&spec);
        self.books.take(need).ok()?;
        let image = self.rig.images.load(&spec.image).ok();
        if let Some(image) = &image {
            spec.readiness.port = image.manifest.agent_port;
        }
        Some((kind, spec, image, need))
    }

    /// A place to boot in; else whether one comes soon from warm VMs: one that the job can have is booting, or one
    /// that it cannot have is going. Jobs come first.
    pub(super) fn boot_place(&mut self, job: &JobSpec) -> Result<Booting, bool> {
        if let Some(place) = self.boots.try_begin() {
            return Ok(place);
        }
        if self.stock.comes_for(job) || self.stock.gives_place_up() {
            return Err(true);
        }
        let youngest = self.stock.youngest_booting();
        if let Some(vm) = youngest {
            self.dismiss(vm, WarmGoneWhy::Evicted);
        }
        Err(youngest.is_some())
    }

    /// Its first fact is on disk.
    pub(super) fn start_warm(&mut self, vm: VmId) {
        let Some(warm) = self.stock.get_mut(vm) else { return };
        let (spec, address, started_at) = (warm.spec.clone(), warm.address, warm.started_at);
        let plan = Plan { whose: Whose::Nobody, vm, spec, address, started_at };
        let running = Running::start_warm(self.rig.clone(), plan, self.reports.clone());
        if matches!(warm.stage, Stage::Going(..)) {
            // Ordered to go before it began.
            running.order(Order::Remove(WITHOUT_GRACE));
        }
        warm.running = Some(running);
    }

    /// A warm VM for this job, with the room that it has already.
    pub(super) fn warm_place(&mut self, job: &JobSpec) -> Option<Place> {
        if self.stock.is_unused() {
            return None;
        }
        self.dismiss_outdated();
        let warm = self.stock.ready_for(job)?;
        Some(Place { need: warm.need, address: warm.address, boot: None, warm: Some(warm.vm) })
    }

    /// The job's from now on. What it takes of the host, it goes on taking.
    pub(super) fn take_warm(&mut self, vm: VmId, job: JobId, turn: &mut Turn) -> Option<Running> {
        let running = self.stock.remove(vm)?.running;
        turn.host_fact(EventData::WarmTaken(WarmTaken { vm, job }));
        running
    }

    /// Whether what the job lacks comes soon from warm VMs: one that it can have is booting, or some
    /// are going to make room.
    pub(super) fn warm_makes_room(&mut self, job: &JobSpec, address: bool) -> bool {
        if self.stock.comes_for(job) {
            return true;
        }
        let victims = self.stock.victims(Capacity::of(job), self.books.free(), address);
        for vm in victims.iter().flatten() {
            self.dismiss(*vm, WarmGoneWhy::Evicted);
        }
        victims.is_some()
    }

    /// Those whose image is not what it was.
    pub(super) fn dismiss_outdated(&mut self) {
        for kind in 0..self.stock.kinds() {
            let Some(wanted) = self.stock.wanted(kind) else { continue };
            let now = self.rig.images.load(&wanted.spec.image).ok();
            for vm in self.stock.outdated(kind, now.as_deref()) {
                self.dismiss(vm, WarmGoneWhy::Outdated);
            }
        }
    }

    pub(super) fn dismiss_all(&mut self, why: WarmGoneWhy) {
        for vm in self.stock.ids() {
            self.dismiss(vm, why);
        }
    }

    fn dismiss(&mut self, vm: VmId, why: WarmGoneWhy) {
        let Some(warm) = self.stock.get_mut(vm) else { return };
        if matches!(warm.stage, Stage::Going(..)) {
            return;
        }
        warm.stage = Stage::Going(why, None);
        if let Some(running) = &warm.running {
            running.order(Order::Remove(WITHOUT_GRACE));
        }
    }

    pub(super) fn on_warm_report(&mut self, vm: VmId, report: Report, turn: &mut Turn) {
        match report {
            Report::Ready(proof) => self.warm_is_ready(vm, &proof, turn),
            Report::Failed { diagnosis, .. } => {
                let Some(warm) = self.stock.get_mut(vm) else { return };
                if let (Stage::Booting | Stage::Ready, Some(running)) = (&warm.stage, &warm.running) {
                    let kind = warm.kind;
                    running.order(Order::Remove(WITHOUT_GRACE));
                    let summary = diagnosis.summary.clone();
                    warm.stage = Stage::Going(WarmGoneWhy::Failed, Some(diagnosis));
                    let jitter = Jitter::from_random(self.jitter.u32(..));
                    let rest = self.stock.note_failure(kind, self.rig.clock.now(), jitter);
                    tracing::warn!(%vm, summary, "warm VM of no use, the next in {rest:?}");
                }
            }
            Report::Removed { detail, .. } => self.warm_is_gone(vm, detail, turn),
            Report::Progress(_) | Report::Adopted { .. } => {}
        }
    }

    fn warm_is_ready(&mut self, vm: VmId, proof: &AttemptReady, turn: &mut Turn) {
        let Some(warm) = self.stock.get_mut(vm) else { return };
        if !matches!(warm.stage, Stage::Booting) {
            return;
        }
        warm.stage = Stage::Ready;
        warm.boot = None;
        let kind = warm.kind;
        self.stock.note_success(kind);
        turn.host_fact(EventData::WarmReady(WarmReady { vm, agent: proof.agent }));
        // A job that waits for room may have this one.
        self.room_made = true;
    }

    fn warm_is_gone(&mut self, vm: VmId, detail: String, turn: &mut Turn) {
        let Some(warm) = self.stock.remove(vm) else { return };
        self.books.release(warm.need);
        if let Some(address) = warm.address {
            self.addresses.release(address);
        }
        let (why, diagnosis) = match warm.stage {
            Stage::Going(why, diagnosis) => (why, diagnosis.map(|diagnosis| *diagnosis)),
            // Its task goes by order only.
            Stage::Booting | Stage::Ready => (WarmGoneWhy::Failed, None),
        };
        turn.host_fact(EventData::WarmGone(WarmGone { vm, why, diagnosis, detail }));
        self.room_made = true;
    }

    /// The worker ends: they go, and nobody else is listened to any more.
    pub(super) async fn end_warm(&mut self) -> Result<(), SupervisorError> {
        self.dismiss_all(WarmGoneWhy::Draining);
        let deadline = Instant::now() + LAST_GO;
        while !self.stock.is_empty() {
            let Ok(Some(tagged)) = timeout_at(deadline, self.reports_in.recv()).await else {
                tracing::warn!(left = self.stock.len(), "warm VMs are still there; the next worker removes them");
                return Ok(());
            };
            if tagged.whose == Whose::Nobody {
                let mut turn = Turn::default();
                self.on_warm_report(tagged.vm, tagged.report, &mut turn);
                self.commit(turn).await?;
            }
        }
        Ok(())
    }

    /// What a worker before this one had kept warm. Its VMs are gone by now, or a job's.
    pub(super) fn settle_old_warm(&mut self, turn: &mut Turn) -> Result<(), SupervisorError> {
        let open: Vec<_> = self.log.open_streams(Some(super::tags::WARM)).collect::<Result<_, _>>()?;
        for vm in open.into_iter().map(|stream| VmId(stream.stream)) {
            turn.host_fact(match self.job_of(vm) {
                Some(job) => EventData::WarmTaken(WarmTaken { vm, job }),
                None => {
                    let (why, diagnosis, detail) = (WarmGoneWhy::WorkerEnded, None, String::new());
                    EventData::WarmGone(WarmGone { vm, why, diagnosis, detail })
                }
            });
        }
        Ok(())
    }

    fn job_of(&self, vm: VmId) -> Option<JobId> {
        let is_its = |job: &super::books::Job| {
            let attempt = job.state.attempts.get(&job.live.epoch);
            attempt.and_then(|a| a.started.as_ref()).is_some_and(|started| started.value.vm == vm)
        };
        self.jobs.iter().find(|(_, job)| is_its(job)).map(|(id, _)| *id)
    }
}

/// Nobody uses it: it is killed.
const WITHOUT_GRACE: stoker_schemas::event::GoneWhy = stoker_schemas::event::GoneWhy::Cancelled;
