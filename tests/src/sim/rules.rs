//! What must hold of each event when it is written, and of each acknowledgement when it arrives.

use std::collections::BTreeMap;
use std::time::Duration;

use stoker_schemas::event::{AttemptStarted, GoneWhy};
use stoker_schemas::{Event, EventData, JobId, JobState, PoolName, Time};

use super::broker::queue::Message;
use super::host::SimHost;
use super::plan::{Plan, Trouble};

/// How long the control plane may take to end a job whose time to live has passed.
const LATE_EXPIRY: Duration = Duration::from_secs(30);
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
}

impl Rules {
    /// Those that can be looked at under this plan.
    pub fn new(plan: &Plan) -> Self {
        let one_clock = plan.hosts.iter().all(|host| host.skew_s == 0);
        let hides = |trouble: &Trouble| matches!(trouble, Trouble::History { .. } | Trouble::Lie { .. });
        let whole_history = !plan.faults.iter().any(|fault| hides(&fault.what));
        Self { one_clock, whole_history, ..Self::default() }
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

    /// This was said, by anybody.
    pub fn hear(&mut self, event: &Event) {
        if let (EventData::JobRetryScheduled(retry), Some(id)) = (&event.data, event.job()) {
            let due = self.due.entry((id, retry.attempt)).or_insert(retry.not_before);
            *due = retry.not_before.min(*due);
        }
    }

    /// A host has written this. `jobs` is what was known before.
    pub fn see(&mut self, event: &Event, host: &SimHost, jobs: &BTreeMap<JobId, JobState>) {
        let name = &host.name;
        match (&event.data, event.job()) {
            (EventData::AttemptStarted(started), Some(id)) => self.started(event, started, id, name),
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
        let waited = event.time.since(started.enqueued_at);
        // Of the first job that a worker sees it does not know how old it is, and a control plane that was restarted
        // begins to count again: a job may start late, by its time to live once more.
        let latest = |ttl: u64| 2 * Duration::from_secs(ttl) + LATE_EXPIRY;
        if attempt == 1 && started.spec.ttl_s.is_some_and(|ttl| waited > latest(ttl)) {
            self.break_one(format!("job {id} starts after {waited:?}, when its time to live had passed"));
        }
        let due = self.due.get(&(id, attempt)).filter(|_| self.whole_history);
        if due.is_some_and(|due| event.time.plus(EARLY) < *due) {
            self.break_one(format!("attempt {attempt} of job {id} starts before it is due"));
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
        if !told.get(&id).is_some_and(|job| job.is_past(attempt) || is_settled(job, attempt, &event)) {
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
    job.last_attempt() > attempt || job.phase().is_closed() || job.settled_attempt() >= attempt || tried() || deferred()
}
