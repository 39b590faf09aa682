//! Health is about the work: jobs that wait while hosts have room and nothing starts are a failure with a name, in
//! `/health`, in `/ready`, on the overview and in `/metrics`. What is looked at are rows; nothing is asked of the broker.

mod judge;

use std::collections::BTreeMap;
use std::time::Duration;

use stoker_schemas::state::AwaitedFrom;
use stoker_worker::ports::broker::{BrokerStatus, HistoryStatus};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

pub use judge::{Blocked, PoolNow, Watch, Why, Work};

use crate::readmodel::{ReadModel, ReadModelError};
use crate::reconcile::Waited;
use crate::submit::Submitter;

/// Nothing has started for so long, seconds, unless set otherwise: several times what a host takes to begin a boot, or to
/// put a job back that does not fit.
pub const DEFAULT_STALLED_AFTER_S: u64 = 60;
/// The least that may be set: hosts hold a job that does not fit for some seconds.
pub const MIN_STALLED_AFTER_S: u64 = 10;
/// The most that may be set.
pub const MAX_STALLED_AFTER_S: u64 = 86_400;
/// Looks in the time that must pass.
const LOOKS: u32 = 12;
/// The longest between two looks: what ended is said within 10 s.
const MAX_PACE: Duration = Duration::from_secs(5);
/// Rows of jobs that wait for another attempt looked at each time, those of which nothing was heard longest first.
const MAX_RETRIES: usize = 512;

/// Looks and publishes what it sees, until it is stopped.
pub async fn run(
    model: ReadModel,
    submitter: Submitter,
    after: Duration,
    seen: watch::Sender<Work>,
    stop: CancellationToken,
) {
    let mut pace = interval((after / LOOKS).clamp(Duration::from_millis(1), MAX_PACE));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watcher = Watcher { model, submitter, watch: Watch::new(after), waited: Waited::default() };
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = pace.tick() => {}
        }
        let work = watcher.look(Instant::now()).unwrap_or_else(|error| {
            tracing::warn!(%error, "whether the work flows is not known; looking again");
            watcher.forget()
        });
        tell(&seen, work);
    }
}

/// A stall stands in the log once, not at every look.
fn tell(seen: &watch::Sender<Work>, work: Work) {
    let before = seen.send_replace(work.clone());
    let is_known = |blocked: &Blocked| before.blocked.iter().any(|b| (&b.pool, b.why) == (&blocked.pool, blocked.why));
    for blocked in work.blocked.iter().filter(|blocked| !is_known(blocked)) {
        tracing::warn!(remedy = blocked.remedy(), "{}", blocked.sentence(true));
    }
    if work.is_known && work.blocked.is_empty() && !before.blocked.is_empty() {
        tracing::info!("the work flows again");
    }
}

struct Watcher {
    model: ReadModel,
    submitter: Submitter,
    watch: Watch,
    waited: Waited,
}

impl Watcher {
    fn look(&mut self, now: Instant) -> Result<Work, ReadModelError> {
        if !self.hears() {
            return Ok(self.forget());
        }
        self.waited.note(now, self.model.next_seq());
        let pools = self.model.waiting(&self.due(now)?)?;
        Ok(self.watch.look(now, &pools))
    }

    fn forget(&mut self) -> Work {
        self.waited.forget();
        self.watch.forget()
    }

    /// Whether a start would be heard of. That the broker is away is said elsewhere.
    fn hears(&self) -> bool {
        let broker = self.submitter.broker();
        let is_linked = *broker.status().borrow() == BrokerStatus::Connected;
        is_linked && *broker.history_status().borrow() == HistoryStatus::Available && self.model.is_caught_up()
    }

    /// Jobs by pool whose next attempt is due, by how long it has been known here that it follows: no clock of a host
    /// is asked.
    fn due(&self, now: Instant) -> Result<BTreeMap<String, u64>, ReadModelError> {
        let mut due = BTreeMap::new();
        for (_, job) in self.model.awaited(false, &[], MAX_RETRIES)? {
            let awaited = &job.awaited;
            let is_retry = awaited.from == AwaitedFrom::Queue && awaited.attempt > 1 && !awaited.cancelling;
            let (true, Some((pool, _))) = (is_retry, &job.lane) else { continue };
            if self.waited.since(job.seq, now) > Duration::from_millis(awaited.usual_ms) {
                *due.entry(pool.to_string()).or_default() += 1;
            }
        }
        Ok(due)
    }
}
