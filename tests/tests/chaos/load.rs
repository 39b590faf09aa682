//! A simulated host that boots what producers enqueue all the time, and the books of both.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use stoker_schemas::{JobId, JobState, Phase, VmId};
use stoker_tests::harness;
use stoker_worker::{
    attempt::Rig,
    clock::Clock,
    config::Config,
    counts::JOBS_UNACKNOWLEDGED,
    log::{EventLog, LogOptions},
    supervisor::Capacity,
    vm::{SimWorld, simulated::SimChange},
};

use crate::{PATIENCE, host::SimHost, node::Node, producers::Producers, table::Outcome};

/// Producers at once.
const PRODUCERS: usize = 8;
/// Between two jobs of a producer: less than a busy machine boots, so that a new job waits for no others.
const PACE: Duration = Duration::from_millis(50);

/// Jobs that come all the time, and the host that takes them.
pub struct Load {
    pub host: SimHost,
    producers: Producers,
    config: Config,
    url: String,
    _data: tempfile::TempDir,
}

impl Load {
    pub async fn start(url: &str) -> Self {
        Self::start_with(url, PRODUCERS, PACE).await
    }

    /// With few jobs: their VMs stay, and each worker that comes has to take them all over.
    pub async fn start_gently(url: &str) -> Self {
        Self::start_with(url, 1, PACE).await
    }

    async fn start_with(url: &str, producers: usize, pace: Duration) -> Self {
        let data = tempfile::tempdir().unwrap();
        let config = harness::config(data.path(), |config| {
            // Room for all: nothing is put back for want of it.
            config.capacity = Capacity { slots: 60_000, vcpus: 60_000, memory_mib: 60_000 * 256 };
            config.max_booting = 256;
        });
        let log = EventLog::open(config.data.join("log"), LogOptions::default()).unwrap();
        let host = SimHost::start_on(&config, url, SimWorld::remembering(), log, |_| {}).await;
        let producers = Producers::start(url, producers, pace).await;
        Self { host, producers, config, url: url.to_owned(), _data: data }
    }

    /// Waits until so many more jobs are confirmed.
    pub async fn goes_on(&self, more: usize) {
        self.producers.goes_on(more).await;
    }

    /// How long it takes, from `begun` on, until a job that is enqueued now is ready: then the way through broker and
    /// host is free again. `None` when that does not come in time.
    pub async fn works_again(&self, begun: Instant) -> Option<Duration> {
        let id = self.producers.one().await;
        let is_ready = |host: &SimHost| id.is_some_and(|id| is_ready(host, &id));
        if !self.host.holds(PATIENCE, is_ready).await {
            eprintln!(
                "no recovery within {PATIENCE:?}; the host's broker is {:?}",
                *self.host.broker.status().borrow()
            );
            return None;
        }
        Some(begun.elapsed())
    }

    /// The worker ends as a crash does, its VMs live on, and another one takes its place, with this clock.
    pub async fn crash_and_restart(self, clock: Clock) -> Self {
        let Self { host, producers, config, url, _data } = self;
        let (world, log) = host.crash().await;
        let rig = Rig { clock, ..harness::rig(&world) };
        let host = SimHost::start_with_rig(&config, &url, world, rig, log, |_| {}).await;
        Self { host, producers, config, url, _data }
    }

    /// From now on the producers' events bear another time.
    pub fn set_producers_clock(&self, clock: Clock) {
        self.producers.set_clock(clock);
    }

    /// Ends the producers, waits for what they enqueued, and ends the host. The node is one of those that hold the
    /// queues.
    pub async fn end(self, node: &Node) -> Outcome {
        let (jobs, repeated) = self.producers.end().await;
        let mut open = jobs.clone();
        // What is not ready in time is counted below.
        self.host
            .holds(PATIENCE, |host| {
                open.retain(|id| !is_ready(host, id));
                open.is_empty()
            })
            .await;
        for id in &open {
            eprintln!("not ready: {:#?}", self.host.state(*id));
        }
        let kept = node.kept_messages(PATIENCE).await;
        let states: BTreeMap<_, _> = jobs.iter().map(|id| (*id, self.host.state(*id))).collect();
        let outcome = Outcome {
            jobs: jobs.len(),
            lost: states.values().filter(|state| is_lost(state)).count(),
            doubled: doubled(&self.host.world.changes(), &owners(&states)),
            leaked: leaked(&self.host.world, &states),
            stuck: open.iter().filter(|id| !is_lost(&states[*id])).count()
                + kept
                + usize::try_from(JOBS_UNACKNOWLEDGED.now()).unwrap(),
            repeated,
        };
        self.host.end(PATIENCE).await;
        outcome
    }
}

/// A confirmed job that the host never heard of, or that ended without a VM: none of them asks for that.
fn is_lost(state: &JobState) -> bool {
    state.attempts.is_empty() || matches!(state.phase(), Phase::Dead | Phase::Cancelled)
}

fn vms(state: &JobState) -> impl Iterator<Item = VmId> {
    state.attempts.values().filter_map(|attempt| Some(attempt.started.as_ref()?.value.vm))
}

fn owners(states: &BTreeMap<JobId, JobState>) -> BTreeMap<VmId, JobId> {
    states.iter().flat_map(|(id, state)| vms(state).map(|vm| (vm, *id))).collect()
}

/// Jobs of which two VMs ran at one time, and VMs that ran for no job that the log knows.
fn doubled(changes: &[SimChange], job_of: &BTreeMap<VmId, JobId>) -> usize {
    let (mut running, mut doubled, mut strangers) = (BTreeMap::<JobId, usize>::new(), BTreeSet::new(), 0);
    for change in changes {
        let (vm, begins) = match change {
            SimChange::Up(vm) => (vm, true),
            SimChange::Ended(vm) => (vm, false),
        };
        let Some(job) = job_of.get(vm) else {
            strangers += usize::from(begins);
            continue;
        };
        let now = running.entry(*job).or_default();
        *now = if begins { *now + 1 } else { now.saturating_sub(1) };
        if *now > 1 {
            doubled.insert(*job);
        }
    }
    doubled.len() + strangers
}

/// VMs that run and cards that are attached although no ready job has them, and addresses that two had.
fn leaked(world: &SimWorld, states: &BTreeMap<JobId, JobState>) -> usize {
    let up = states.values().flat_map(|state| state.attempts.values().filter(|attempt| attempt.is_up()));
    let owned: BTreeSet<VmId> = up.filter_map(|attempt| Some(attempt.started.as_ref()?.value.vm)).collect();
    let unowned = |vms: Vec<VmId>| vms.into_iter().filter(|vm| !owned.contains(vm)).count();
    let conflicts = usize::try_from(world.stats().address_conflicts).unwrap();
    unowned(world.living()) + unowned(world.attached()) + conflicts
}

fn is_ready(host: &SimHost, id: &JobId) -> bool {
    host.state(*id).phase() == Phase::Ready
}

/// One after the other is right, however often; two at once are not, nor is one that no job has.
#[test]
fn two_vms_of_a_job_at_one_time_are_doubled() {
    use SimChange::{Ended, Up};
    let new = || uuid::Uuid::now_v7();
    let (job, other, [a, b, c, stranger]) = (JobId(new()), JobId(new()), [new(), new(), new(), new()].map(VmId));
    let job_of = BTreeMap::from([(a, job), (b, job), (c, other)]);
    assert_eq!(doubled(&[Up(a), Up(c), Ended(a), Up(b), Ended(b), Up(a)], &job_of), 0);
    assert_eq!(doubled(&[Up(a), Up(c), Up(b), Ended(a), Ended(b)], &job_of), 1);
    assert_eq!(doubled(&[Up(stranger), Ended(stranger)], &job_of), 1);
}
