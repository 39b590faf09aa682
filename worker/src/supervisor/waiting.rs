//! Jobs that cannot start here now: held for a moment, then put back for another host, or for later.
//!
//! ```text
//!  obstacle -- held (no reads, no events) --> tried again on each tick, and when room is made
//!          \-- held long enough --> job.deferred, if that is news --> back at the broker for a while
//! ```
//!
//! What waits keeps its state: a tick reads nothing from the log. A message that is put back is no event: a host
//! says why a job waits when the reason changes, however often the message comes and goes.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use stoker_schemas::command::Command;
use stoker_schemas::event::DeferredWhy;
use stoker_schemas::limits::MAX_RETRY_DELAY_MS;
use stoker_schemas::retry::deferral_ms;
use stoker_schemas::seeded::{self, Bug};
use stoker_schemas::{HostName, JobId, JobState, PoolName, Time};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::admission::Capacity;
use super::books::{Claim, Held, Job};
use super::turn::Turn;
use super::{Supervisor, SupervisorError};
use crate::ports::broker::{BrokerError, NotDeferred};

/// Wait before a job that this host cannot take now is offered again: the first one, and the longest.
const DEFER_MS: (u64, u64) = (1_000, 15_000);
/// The same for a job that no host of its pool may ever take.
const MISFIT_DEFER_MS: (u64, u64) = (15_000, 120_000);
/// A job that warm VMs make room for is held this long at least: put back, the next warm VM would have its room.
const WARM_GOES_WITHIN: Duration = Duration::from_secs(30);
/// Normal jobs that wait are passed by so many high ones, then one of them is first.
const HIGH_IN_A_ROW: u32 = 4;

/// A job that waits.
pub(super) struct Waiting {
    pub(super) claim: Claim,
    /// What is known of it; `None` where that has to be read again.
    pub(super) state: Option<JobState>,
    /// Since when it has been held.
    pub(super) since: Instant,
    /// It was looked at before: what others wrote of it meanwhile is read before it begins.
    pub(super) again: bool,
}

impl Waiting {
    pub(super) fn new(claim: Claim) -> Self {
        Self { claim, state: None, since: Instant::now(), again: false }
    }
}

/// Why a job cannot start here now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// A user wants it to wait.
    Snoozed { until: Time, by: String, left: Duration },
    /// The host lacks its labels.
    Labels,
    /// The host is too small.
    TooLarge { total: Capacity, need: Capacity },
    /// As many VMs of its pool are here as may.
    PoolLimit(PoolName),
    /// Nothing free that is enough.
    Full { free: Capacity, need: Capacity },
    /// As many VMs boot as may at once.
    Booting(u32),
    /// Its own address is taken.
    OwnAddress(Ipv4Addr),
    /// All addresses are taken.
    NoAddress,
    /// An earlier try of it still has its VM here.
    EarlierVm,
}

impl Obstacle {
    /// What is recorded; `None` for nothing.
    fn why(&self) -> Option<DeferredWhy> {
        Some(match self {
            Self::Snoozed { .. } => DeferredWhy::Snoozed,
            Self::Labels => DeferredWhy::Labels,
            Self::TooLarge { .. } => DeferredWhy::TooLarge,
            Self::PoolLimit(_) => DeferredWhy::PoolLimit,
            Self::Full { .. } => DeferredWhy::Full,
            Self::Booting(_) => DeferredWhy::Booting,
            Self::OwnAddress(_) | Self::NoAddress => DeferredWhy::Address,
            Self::EarlierVm => return None,
        })
    }

    /// Whether it may be gone in a moment.
    fn may_pass(&self) -> bool {
        !matches!(self, Self::Snoozed { .. } | Self::Labels | Self::TooLarge { .. })
    }

    /// How long the broker keeps the message that was put back so often before.
    fn delay(&self, deferrals: u32) -> Duration {
        let ms = match self {
            // Longer than a delay queue holds it: it comes again in between.
            Self::Snoozed { left, .. } => {
                u64::try_from(left.as_millis()).unwrap_or(u64::MAX).clamp(1, MAX_RETRY_DELAY_MS)
            }
            Self::Labels | Self::TooLarge { .. } => deferral_ms(MISFIT_DEFER_MS.0, MISFIT_DEFER_MS.1, deferrals),
            _ => deferral_ms(DEFER_MS.0, DEFER_MS.1, deferrals),
        };
        Duration::from_millis(ms)
    }

    fn text<'a>(&'a self, host: &'a HostName) -> impl fmt::Display + 'a {
        fmt::from_fn(move |f| match self {
            Self::Snoozed { until, by, .. } => write!(f, "snoozed until {until} by {by}"),
            Self::Labels => write!(f, "host {host} lacks the labels that the job requires"),
            Self::TooLarge { total, need } => write!(f, "host {host} has {total} in all; the job needs {need}"),
            Self::PoolLimit(pool) => write!(f, "host {host} has as many VMs of pool {pool} as it may"),
            Self::Full { free, need } => write!(f, "host {host} is full: {free} free, the job needs {need}"),
            Self::Booting(most) => write!(f, "host {host} boots {most} VMs already, as many as it may at once"),
            Self::OwnAddress(address) => write!(f, "host {host} has another VM with address {address}"),
            Self::NoAddress => write!(f, "host {host} has no free address"),
            Self::EarlierVm => write!(f, "host {host} still has the VM of an earlier attempt"),
        })
    }
}

impl Supervisor {
    /// The job cannot start now: holds it, or puts it back when it has been held long enough.
    pub(super) fn obstructed(
        &mut self,
        state: Option<JobState>,
        waiting: Waiting,
        obstacle: &Obstacle,
        warm_makes_room: bool,
        turn: &mut Turn,
    ) -> Result<(), SupervisorError> {
        let hold = if warm_makes_room { self.settings.hold.max(WARM_GOES_WITHIN) } else { self.settings.hold };
        let waiting = Waiting { state, ..waiting };
        if obstacle.may_pass() && (waiting.since.elapsed() < hold || seeded::is_on(Bug::HeldForEver)) {
            self.wait(waiting);
            return Ok(());
        }
        self.put_back(waiting, obstacle, turn)
    }

    /// Has the broker keep the message for a while; says why, if that is news.
    fn put_back(&mut self, mut waiting: Waiting, obstacle: &Obstacle, turn: &mut Turn) -> Result<(), SupervisorError> {
        let waited = self.waited(&waiting.claim);
        let claim = &waiting.claim;
        let mut delay = obstacle.delay(claim.deferrals);
        if let Some(left) = claim.time_to_live_left(waited) {
            // Here again by then, to be ended.
            delay = delay.min(left);
        }
        if let (Some(why), Some(state)) = (obstacle.why(), &mut waiting.state) {
            let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
            let reason = obstacle.text(&self.settings.host).to_string();
            let (attempt, spec, enqueued_at) = (claim.attempt, claim.spec.clone(), claim.enqueued_at);
            let defer = Command::Defer { attempt, delay_ms, why, reason, spec, enqueued_at };
            if let Err(rejection) = self.record(state, defer, turn)? {
                tracing::info!(job = %claim.job, %rejection, "message asks for nothing any more");
                turn.settle_after(waiting.claim.job, waiting.claim.held.ack);
                return Ok(());
            }
        }
        turn.put_back.push((waiting, delay));
        Ok(())
    }

    /// Once what was said of them is on disk.
    pub(super) fn put_all_back(&self, messages: Vec<(Waiting, Duration)>) {
        for (waiting, delay) in messages {
            tokio::spawn(defer(waiting, delay, self.not_put_back.clone()));
        }
    }

    /// The broker does not take it back: it stays here for another while, as long as a message may be held.
    pub(super) fn still_here(&mut self, waiting: Waiting) {
        let held = &waiting.claim.held;
        let too_long = held.since.elapsed() >= self.settings.settle_after;
        if too_long || self.draining || self.pools.is_paused(&waiting.claim.spec.pool) {
            tokio::spawn(waiting.claim.held.ack.requeue());
        } else {
            self.wait(Waiting { since: Instant::now(), state: None, again: true, ..waiting });
        }
    }

    pub(super) fn wait(&mut self, waiting: Waiting) {
        if waiting.claim.is_high() {
            let after = self.waiting.iter().take_while(|w| w.claim.is_high()).count();
            self.waiting.insert(after, waiting);
        } else {
            self.waiting.push_back(waiting);
        }
    }

    pub(super) fn waiting_for(&mut self, job: JobId) -> Option<&mut Waiting> {
        self.waiting.iter_mut().find(|waiting| waiting.claim.job == job)
    }

    /// Another message about a job that waits: a double, or a later attempt. One is enough.
    pub(super) fn absorb(&mut self, claim: Claim, turn: &mut Turn) -> Option<Claim> {
        let Some(known) = self.waiting_for(claim.job) else { return Some(claim) };
        if let Some(state) = &mut known.state {
            state.apply(&claim.event);
        }
        let other = match claim.attempt >= known.claim.attempt {
            true => std::mem::replace(&mut known.claim, claim),
            false => claim,
        };
        turn.settle.push(other.held.ack);
        None
    }

    /// Looks again at what did not fit. Bounded by the credit: no more can be waiting.
    pub(super) fn retry_waiting(&mut self, turn: &mut Turn) -> Result<(), SupervisorError> {
        if seeded::is_on(Bug::WaitersForgotten) {
            return Ok(());
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        if self.high_in_a_row >= HIGH_IN_A_ROW
            && let Some(first) = waiting.iter().position(|w| !w.claim.is_high())
            && let Some(normal) = waiting.remove(first)
        {
            waiting.push_front(normal);
        }
        for one in waiting {
            let again = one.again || one.state.is_some();
            self.consider(Waiting { again, ..one }, turn)?;
        }
        Ok(())
    }

    /// Notes that one begins, for the turn of the normal ones.
    pub(super) fn note_begin(&mut self, high: bool) {
        self.high_in_a_row = if high { self.high_in_a_row.saturating_add(1) } else { 0 };
    }

    /// Acknowledges the messages of attempts that take longer than a message may be held. From then on this host
    /// alone decides what follows, also after a restart: the log says so.
    pub(super) fn settle_long(&mut self, turn: &mut Turn) -> Result<(), SupervisorError> {
        if self.settings.shares_log {
            return Ok(());
        }
        let limit = self.settings.settle_after;
        let is_due = |held: &Held| held.since.elapsed() >= limit;
        let due = self.jobs.iter().filter(|(_, job)| job.ack.as_ref().is_some_and(is_due));
        let due: Vec<JobId> = due.map(|(id, _)| *id).collect();
        for id in due {
            let Some(mut job) = self.jobs.remove(&id) else { continue };
            let held_ms = job.ack.as_ref().map_or(0, |held| held.since.elapsed().as_millis());
            let held_ms = u64::try_from(held_ms).unwrap_or(u64::MAX);
            let settle = Command::SettleMessage { epoch: job.live.epoch, held_ms };
            let recorded = self.record(&mut job.state, settle, turn);
            if let Some(held) = job.ack.take() {
                turn.settle_after(id, held.ack);
            }
            self.jobs.insert(id, job);
            if let Err(rejection) = recorded? {
                tracing::debug!(job = %id, %rejection, "message settled");
            }
        }
        // Those whose message is still to come again after a restart are not among them: it must find room.
        let owns_itself = |job: &Job| job.attempt().is_some_and(|a| a.message_settled.is_some());
        let without = self.jobs.values().filter(|job| !job.live.is_up && owns_itself(job)).count();
        self.boots_without_message = u32::try_from(without).unwrap_or(u32::MAX);
        Ok(())
    }
}

async fn defer(waiting: Waiting, delay: Duration, not_put_back: mpsc::Sender<Waiting>) {
    let Waiting { claim, state, since, again } = waiting;
    let Claim { held: Held { ack, lane, since: held_since }, .. } = claim;
    match ack.defer(delay).await {
        Ok(()) => {}
        Err(NotDeferred { ack, error: BrokerError::Stale }) => {
            tracing::debug!("delivery is stale and comes again");
            // Settled, as far as we are concerned; the broker knows nothing of it any more.
            let _ = ack.requeue().await;
        }
        Err(NotDeferred { ack, error }) => {
            tracing::warn!(job = %claim.job, %error, "message not put back, it stays here for now");
            let held = Held { ack, lane, since: held_since };
            let waiting = Waiting { claim: Claim { held, ..claim }, state, since, again };
            if let Err(mpsc::error::SendError(waiting)) = not_put_back.send(waiting).await {
                // The supervisor is gone, and its messages go back.
                let _ = waiting.claim.held.ack.requeue().await;
            }
        }
    }
}
