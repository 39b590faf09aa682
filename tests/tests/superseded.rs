//! Two VMs of one job: what the control plane makes of it.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a failed expectation is a failed test")]

#[path = "chaos/host.rs"]
mod host;

use std::sync::Arc;

use host::SimHost;
use serde_json::json;
use stoker_producer::{
    clock,
    http::CancellationToken,
    readmodel::ReadModel,
    submit::{self, Submitter},
    supersede,
};
use stoker_schemas::{
    Event, EventData, HostName, JobId, JobSpec, JobState, Phase, Time, VmId,
    event::{GoneWhy, HOST_SOURCE, JOB_LEVEL, JobEnqueued},
    state::Attempt,
};
use stoker_tests::{
    DEADLINE,
    harness::{Life, config},
    setting, within,
};
use stoker_worker::{
    broker::amqp::{AmqpBroker, AmqpConfig},
    config::{Config, Flags, RawConfig},
    ports::broker::Broker,
    vm::simulated::SimWorld,
};
use tokio::task::JoinHandle;

/// Between the two hosts' tries.
const APART_MICROS: i64 = 1_000_000;

fn moved(time: Time, micros: i64) -> Time {
    Time::from_unix_micros(time.unix_micros() + micros)
}

/// A front that does nothing but follow the history and tell of VMs too many.
struct ControlPlane {
    model: ReadModel,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl ControlPlane {
    fn start(broker: &Arc<dyn Broker>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = ReadModel::open(dir.path(), clock::system()).unwrap();
        let submitter = Submitter::new(broker.clone(), "test", clock::system());
        let stop = CancellationToken::new();
        let follow = {
            let (model, broker, stop) = (model.clone(), broker.clone(), stop.clone());
            async move { model.follow(broker, stop).await.unwrap() }
        };
        let supersede = supersede::run(model.clone(), submitter, stop.clone());
        let tasks = vec![tokio::spawn(follow), tokio::spawn(supersede)];
        Self { model, stop, tasks, _dir: dir }
    }

    /// Waits until its rows say so.
    async fn until(&self, id: JobId, what: &str, holds: impl Fn(&JobState) -> bool) {
        let mut news = self.model.changes();
        let seen = async {
            while !self.model.job(id).unwrap().is_some_and(|state| holds(&state)) {
                let _ = news.recv().await;
            }
        };
        let in_time = tokio::time::timeout(DEADLINE, seen).await.is_ok();
        assert!(in_time, "{what} did not happen; the rows say {:#?}", self.model.job(id).unwrap());
    }

    async fn end(self) {
        self.stop.cancel();
        for task in self.tasks {
            within("the control plane ended", task).await.unwrap();
        }
    }
}

/// What another host would have published, had it got the same message: the same try, started
/// there by so much earlier or later.
async fn also_on(life: &Life, id: JobId, host: &str, time: impl Fn(&Event) -> Time) -> VmId {
    let host: HostName = host.parse().unwrap();
    let records = life.log.read_stream(id.0).unwrap();
    let events = records.iter().map(|r| Event::decode(&r.payload, Time::UNIX_EPOCH).unwrap());
    let mut vm = None;
    for mut event in events.filter(|e| e.source.starts_with(HOST_SOURCE)) {
        event.time = time(&event);
        event.source = format!("{HOST_SOURCE}{host}");
        match &mut event.data {
            EventData::AttemptStarted(started) => {
                started.host = host.clone();
                started.vm = VmId::derive(id, event.epoch, &host);
                vm = Some(started.vm);
            }
            EventData::AttemptReady(_) => {}
            _ => continue,
        }
        submit::publish_event(life.broker.as_ref(), &event).await.unwrap();
    }
    vm.expect("it was started")
}

fn superseded(life: &Life, id: JobId) -> Vec<Event> {
    let records = life.log.read_stream(id.0).unwrap();
    let events = records.iter().map(|r| Event::decode(&r.payload, Time::UNIX_EPOCH).unwrap());
    events.filter(|e| matches!(e.data, EventData::AttemptSuperseded(_))).collect()
}

fn removed_as_duplicate(attempt: &Attempt) -> bool {
    attempt.gone.as_ref().is_some_and(|gone| gone.value.why == GoneWhy::Duplicate)
}

async fn ready_job(life: &Life) -> JobId {
    let id = life.enqueue(json!({"image": "sim", "kernel_args": "sim.healthy-ms=1"})).await;
    life.reaches(id, Phase::Ready).await;
    id
}

#[tokio::test]
async fn the_host_that_was_ready_later_is_told_to_remove_its_vm() {
    let dir = tempfile::tempdir().unwrap();
    let world = SimWorld::new();
    let life = Life::begin(&config(dir.path(), |_| {}), &world);
    let id = ready_job(&life).await;
    let other = also_on(&life, id, "h-2", |e| moved(e.time, -APART_MICROS)).await;
    // Two of them: what they say is the same, and the host obeys it once.
    let planes = [ControlPlane::start(&life.broker), ControlPlane::start(&life.broker)];
    let state = life.until(id, "the VM was removed", |s| s.tries().any(|(_, a)| removed_as_duplicate(a))).await;
    assert_eq!(world.running(), 0, "ours is gone");
    assert_eq!(state.phase(), Phase::Ready, "the other host's VM is the job's");
    let told = superseded(&life, id);
    assert!(told.iter().all(|e| e.id() == told[0].id()), "{told:#?}");
    let EventData::AttemptSuperseded(what) = &told[0].data else { panic!("{told:#?}") };
    assert_eq!((what.host.as_str(), what.kept), ("h-1", Some(other)));
    for plane in planes {
        plane.end().await;
    }
    // The slower one may have told it until now.
    let told = superseded(&life, id);
    // A front that reads all of it anew finds nothing to tell.
    let late = ControlPlane::start(&life.broker);
    late.until(id, "the end is known", |s| s.tries().any(|(_, a)| removed_as_duplicate(a))).await;
    assert_eq!(late.model.crowded(10).unwrap(), []);
    late.end().await;
    assert_eq!(superseded(&life, id).len(), told.len());
    life.drain().await;
}

#[tokio::test]
async fn the_vm_that_was_ready_first_stays() {
    let dir = tempfile::tempdir().unwrap();
    let world = SimWorld::new();
    let life = Life::begin(&config(dir.path(), |_| {}), &world);
    let id = ready_job(&life).await;
    let other = also_on(&life, id, "h-2", |e| moved(e.time, APART_MICROS)).await;
    let plane = ControlPlane::start(&life.broker);
    let is_told = |s: &JobState| s.tries().any(|(_, a)| a.superseded.as_ref().is_some_and(|t| t.value.vm == other));
    plane.until(id, "the other host was told", is_told).await;
    assert_eq!(plane.model.crowded(10).unwrap(), [], "told once, not again");
    assert_eq!(superseded(&life, id).len(), 1);
    plane.end().await;
    // Whatever the host makes of a command about another host, it has by the time it has drained.
    let log = life.drain().await;
    assert_eq!(world.running(), 1, "ours stays");
    drop(log);
}

/// Real hosts on a real broker: the same job in two pools, as if its message had been published to
/// both sides of a partition.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_hosts_with_the_same_job_one_keeps_its_vm() {
    let test = "of_two_hosts_with_the_same_job_one_keeps_its_vm";
    let Some(url) = setting(test, "STOKER_TEST_AMQP_URL") else { return };
    let url = url.to_str().unwrap();
    // Names of its own on a broker that other tests use too.
    let name = format!("two-{}", &uuid::Uuid::now_v7().simple().to_string()[20..]);
    let (dirs, id) = ([tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()], JobId(uuid::Uuid::now_v7()));
    let mut hosts = Vec::new();
    for (side, dir) in ["a", "b"].iter().zip(&dirs) {
        let config = config(dir.path(), |config| {
            config.host = format!("{name}-{side}").parse().unwrap();
            config.pools = vec![format!("{name}-{side}").parse().unwrap()];
            // Else the host would take its log for the broker's, and publish nothing of it.
            let flags = Flags { broker: Some(url.to_owned()), ..Flags::default() };
            config.broker = Config::merge(RawConfig::default(), flags).unwrap().broker;
        });
        hosts.push(SimHost::start(&config, url).await);
    }
    let broker: Arc<dyn Broker> =
        Arc::new(AmqpBroker::connect(AmqpConfig { pools: Vec::new(), ..AmqpConfig::new(url) }).await.unwrap());
    for side in ["a", "b"] {
        let spec = json!({"image": "sim", "pool": format!("{name}-{side}"), "kernel_args": "sim.healthy-ms=1"});
        let data = JobEnqueued { spec: JobSpec::from_value(&spec).unwrap(), by: "test".to_owned() };
        let now = (clock::system())();
        let event = Event::about_job(id, JOB_LEVEL, "/producers/test", now, EventData::JobEnqueued(data));
        submit::publish_event(broker.as_ref(), &event).await.unwrap();
    }
    for host in &hosts {
        host.until("its VM was up", DEADLINE, |h| h.state(id).tries().any(|(_, a)| a.ready.is_some())).await;
    }
    let plane = ControlPlane::start(&broker);
    let settled = |s: &JobState| s.tries().any(|(_, a)| removed_as_duplicate(a));
    plane.until(id, "one VM was removed", settled).await;
    let mut running: Vec<_> = hosts.iter().map(|h| h.world.running()).collect();
    running.sort_unstable();
    assert_eq!(running, [0, 1]);
    plane.until(id, "the job is ready", |s| s.phase() == Phase::Ready).await;
    plane.end().await;
    for host in hosts {
        host.end(DEADLINE).await;
    }
    broker.close().await;
}
