//! What the supervisor keeps in memory: only jobs that have something on this host.

use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use stoker_schemas::diagnosis::Diagnosis;
use stoker_schemas::spec::Priority;
use stoker_schemas::state::Attempt;
use stoker_schemas::{Epoch, Event, JobId, JobSpec, JobState, PoolName, Time};
use tokio::time::Instant;

use super::Supervisor;
use super::admission::Capacity;
use super::credit::Lane;
use crate::attempt::Running;
use crate::boots::Booting;
use crate::counts::USE;
use crate::ports::broker::About;
use crate::ports::handle::Handle;

/// A job with something on this host.
pub(super) struct Job {
    pub(super) state: JobState,
    pub(super) live: Live,
    /// Its message, while the attempt is not settled.
    pub(super) ack: Option<Held>,
}

/// A message that is not settled.
pub(super) struct Held {
    pub(super) ack: Handle,
    /// The lane that it came by.
    pub(super) lane: Priority,
    /// Since when it has been here.
    pub(super) since: Instant,
}

/// The try that is on this host.
pub(super) struct Live {
    pub(super) epoch: Epoch,
    pub(super) pool: PoolName,
    pub(super) running: Option<Running>,
    /// The warm VM that it gets, until that is told.
    pub(super) warm: Option<Running>,
    pub(super) need: Capacity,
    pub(super) address: Option<Ipv4Addr>,
    /// Its place among those that boot, until it is up.
    pub(super) boot: Option<Booting>,
    pub(super) is_up: bool,
    /// It failed while another host may hold its message: what follows is not for us to decide.
    pub(super) lost: Option<Box<Diagnosis>>,
}

/// A delivered job, understood.
pub(super) struct Claim {
    pub(super) job: JobId,
    pub(super) attempt: u32,
    pub(super) delivery: u32,
    /// How often it was put back before.
    pub(super) deferrals: u32,
    pub(super) spec: JobSpec,
    pub(super) enqueued_at: Time,
    /// The message.
    pub(super) event: Event,
    /// The message as it came: the log's own copy of it need not be read again.
    pub(super) body: Bytes,
    /// What it was published with, and what else the broker says of it: should it have to be parked.
    pub(super) routing_key: String,
    pub(super) about: About,
    pub(super) held: Held,
}

impl Job {
    /// The try that is here.
    pub(super) fn attempt(&self) -> Option<&Attempt> {
        self.state.attempts.get(&self.live.epoch)
    }
}

impl Claim {
    /// How long it may still wait for its first attempt; `None` for as long as it takes.
    pub(super) fn time_to_live_left(&self, waited: Duration) -> Option<Duration> {
        let ttl = self.spec.ttl_s.filter(|_| self.attempt == 1)?;
        Some(Duration::from_secs(ttl).saturating_sub(waited))
    }

    pub(super) fn is_high(&self) -> bool {
        self.spec.priority == Priority::High
    }
}

impl Supervisor {
    /// Tries that are not up yet (or on their way out).
    pub(super) fn booting(&self) -> u32 {
        u32::try_from(self.jobs.len()).unwrap_or(u32::MAX).saturating_sub(self.up)
    }

    /// VMs that are up.
    pub(super) fn up(&self) -> u32 {
        self.up
    }

    /// Boots that hold a message of this lane.
    fn boots_of(&self, lane: &Lane) -> u32 {
        let of_lane = |held: &Held| held.lane == lane.priority;
        let boots =
            self.jobs.values().filter(|job| job.live.pool == lane.pool && job.ack.as_ref().is_some_and(of_lane));
        u32::try_from(boots.count()).unwrap_or(u32::MAX)
    }

    /// Lets the broker send as many jobs as may boot now.
    pub(super) fn update_credit(&mut self) {
        // A warm VM's place is a job's: it gets the VM, or the VM goes.
        let room = self.books.free().slots + self.stock.len() + self.booting();
        // A boot whose message was settled holds its place without one.
        let boots = self.settings.max_booting.saturating_sub(self.boots_without_message);
        let budget = room.min(boots);
        // Open, but only because their next message finds no room in its queue: they take no place of others.
        let budget = if self.draining || budget == 0 { 0 } else { budget.saturating_add(self.settling.held()) };
        let mut lanes = std::mem::take(&mut self.lanes);
        lanes.update(budget, |lane| match self.pools.is_paused(&lane.pool) {
            true => 0,
            false => self.pool_room(&lane.pool).map_or(u32::MAX, |room| {
                room.saturating_add(self.boots_of(lane)).saturating_add(self.settling.held_of(&lane.pool))
            }),
        });
        self.lanes = lanes;
        self.count_use();
    }

    fn count_use(&self) {
        let (total, free) = (self.settings.capacity.slots, self.books.free().slots);
        USE.slots.set(total.into());
        USE.slots_used.set(total.saturating_sub(free).into());
        USE.booting.set(self.booting().into());
        USE.ready.set(self.up().into());
        USE.warm.set(self.stock.len().into());
        USE.credit.set(self.lanes.granted());
        USE.waiting.set(u64::try_from(self.waiting.len()).unwrap_or(u64::MAX));
    }
}
