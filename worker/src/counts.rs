//! What this process counts of its own work, for metrics. It begins at zero with each process: what a host did before is
//! in the history, which the control plane counts, and Prometheus knows a counter that begins again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use stoker_schemas::event::EventData;
use stoker_schemas::{Epoch, JobState};

use crate::metrics::{AttemptTotals, Labels, Metric, SharedHistogram, label};

/// Counts up from the start of the process.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// So many until now.
    pub fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How many there are now.
#[derive(Debug, Default)]
pub struct Level(AtomicU64);

impl Level {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// One more.
    pub fn up(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less.
    pub fn down(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// So many.
    pub fn set(&self, now: u64) {
        self.0.store(now, Ordering::Relaxed);
    }

    /// So many.
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Deliveries that were dropped unsettled. Each is a fault of the program; they were given back to their queues.
pub static DELIVERIES_DROPPED: Count = Count::new();
/// Channels renewed because deliveries were open that nothing accounted for.
pub static CHANNELS_UNACCOUNTED: Count = Count::new();
/// Channels renewed because their consumers got nothing although messages waited.
pub static CHANNELS_STARVED: Count = Count::new();
/// Jobs that were delivered and are neither acknowledged nor given back.
pub static JOBS_UNACKNOWLEDGED: Level = Level::new();
/// Other messages of which that is so.
pub static OTHERS_UNACKNOWLEDGED: Level = Level::new();
/// Time from handing events to the log until they are on disk.
pub static LOG_APPENDS: SharedHistogram = SharedHistogram::new();
/// What became of attempts.
pub static ATTEMPTS: Attempts = Attempts::new();
/// What the host has and uses.
pub static USE: Use = Use::new();

/// A host's room, and the deliveries that it asks for.
#[derive(Debug)]
pub struct Use {
    /// VMs that it may run.
    pub slots: Level,
    /// Those that are taken, by jobs or by VMs that wait for one.
    pub slots_used: Level,
    /// Attempts on their way up or down.
    pub booting: Level,
    /// VMs that are up.
    pub ready: Level,
    /// VMs that wait for a job.
    pub warm: Level,
    /// Deliveries that the broker may have open here at once, all lanes together.
    pub credit: Level,
    /// Those of its deliveries that wait for room.
    pub waiting: Level,
}

impl Use {
    const fn new() -> Self {
        Self {
            slots: Level::new(),
            slots_used: Level::new(),
            booting: Level::new(),
            ready: Level::new(),
            warm: Level::new(),
            credit: Level::new(),
            waiting: Level::new(),
        }
    }
}

/// What became of attempts on this host.
#[derive(Debug)]
pub struct Attempts(Mutex<AttemptTotals>);

impl Attempts {
    const fn new() -> Self {
        Self(Mutex::new(AttemptTotals::new()))
    }

    /// Adds a fact that was just written; `state` is its job's, with the fact in it.
    pub fn add(&self, data: &EventData, epoch: Epoch, state: &JobState) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).add(data, epoch, state);
    }

    fn metrics(&self) -> Vec<Metric> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).metrics()
    }
}

/// All of it, as metrics.
pub fn metrics() -> Vec<Metric> {
    let states = |pairs: [(&str, &Level); 2]| pairs.map(|(state, level)| (label("state", state), level.now()));
    let mut metrics = ATTEMPTS.metrics();
    metrics.extend([
        Metric::histogram(
            "stoker_log_append_duration_seconds",
            "Time from handing events to the log until they are on disk.",
            [(Labels::new(), LOG_APPENDS.now())],
        ),
        Metric::gauge(
            "stoker_slots",
            "VMs that this host may run, and places taken by jobs or warm VMs.",
            states([("total", &USE.slots), ("used", &USE.slots_used)]),
        ),
        Metric::gauge(
            "stoker_vms",
            "VMs on this host: on their way up or down, up for a job, waiting for one.",
            [("booting", &USE.booting), ("ready", &USE.ready), ("warm", &USE.warm)]
                .map(|(state, level)| (label("state", state), level.now())),
        ),
        Metric::level(
            "stoker_delivery_credit",
            "Jobs that the broker may have delivered here and not settled, all pools and lanes together.",
            USE.credit.now(),
        ),
        Metric::gauge(
            "stoker_deliveries_unacknowledged",
            "Messages delivered here and not settled yet; those of jobs use the credit.",
            [("jobs", &JOBS_UNACKNOWLEDGED), ("other", &OTHERS_UNACKNOWLEDGED)]
                .map(|(source, level)| (label("source", source), level.now())),
        ),
        Metric::level(
            "stoker_deliveries_waiting",
            "Of the jobs among them, those that wait for room.",
            USE.waiting.now(),
        ),
        Metric::total(
            "stoker_deliveries_dropped_total",
            "Deliveries dropped unsettled and given back: faults of the program.",
            DELIVERIES_DROPPED.total(),
        ),
        Metric::counter(
            "stoker_consumer_renewals_total",
            "Consumers renewed because deliveries were unaccounted for, or none came although messages waited.",
            [("unaccounted", &CHANNELS_UNACCOUNTED), ("starved", &CHANNELS_STARVED)]
                .map(|(reason, count)| (label("reason", reason), count.total())),
        ),
    ]);
    metrics
}
