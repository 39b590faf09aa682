//! Real workers that boot what producers enqueue all the time, and a control plane whose rows are the books.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use stoker_schemas::{JobId, JobState, Phase, Time, event::Event, state::Attempt};
use stoker_tests::control::Control;
use stoker_worker::{
    broker::amqp::{AmqpBroker, AmqpConfig},
    log::{EventLog, LogOptions},
    ports::broker::Broker,
};
use tokio::time::timeout;

use crate::{PATIENCE, node::Node, producers::Producers, table::Outcome, worker::Worker};

/// Producers at once, and the pace of each: what a real worker of an unoptimised build does on a busy machine, with
/// another real process beside it.
const PRODUCERS: usize = 2;
const PACE: Duration = Duration::from_millis(50);

pub struct Fleet {
    pub workers: Vec<Worker>,
    producers: Producers,
    control: Control,
    broker: Arc<dyn Broker>,
    logs: tempfile::TempDir,
}

impl Fleet {
    /// Workers w-1, w-2 and so on, with their data in these folders.
    pub async fn start(programs: &Path, url: &str, data: &[&Path]) -> Self {
        let broker = AmqpConfig { pools: Vec::new(), ..AmqpConfig::new(url) };
        let broker: Arc<dyn Broker> = Arc::new(AmqpBroker::connect(broker).await.unwrap());
        let control = Control::start(broker.clone()).await;
        let producers = Producers::start(url, PRODUCERS, PACE).await;
        let (program, logs) = (programs.join("stoker-worker"), tempfile::tempdir().unwrap());
        let worker = |(n, data): (usize, &&Path)| {
            let host = format!("w-{}", n + 1);
            let log = logs.path().join(&host);
            Worker::start(&program, url, &host, data.join("data"), log)
        };
        let workers = data.iter().enumerate().map(worker).collect();
        Self { workers, producers, control, broker, logs }
    }

    /// Waits until so many more jobs are confirmed.
    pub async fn goes_on(&self, more: usize) {
        self.producers.goes_on(more).await;
    }

    /// How long it takes, from `begun` on, until a job that is enqueued now was ready; `None` when that does not come
    /// in time.
    pub async fn works_again(&self, begun: Instant) -> Option<Duration> {
        let mut open = BTreeSet::from([self.producers.one().await?]);
        until_all(&self.control, was_up, &mut open).await;
        open.is_empty().then(|| begun.elapsed())
    }

    /// Ends the producers, waits for what they enqueued, ends the workers and looks at all books.
    pub async fn end(self, node: &Node) -> Outcome {
        let Self { workers, producers, control, broker, logs } = self;
        let (jobs, repeated) = producers.end().await;
        let mut open = jobs.clone();
        until_all(&control, is_settled, &mut open).await;
        for id in &open {
            eprintln!("not settled: {:#?}", control.model.job(*id).unwrap());
        }
        let kept = node.kept_messages(PATIENCE).await;
        let data: Vec<_> = workers.iter().map(|worker| worker.data.clone()).collect();
        for worker in workers {
            worker.end().await;
        }
        let states: BTreeMap<_, _> = jobs.iter().map(|id| (*id, control.model.job(*id).unwrap())).collect();
        let lost = |state: &Option<JobState>| state.as_ref().is_none_or(is_lost);
        let outcome = Outcome {
            jobs: jobs.len(),
            lost: states.values().filter(|state| lost(state)).count(),
            doubled: at_rest(&states) + data.iter().map(|data| in_its_log(data, &jobs)).sum::<usize>(),
            leaked: states.values().flatten().map(left_over).sum(),
            stuck: open.iter().filter(|id| !lost(&states[*id])).count() + kept,
            repeated,
        };
        if outcome.lost + outcome.doubled + outcome.leaked + outcome.stuck > 0 {
            let kept = logs.keep();
            eprintln!("what the workers said: {}", kept.display());
        }
        control.end().await;
        broker.close().await;
        outcome
    }
}

/// Takes from `open` what holds by the rows, until nothing is left or the time is over; looks again whenever the rows
/// changed.
async fn until_all(control: &Control, holds: impl Fn(&JobState) -> bool, open: &mut BTreeSet<JobId>) {
    let mut news = control.model.changes();
    let seen = async {
        loop {
            open.retain(|id| !control.model.job(*id).unwrap().is_some_and(|state| holds(&state)));
            if open.is_empty() {
                return;
            }
            let _ = news.recv().await;
            // Rows that change all the time must not keep the deadline from being looked at.
            tokio::task::yield_now().await;
        }
    };
    let _ = timeout(PATIENCE, seen).await;
}

fn was_up(state: &JobState) -> bool {
    state.attempts.values().any(|attempt| attempt.ready.is_some())
}

/// Its VM was ready, and either is still there or has been seen to be gone; no other one is left.
fn is_settled(state: &JobState) -> bool {
    let with_vm = state.tries().filter(|(_, attempt)| attempt.has_vm()).count();
    match state.phase() {
        Phase::Ready => with_vm == 1,
        phase => was_up(state) && phase.is_closed() && with_vm == 0,
    }
}

/// It ended, and never had a VM that was up: none of them asks for that.
fn is_lost(state: &JobState) -> bool {
    state.phase().is_closed() && !was_up(state)
}

/// Jobs that have two VMs.
fn at_rest(states: &BTreeMap<JobId, Option<JobState>>) -> usize {
    let up = |state: &JobState| state.tries().filter(|(_, attempt)| attempt.has_vm()).count();
    states.values().flatten().filter(|state| up(state) > 1).count()
}

/// VMs that a job has left though it is over.
fn left_over(state: &JobState) -> usize {
    if state.phase().is_closed() { state.tries().filter(|(_, attempt)| attempt.has_vm()).count() } else { 0 }
}

/// Jobs of which a host began an attempt before the VM of another one was gone: as its log has it, which is written
/// before anything happens.
fn in_its_log(data: &Path, jobs: &BTreeSet<JobId>) -> usize {
    let log = EventLog::open(data.join("log"), LogOptions::default()).unwrap();
    let doubled = |id: &&JobId| {
        let records = log.read_stream(id.0).unwrap();
        let mut state = JobState::new(**id);
        records.iter().any(|record| {
            state.apply(&Event::decode(&record.payload, Time::UNIX_EPOCH).unwrap());
            state.attempts.values().filter(|attempt: &&Attempt| attempt.has_vm()).count() > 1
        })
    };
    jobs.iter().filter(doubled).count()
}
