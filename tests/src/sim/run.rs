//! The runner: lets time pass, and makes happen what the plan says.

mod happen;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use stoker_schemas::seeded::{self, Bug};
use stoker_schemas::{JobId, Time};
use tempfile::TempDir;

use super::broker::Model;
use super::check::{Truth, at_rest};
use super::control::SimControl;
use super::host::{SimDisk, SimHost};
use super::host_name;
use super::plan::{Draw, Plan, Trouble};
use super::trace::Trace;
use super::user::Wish;
use crate::say;
use happen::Relief;

/// When the world begins: 2027-01-15.
const BEGIN_MICROS: i64 = 1_800_000_000_000_000;
/// A step while something happens, ms: up to this.
const BUSY_STEP_MS: u64 = 15;
/// A step while nothing does.
const IDLE_STEP_MS: u64 = 400;
/// Wait before a process that ended by itself is started again.
const RESTART_MS: u64 = 1_000;
/// The pool that users pause.
const DEFAULT_POOL: &str = "default";
/// All must have come to rest so long after the faults have ended, and a little longer for each job.
const REST_WITHIN_MS: u64 = 1_200_000;
/// The same where messages are lost: one that was put back goes round without a word for long before it counts as lost.
const REST_AFTER_LOSS_MS: u64 = 5_400_000;
const REST_PER_JOB_MS: u64 = 6_000;
/// Between two looks at whether it has.
const LOOK_MS: u64 = 1_000;
const LONGEST_LOOK_MS: u64 = 60_000;
/// Jobs whose events are told with a failure.
const MAX_STORIES: usize = 3;

/// How a run went.
#[derive(Debug)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// What did not hold.
    pub violations: Vec<String>,
    /// Hash of its trace.
    pub hash: u64,
    /// Its trace, where it was recorded.
    pub lines: Vec<String>,
    /// Virtual time that passed, ms.
    pub took_ms: u64,
}

/// Draws a seed's plan and runs it.
pub fn run_seed(seed: u64, bug: Option<Bug>, record: bool) -> Outcome {
    run(seed, &Draw::plan(seed), bug, record)
}

/// Runs a plan. On a thread of its own: what a thread remembers must not matter.
///
/// # Panics
/// When no thread can be started.
pub fn run(seed: u64, plan: &Plan, bug: Option<Bug>, record: bool) -> Outcome {
    let trace = Trace::new(record);
    let told = trace.clone();
    let ended = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(format!("seed-{seed}"));
        let run = move || {
            stoker_worker::blocking::in_place_on_this_thread();
            fastrand::seed(seed);
            seeded::put_in(bug);
            let went = catch_unwind(AssertUnwindSafe(|| {
                let mut run = Run::new(seed, plan, trace);
                let violations = run.all();
                (violations, run.now_ms)
            }));
            went.unwrap_or_else(|_| (PANICS.take(), 0))
        };
        thread.spawn_scoped(scope, run).expect("a thread for a run").join()
    });
    let (violations, took_ms) = ended.unwrap_or_else(|_| (vec!["the thread of the run failed".to_owned()], 0));
    Outcome { seed, violations, hash: told.hash(), lines: told.lines(), took_ms }
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Something panicked in this thread's run.
pub(super) fn note_panic(what: String) {
    PANICS.with_borrow_mut(|panics| panics.push(what));
}

/// What a true clock shows then.
pub(super) fn wall_at(now_ms: u64) -> Time {
    Time::from_unix_micros(BEGIN_MICROS).plus(Duration::from_millis(now_ms))
}

struct Run<'a> {
    plan: &'a Plan,
    now_ms: u64,
    rng: fastrand::Rng,
    trace: Trace,
    broker: Model,
    hosts: Vec<SimHost>,
    control: SimControl,
    truth: Truth,
    relief: BTreeMap<(u64, u64), Relief>,
    /// The broker is away: who starts now is not connected.
    broker_down: bool,
    /// Users have let all pools go on for the last time.
    pools_go_on: bool,
    next: u64,
    failures: Vec<String>,
    _folder: TempDir,
}

impl<'a> Run<'a> {
    fn new(seed: u64, plan: &'a Plan, trace: Trace) -> Self {
        let folder = folder();
        let broker = Model::new(plan.broker.clone(), seed ^ 1, trace.clone());
        let host = |(number, host): (usize, &super::plan::HostPlan)| {
            let disk = SimDisk::new(plan.disk_ms, seed ^ (2 + number as u64));
            SimHost::new(&host_name(number), host.clone(), plan.in_process, folder.path(), disk)
        };
        let hosts = plan.hosts.iter().enumerate().map(host).collect();
        let control = SimControl::new(folder.path(), plan.control_clock.clone(), trace.clone());
        Self {
            plan,
            now_ms: 0,
            rng: fastrand::Rng::with_seed(seed),
            trace,
            broker,
            hosts,
            control,
            truth: Truth::new(plan),
            relief: BTreeMap::new(),
            broker_down: false,
            pools_go_on: false,
            next: 0,
            failures: Vec::new(),
            _folder: folder,
        }
    }

    fn wall(&self) -> Time {
        wall_at(self.now_ms)
    }

    /// The whole run; what did not hold.
    fn all(&mut self) -> Vec<String> {
        let (mut loads, mut faults) = (self.plan.loads.iter().peekable(), self.plan.faults.iter().peekable());
        while self.now_ms < self.plan.active_ms && self.failures.is_empty() {
            while let Some(load) = loads.next_if(|load| load.at_ms <= self.now_ms) {
                self.ask(&load.what);
            }
            while let Some(fault) = faults.next_if(|fault| fault.at_ms <= self.now_ms) {
                self.cause(&fault.what);
            }
            let until = loads.peek().map(|l| l.at_ms).into_iter().chain(faults.peek().map(|f| f.at_ms));
            let until = until.min().unwrap_or(u64::MAX).min(self.plan.active_ms);
            self.step(until);
        }
        self.heal();
        self.come_to_rest()
    }

    /// Faults end.
    fn heal(&mut self) {
        say!(self.trace, "faults end");
        while let Some((_, relief)) = self.relief.pop_first() {
            self.relieve(relief);
        }
        self.start_what_is_due();
    }

    /// Said again: who said it before may have been cut off.
    fn let_pools_go_on(&mut self) {
        if self.control.is_running() && !std::mem::replace(&mut self.pools_go_on, true) {
            self.control.ask(Wish::Pool(DEFAULT_POOL.to_owned(), false));
        }
    }

    fn come_to_rest(&mut self) -> Vec<String> {
        let jobs = self.control.book.lock().len() as u64;
        let loses = |fault: &super::plan::Fault| matches!(fault.what, Trouble::Purge { .. } | Trouble::Lie { .. });
        let within = if self.plan.faults.iter().any(loses) { REST_AFTER_LOSS_MS } else { REST_WITHIN_MS };
        let deadline = self.now_ms + within + REST_PER_JOB_MS * jobs;
        let (mut wrong, mut wait) = (Vec::new(), LOOK_MS);
        while self.failures.is_empty() && self.now_ms < deadline {
            self.let_pools_go_on();
            let look = self.now_ms + wait;
            while self.now_ms < look && self.failures.is_empty() {
                self.step(look);
            }
            let unrest = self.broker.lock().unrest();
            wrong = unrest.map_or_else(|| self.look(), |unrest| vec![unrest]);
            if wrong.is_empty() || !self.truth.rules.broken.is_empty() {
                break;
            }
            // What is slow to end is looked at less and less often.
            wait = (wait + wait / 4).min(LONGEST_LOOK_MS);
        }
        if !wrong.is_empty() {
            // All of it, for the reader.
            wrong = self.look();
            wrong.extend(self.stories(&wrong));
        }
        wrong.splice(0..0, std::mem::take(&mut self.failures));
        let took = self.now_ms;
        say!(self.trace, "the end after {took} ms: {wrong:?}");
        wrong
    }

    /// What was said of the jobs that failures name.
    fn stories(&self, wrong: &[String]) -> Vec<String> {
        let at = |id: &JobId| wrong.iter().position(|line| line.contains(&id.to_string()));
        let mut named: Vec<_> = self.truth.jobs.keys().filter_map(|id| Some((at(id)?, id))).collect();
        named.sort_unstable();
        let told = named.into_iter().map(|(_, id)| id).take(MAX_STORIES).flat_map(|id| {
            let mut story = vec![format!("job {id}:")];
            story.extend(self.truth.story(*id));
            story
        });
        told.collect()
    }

    fn look(&mut self) -> Vec<String> {
        match self.truth.update(&mut self.hosts, &self.broker) {
            Ok(()) => {
                self.hosts.iter().for_each(|host| self.truth.rules.boots_were_few(host));
                if !self.truth.rules.broken.is_empty() {
                    return self.truth.rules.broken.clone();
                }
                at_rest(&self.truth, &self.hosts, &self.control, &self.broker)
            }
            Err(error) => vec![error],
        }
    }

    /// Lets time pass, at most until then.
    fn step(&mut self, until: u64) {
        self.start_what_is_due();
        let length = self.length(until);
        let mut order: Vec<usize> = (0..=self.hosts.len()).collect();
        self.rng.shuffle(&mut order);
        for process in order {
            self.step_process(process, Duration::from_millis(length));
        }
        self.failures.extend(self.hosts.iter().filter_map(SimHost::overfull));
        self.failures.extend(PANICS.take().into_iter().map(|what| format!("panicked: {what}")));
        self.now_ms += length;
        self.trace.set_now(self.now_ms);
        self.broker.lock().advance(self.now_ms);
        while let Some(entry) = self.relief.first_entry()
            && entry.key().0 <= self.now_ms
        {
            let relief = entry.remove();
            self.relieve(relief);
        }
    }

    /// How long the next step is: short while something happens.
    fn length(&mut self, until: u64) -> u64 {
        let due = self.broker.lock().next_due().unwrap_or(u64::MAX);
        let relief = self.relief.keys().next().map_or(u64::MAX, |(at, _)| *at);
        let starts = self.hosts.iter().filter(|h| !h.is_running()).map(|h| h.start_at_ms).min().unwrap_or(u64::MAX);
        let lines = self.trace.count();
        let busy = std::mem::replace(&mut self.next, lines) != lines;
        let most = if busy { self.rng.u64(1..=BUSY_STEP_MS) } else { self.rng.u64(BUSY_STEP_MS..=IDLE_STEP_MS) };
        let until = until.min(due).min(relief).min(starts);
        until.saturating_sub(self.now_ms).clamp(1, most)
    }

    fn start_what_is_due(&mut self) {
        let (now, wall) = (self.now_ms, self.wall());
        for number in 0..self.hosts.len() {
            let host = &mut self.hosts[number];
            if host.is_running() || host.start_at_ms > now {
                continue;
            }
            let started = host.start(now, wall, &self.broker);
            say!(self.trace, "{} starts", host.name);
            self.truth.rules.disturb_host(&host.name, wall);
            self.failures.extend(started.err());
            self.connect(number);
        }
        // Where it is in the worker's process, it comes and goes with that.
        let may_start = !self.plan.in_process || self.hosts[0].is_running();
        if may_start && !self.control.is_running() && self.control.start_at_ms <= now {
            say!(self.trace, "control starts");
            self.disturb(Some(self.hosts.len()));
            // Who was letting them go on has gone with the one before.
            self.pools_go_on = false;
            let started = match self.hosts[0].in_process() {
                Some((process, broker)) => self.control.start_in(process, broker, None, wall),
                None => self.control.start(wall, &self.broker),
            };
            self.failures.extend(started.err());
            self.connect(self.hosts.len());
        }
    }

    /// Who starts while the broker is away is not connected at first.
    fn connect(&mut self, who: usize) {
        if self.broker_down
            && let Some(link) = self.link(who)
        {
            self.broker.lock().cut(link);
        }
    }

    fn link(&self, who: usize) -> Option<u64> {
        self.hosts.get(who).map_or_else(|| self.control.link(), SimHost::link)
    }

    fn step_process(&mut self, number: usize, time: Duration) {
        let Some(host) = self.hosts.get_mut(number) else {
            self.failures.extend(self.control.step(time));
            return;
        };
        let Some(ended) = host.step(time) else { return };
        say!(self.trace, "{} {ended}", host.name);
        if ended.contains("panicked") {
            self.failures.push(format!("{} {ended}", host.name));
        }
        // What its log has is read before the process is gone.
        if let Err(error) = self.truth.update(&mut self.hosts, &self.broker) {
            self.failures.push(error);
        }
        let host = &mut self.hosts[number];
        self.truth.rules.worker_ended(host);
        if self.plan.in_process {
            self.control.kill(0, &self.broker);
        }
        host.kill(0, &self.broker);
        host.start_at_ms = self.now_ms + RESTART_MS;
    }
}

/// A folder in memory where there is one: a run writes much and keeps nothing.
fn folder() -> TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a folder for a run")
}
