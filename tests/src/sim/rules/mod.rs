//! What must hold of each event when it is written, and of each acknowledgement when it arrives.

mod boots;
mod lag;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use stoker_schemas::event::{AttemptStarted, DeferredWhy, GoneWhy, HOST_SOURCE, JobDeferred};
use stoker_schemas::{Event, EventData, JobId, JobState, PoolName, Time};

use super::broker::queue::Message;
use super::host::SimHost;
use super::plan::{Ask, Plan, Trouble};
use boots::Boots;
use lag::Lag;

/// Room for all messages that a run may delay.
const MANY_DELAYED: usize = 10_000;
/// How long a control plane that hears everything may take to end a job whose time to live has passed. A worker
/// does not know how old the first job is that it sees.
const LATE_EXPIRY: Duration = Duration::from_secs(20);
/// And so much longer for each job: it ends some in each pass.
const LATE_EXPIRY_PER_JOB: Duration = Duration::from_millis(50);
/// Broken rules told of one run.
const MAX_TOLD: usize = 10;

/// The rules, and what of them was broken.
#[derive(Default)]
pub struct Rules {
    /// Those that were.
    pub broken: Vec<String>,
    /// All clocks are the same, so that moments of two hosts can be compared.
    one_clock: bool,
    /// Everything that is published is in the history.
    whole_history: bool,
    /// Since which reading of the logs: what is written in one turn stands in any order.
    paused: BTreeMap<(String, PoolName), u64>,
    reading: u64,
    ended: BTreeMap<(String, JobId), u32>,
    /// The earliest time that was said of an attempt.
    due: BTreeMap<(JobId, u32), Time>,
    /// When each worker last began.
    started: BTreeMap<String, Time>,
    /// When the control plane began to hear everything, or ceased to.
    disturbed: Vec<Time>,
    /// No message is ever lost: nothing is to be driven again.
    loses_nothing: bool,
    /// Why each host last said that an attempt waits.
    deferred: BTreeMap<(String, JobId, u32), Option<DeferredWhy>>,
    /// Jobs that a host has put back.
    put_back: BTreeSet<JobId>,
    boots: Boots,
    lag: Lag,
    /// How far the clocks of hosts are ahead, s: of those that always differ by the same time.
    skews: BTreeMap<String, i64>,
}

impl Rules {
    /// Those that can be looked at under this plan.
    pub fn new(plan: &Plan) -> Self {
        let one_clock = plan.control_clock.is_right() && plan.hosts.iter().all(|host| host.clock.is_right());
        let hides = |trouble: &Trouble| matches!(trouble, Trouble::History { .. } | Trouble::Lie { .. });
        let whole_history = !plan.faults.iter().any(|fault| hides(&fault.what));
        // Where delays are refused, messages go back to their lanes in another order, and one may look passed by.
        let loses = |trouble: &Trouble| matches!(trouble, Trouble::Purge { .. } | Trouble::Refuse { delays: true, .. });
        let loses_nothing = plan.broker.delay_max >= MANY_DELAYED
            && whole_history
            && !plan.faults.iter().any(|fault| loses(&fault.what));
        let garbage = plan.loads.iter().any(|load| matches!(load.what, Ask::Garbage { .. }));
        let steady = (0..).zip(&plan.hosts).filter(|(_, host)| host.clock.is_steady());
        let skews = steady.map(|(number, host)| (super::host_name(number), host.clock.ahead_in(0))).collect();
        Self { one_clock, whole_history, loses_nothing: loses_nothing && !garbage, skews, ..Self::default() }
    }

    fn break_one(&mut self, what: String) {
        if self.broken.len() < MAX_TOLD {
            self.broken.push(what);
        }
    }

    /// The logs are read anew.
    pub fn next_reading(&mut self) {
        self.reading += 1;
    }

    /// From now on the control plane hears everything, or no longer does.
    pub fn disturb(&mut self, now: Time) {
        self.disturbed.push(now);
    }

    /// Something that this host needs for each event it publishes went away or came back.
    pub fn disturb_host(&mut self, host: &str, now: Time) {
        self.lag.disturb(host, now);
    }

    /// A worker has ended, in whatever way, and all that it wrote was seen.
    pub fn worker_ended(&mut self, host: &SimHost) {
        self.boots_were_few(host);
        self.boots.worker_ended(&host.name);
    }

    /// A queue refused a message of this job.
    pub fn refused(&mut self, subject: &str) {
        self.lag.refused(subject);
    }

    /// A host's event reached the history.
    pub fn arrived(&mut self, event: &Event, host: &str, at: Time) {
        let Some(skew_s) = self.skews.get(host).copied() else { return };
        if let Some(late) = self.lag.late(event, host, skew_s, at) {
            self.break_one(late);
        }
    }

    /// Never more VMs boot at once than may.
    pub fn boots_were_few(&mut self, host: &SimHost) {
        let most = self.boots.most(&host.name);
        if most > host.max_booting() {
            self.break_one(format!("{} boots {most} VMs at once, and may {}", host.name, host.max_booting()));
        }
    }

    /// This was said, by anybody.
    pub fn hear(&mut self, event: &Event) {
        let is_by_host = event.source.starts_with(HOST_SOURCE);
        let drives = |data: &EventData| match data {
            EventData::JobRepublished(republished) => republished.by.is_none(),
            EventData::AttemptFailed(_) | EventData::VmGone(_) => true,
            _ => false,
        };
        // What is refused after the history has taken its part is heard of, and is in no queue.
        let is_refused = self.lag.was_refused(&event.subject);
        // One that was put back may go round for longer than is waited for it; a second message is harmless.
        if matches!(event.data, EventData::JobDeferred(_)) {
            self.put_back.extend(event.job());
        }
        let is_put_back = event.job().is_some_and(|id| self.put_back.contains(&id));
        if self.loses_nothing && !is_by_host && !is_refused && !is_put_back && drives(&event.data) {
            let (kind, subject) = (event.data.kind(), &event.subject);
            self.break_one(format!("{kind} of job {subject} by the control plane, and no message was lost"));
        }
        if let (EventData::JobRetryScheduled(retry), Some(id)) = (&event.data, event.job()) {
            let due = self.due.entry((id, retry.attempt)).or_insert(retry.not_before);
            *due = retry.not_before.min(*due);
        }
    }

    /// A host has written this. `jobs` is what was known before.
    pub fn see(&mut self, event: &Event, host: &SimHost, jobs: &BTreeMap<JobId, JobState>) {
        let name = &host.name;
        self.boots.see(event, name);
        match (&event.data, event.job()) {
            (EventData::HostStarted(_), _) => drop(self.started.insert(name.clone(), event.time)),
            (EventData::JobDeferred(deferred), Some(id)) => self.deferred(deferred, id, name),
            (EventData::AttemptStarted(started), Some(id)) => {
                self.started(event, started, id, name);
                if self.one_clock && event.epoch.attempt == 1 {
                    self.started_in_time(event, started, id, name, jobs.len());
                }
            }
            (EventData::JobDead(dead), Some(id)) => self.has_ended(name, id, dead.attempt),
            (EventData::JobCancelled(cancelled), Some(id)) => self.has_ended(name, id, cancelled.attempt),
            (EventData::VmGone(gone), Some(id)) if gone.why == GoneWhy::Exited => {
                let calm = |job: &&JobState| job.cancel_requested.is_empty() && job.stop_requested.is_empty();
                let attempt = jobs.get(&id).filter(calm).and_then(|job| job.attempts.get(&event.epoch));
                let attempt = attempt.filter(|a| a.superseded.is_none() && a.failed.is_none());
                let vm = attempt.and_then(|attempt| attempt.started.as_ref()).map(|started| started.value.vm);
                if vm.is_some_and(|vm| host.world.was_stopped(vm)) {
                    self.break_one(format!("{name} ended the VM of job {id}, which ran, and says that it exited"));
                }
            }
            (EventData::PoolConfigured(rule), _) => {
                if let Ok(pool) = event.subject.parse() {
                    match rule.paused {
                        true => drop(self.paused.insert((name.clone(), pool), self.reading)),
                        false => drop(self.paused.remove(&(name.clone(), pool))),
                    }
                }
            }
            _ => {}
        }
    }

    /// Waiting costs no event for each try.
    fn deferred(&mut self, deferred: &JobDeferred, id: JobId, host: &str) {
        let last = self.deferred.insert((host.to_owned(), id, deferred.attempt), deferred.why);
        if last == Some(deferred.why) && deferred.why != Some(DeferredWhy::Snoozed) {
            self.break_one(format!("{host} says twice that job {id} waits: {}", deferred.reason));
        }
    }

    fn has_ended(&mut self, host: &str, id: JobId, attempt: u32) {
        let last = self.ended.entry((host.to_owned(), id)).or_default();
        *last = attempt.max(*last);
    }

    fn started(&mut self, event: &Event, started: &AttemptStarted, id: JobId, host: &str) {
        let attempt = event.epoch.attempt;
        let paused = self.paused.get(&(host.to_owned(), started.spec.pool.clone()));
        if paused.is_some_and(|since| *since < self.reading) {
            self.break_one(format!("{host} starts job {id} of a pool that is paused"));
        }
        if self.ended.get(&(host.to_owned(), id)).is_some_and(|ended| attempt <= *ended) {
            self.break_one(format!("{host} starts attempt {attempt} of job {id}, which it has ended"));
        }
        if !self.one_clock {
            return;
        }
        let due = self.due.get(&(id, attempt)).filter(|_| self.whole_history);
        if due.is_some_and(|due| event.time.plus(EARLY) < *due) {
            self.break_one(format!("attempt {attempt} of job {id} starts before it is due"));
        }
    }

    /// What has waited for longer than its time to live is ended, at the latest by a control plane that has heard
    /// everything all that time.
    fn started_in_time(&mut self, event: &Event, attempt: &AttemptStarted, id: JobId, host: &str, jobs: usize) {
        let Some(ttl) = attempt.spec.ttl_s.map(Duration::from_secs) else { return };
        // A worker that was started since knows no more than the control plane has told, which is nothing.
        if self.started.get(host).is_some_and(|started| *started > attempt.enqueued_at) {
            return;
        }
        let last = self.disturbed.iter().filter(|at| **at <= event.time).max().copied();
        let since = last.map_or(attempt.enqueued_at, |last| last.max(attempt.enqueued_at));
        let late = LATE_EXPIRY + LATE_EXPIRY_PER_JOB * u32::try_from(jobs).unwrap_or(u32::MAX);
        if event.time.since(since) > ttl + late {
            let waited = event.time.since(attempt.enqueued_at);
            self.break_one(format!("job {id} starts after {waited:?}, when its time to live had passed"));
        }
    }

    /// A message was acknowledged, and this is what the broker had been told by then.
    pub fn acknowledged(&mut self, message: &Message, told: &BTreeMap<JobId, JobState>) {
        if !self.whole_history {
            return;
        }
        let Ok(event) = Event::decode(&message.body, Time::UNIX_EPOCH) else { return };
        let attempt = match &event.data {
            EventData::JobEnqueued(_) => 1,
            EventData::JobRetryScheduled(retry) => retry.attempt,
            // Which of two deferrals is the later one, only one clock can tell.
            EventData::JobDeferred(deferred) if self.one_clock => deferred.attempt,
            _ => return,
        };
        let Some(id) = event.job() else { return };
        if !told.get(&id).is_some_and(|job| is_settled(job, attempt, &event)) {
            self.break_one(format!("{} was acknowledged, and the broker knows of nothing that follows", message.id));
        }
    }
}

/// A retry may start this much before its time: the broker counts its own milliseconds.
const EARLY: Duration = Duration::from_millis(20);

/// Whether something follows from a message about this attempt.
fn is_settled(job: &JobState, attempt: u32, message: &Event) -> bool {
    let tried = || job.tries().any(|(epoch, a)| epoch.attempt >= attempt && (a.ready.is_some() || a.gone.is_some()));
    let deferred = || {
        job.deferred.as_ref().is_some_and(|d| {
            d.value.attempt >= attempt && (d.at > message.time || message.data.kind() != "job.deferred")
        })
    };
    // Of two attempts of the same job, by two hosts, one may be up: unless another was asked for by hand, the message of
    // what follows the other asks for nothing.
    let is_up = || job.tries().any(|(epoch, a)| a.is_up() && !job.is_overtaken(epoch));
    let ended = job.phase().is_closed() || job.settled_attempt() >= attempt;
    job.last_attempt() > attempt || ended || tried() || is_up() || deferred()
}
