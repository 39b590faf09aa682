//! What the supervisor keeps in memory: only jobs that have something on this host.

use std::net::Ipv4Addr;

use bytes::Bytes;
use stoker_schemas::diagnosis::Diagnosis;
use stoker_schemas::spec::Priority;
use stoker_schemas::{Epoch, Event, JobId, JobSpec, JobState, PoolName, Time};
use tokio::time::Instant;

use super::Supervisor;
use super::admission::Capacity;
use crate::attempt::Running;
use crate::counts::USE;
use crate::ports::handle::Handle;

/// A job with something on this host.
pub(super) struct Job {
    pub(super) state: JobState,
    pub(super) live: Live,
    /// Its message, while the attempt is not settled.
    pub(super) ack: Option<Handle>,
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
    pub(super) is_up: bool,
    /// It failed while another host may hold its message: what follows is not for us to decide.
    pub(super) lost: Option<Box<Diagnosis>>,
}

/// A delivered job, understood.
pub(super) struct Claim {
    pub(super) job: JobId,
    pub(super) attempt: u32,
    pub(super) delivery: u32,
    pub(super) spec: JobSpec,
    pub(super) enqueued_at: Time,
    /// The message.
    pub(super) event: Event,
    /// The message as it came: the log's own copy of it need not be read again.
    pub(super) body: Bytes,
    pub(super) ack: Handle,
    /// Since when it has been waiting for room.
    pub(super) since: Instant,
}

impl Claim {
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

    /// Lets the broker send as many jobs as may boot now.
    pub(super) fn update_credit(&self) {
        // A warm VM's place is a job's: it gets the VM, or the VM goes.
        let room = self.books.free().slots + self.stock.len() + self.booting();
        let credit = if self.draining { 0 } else { room.min(self.settings.max_booting) };
        let mut granted = 0;
        for (pool, sender) in &self.credits {
            let credit =
                if self.pools.is_paused(pool) { 0 } else { credit.min(self.pool_room(pool).unwrap_or(credit)) };
            // Open, but only because their next message finds no room in its queue.
            let credit = if credit > 0 { credit.saturating_add(self.settling.held_of(pool)) } else { credit };
            granted += u64::from(credit);
            sender.send_if_modified(|current| std::mem::replace(current, credit) != credit);
        }
        self.count_use(granted);
    }

    fn count_use(&self, granted: u64) {
        let (total, free) = (self.settings.capacity.slots, self.books.free().slots);
        USE.slots.set(total.into());
        USE.slots_used.set(total.saturating_sub(free).into());
        USE.booting.set(self.booting().into());
        USE.ready.set(self.up().into());
        USE.warm.set(self.stock.len().into());
        USE.credit.set(granted);
        USE.waiting.set(u64::try_from(self.waiting.len()).unwrap_or(u64::MAX));
    }
}
