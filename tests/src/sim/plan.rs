//! What happens in a run: hosts, loads and faults. A plan is data, so that a failing one can be made smaller.

mod draw;

use std::time::Duration;

use super::broker::BrokerPlan;
pub use draw::Draw;

/// Everything that happens in a run besides what the code under test does by itself.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The hosts.
    pub hosts: Vec<HostPlan>,
    /// The broker.
    pub broker: BrokerPlan,
    /// Broker, worker and control plane are one process on one host, without RabbitMQ.
    pub in_process: bool,
    /// The control plane's clock, in each of its lives.
    pub control_clock: ClockPlan,
    /// What users do.
    pub loads: Vec<Load>,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// Faults end by then, ms.
    pub active_ms: u64,
    /// How long a commit takes, ms: between these.
    pub disk_ms: (u64, u64),
}

/// A clock that is wrong. Processes read it when they start and count from there, so that it steps between two lives.
#[derive(Debug, Clone, Default)]
pub struct ClockPlan {
    /// How far it is ahead, s: in the first life, the second one, and so on; then as in the last of them.
    pub ahead_s: Vec<i64>,
    /// How much too fast it counts, millionths.
    pub drift_ppm: i64,
}

impl ClockPlan {
    /// How far it is ahead in a life.
    pub fn ahead_in(&self, life: usize) -> i64 {
        self.ahead_s.get(life).or(self.ahead_s.last()).copied().unwrap_or(0)
    }

    /// It differs from a true one always by the same time.
    pub fn is_steady(&self) -> bool {
        self.ahead_s.len() <= 1 && self.drift_ppm == 0
    }

    /// It is right.
    pub fn is_right(&self) -> bool {
        self.is_steady() && self.ahead_in(0) == 0
    }

    /// What it counts while so much time passes.
    pub fn counts(&self, time: Duration) -> Duration {
        let micros = i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        let counted = micros.saturating_add(micros.saturating_mul(self.drift_ppm) / 1_000_000);
        Duration::from_micros(counted.unsigned_abs())
    }
}

/// One host.
#[derive(Debug, Clone)]
pub struct HostPlan {
    /// VMs at once.
    pub slots: u32,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Addresses.
    pub addresses: u32,
    /// Boots at once.
    pub max_booting: u32,
    /// How long a job that does not fit is held, ms.
    pub hold_ms: u64,
    /// How long a message is held while its job boots, ms.
    pub settle_after_ms: u64,
    /// How long removing what a VM has left takes, ms.
    pub removal_ms: u64,
    /// Warm VMs.
    pub warm: u32,
    /// Its clock, in each life of its worker.
    pub clock: ClockPlan,
    /// Pools that it serves.
    pub pools: Vec<String>,
}

/// Deadline of the boots that take longest, ms.
const LONGEST_DEADLINE_MS: u64 = 30_000;
/// A job that warm VMs make room for may be held this long, ms.
const WARM_GOES_WITHIN_MS: u64 = 30_000;
/// Booting, removing and publishing may take this much longer than the longest deadline, ms.
const SLACK_MS: u64 = 10_000;

impl HostPlan {
    /// How long it may hold a message, ms: while its job waits, then while it boots.
    fn longest_hold_ms(&self) -> u64 {
        let warm_ms = if self.warm > 0 { WARM_GOES_WITHIN_MS } else { 0 };
        self.hold_ms.max(warm_ms) + self.settle_after_ms.min(LONGEST_DEADLINE_MS) + SLACK_MS
    }
}

/// Something that users do.
#[derive(Debug, Clone)]
pub struct Load {
    /// When, ms.
    pub at_ms: u64,
    /// What.
    pub what: Ask,
}

/// What users ask for. `pick` chooses among the jobs that were enqueued before.
#[derive(Debug, Clone)]
pub enum Ask {
    /// New jobs.
    Enqueue {
        /// How many.
        count: u32,
        /// Of this kind.
        kind: JobKind,
    },
    /// The same job, several times at once.
    Same {
        /// How often.
        times: u32,
        /// Of this kind.
        kind: JobKind,
    },
    /// Cancel one.
    Cancel(u64),
    /// Stop one.
    Stop(u64),
    /// Another attempt at one.
    Retry(u64),
    /// Let one wait longer.
    Snooze(u64),
    /// Messages that no worker can read, of so many bytes.
    Garbage {
        /// How many.
        count: u32,
        /// How large.
        bytes: usize,
    },
    /// Pause a pool; it goes on so much later, ms.
    Pause(u64),
}

/// What a job is like.
#[derive(Debug, Clone)]
pub struct JobKind {
    /// How its guest behaves (`sim.*` arguments).
    pub guest: String,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Attempts at most.
    pub max_attempts: u32,
    /// Deadline of a boot, ms.
    pub deadline_ms: u64,
    /// Time to live, s.
    pub ttl_s: Option<u64>,
    /// In the high lane.
    pub high: bool,
    /// Its pool.
    pub pool: String,
}

/// Something that goes wrong.
#[derive(Debug, Clone)]
pub struct Fault {
    /// When, ms.
    pub at_ms: u64,
    /// What.
    pub what: Trouble,
}

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum Trouble {
    /// A worker is killed and started again.
    Kill {
        /// Which host's.
        host: usize,
        /// In the middle of what it does: so many looks at its tasks later.
        looks: u32,
        /// How long it is away, ms.
        down_ms: u64,
        /// Whether its VMs die with it.
        vms_too: bool,
    },
    /// A worker is asked to end and started again.
    Restart {
        /// Which host's.
        host: usize,
    },
    /// The control plane is killed and started again.
    KillControl {
        /// So many looks at its tasks later.
        looks: u32,
        /// How long it is away, ms.
        down_ms: u64,
    },
    /// A host, or the control plane where there is no such host, loses its connection.
    Cut {
        /// Which.
        who: usize,
        /// For how long, ms.
        for_ms: u64,
    },
    /// The broker is restarted.
    Broker {
        /// It is away for so long, ms.
        for_ms: u64,
    },
    /// The broker takes nothing.
    Alarm {
        /// For so long, ms.
        for_ms: u64,
    },
    /// A kind of queue takes nothing: most of its replicas are away.
    Refuse {
        /// The delay queues, or else the lanes.
        delays: bool,
        /// For so long, ms.
        for_ms: u64,
    },
    /// The history is cut off.
    History {
        /// For so long, ms.
        for_ms: u64,
    },
    /// A host's next commit fails.
    Disk {
        /// Which host's.
        host: usize,
        /// It is written all the same.
        written: bool,
    },
    /// The history is deleted and made again.
    Recreate,
    /// What waits in the lanes of a pool is gone.
    Purge {
        /// Which.
        pool: String,
    },
    /// The broker confirms one in so many messages of work and forgets it.
    Lie {
        /// One in so many.
        one_in: u32,
        /// For so long, ms.
        for_ms: u64,
    },
    /// The VMs of a host die.
    Vms {
        /// Which host's.
        host: usize,
    },
}

/// Picks the job that was enqueued last.
pub const LATEST: u64 = u64::MAX;
