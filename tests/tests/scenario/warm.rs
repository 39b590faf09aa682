//! VMs that are up before their job comes.

use std::time::Duration;

use serde_json::{Value, json};
use stoker_schemas::diagnosis::Cause;
use stoker_schemas::event::{Event, Stage, WarmGoneWhy};
use stoker_schemas::{EventData, JobSpec, JobState, Phase, Time, VmId};
use stoker_tests::harness::{Life, config};
use stoker_worker::config::Config;
use stoker_worker::supervisor::Warm;

use super::begin;

/// So many guests that live as `life` says.
fn keep(count: u32, life: &str) -> impl Fn(&mut Config) + Copy + use<'_> {
    move |config| {
        let spec = json!({"image": "sim", "kernel_args": life, "readiness": {"deadline_ms": 2_000}});
        config.warm = vec![Warm { spec: JobSpec::from_value(&spec).unwrap(), count }];
    }
}

fn plain() -> Value {
    json!({"image": "sim", "retry": {"max_attempts": 3, "base_ms": 1, "cap_ms": 5}})
}

fn told(life: &Life) -> Vec<Event> {
    let records = life.log.scan(1, 10_000).unwrap();
    records.iter().map(|record| Event::decode(&record.payload, Time::UNIX_EPOCH).unwrap()).collect()
}

/// Waits until what the log tells of warm VMs is as asked.
async fn until<T>(life: &Life, what: &str, wanted: impl Fn(&[EventData]) -> Option<T>) -> T {
    let mut head = life.log.head();
    let seen = async {
        loop {
            head.borrow_and_update();
            let warm = told(life).into_iter().map(|event| event.data).filter(|data| data.warm_vm().is_some());
            if let Some(found) = wanted(&warm.collect::<Vec<_>>()) {
                return found;
            }
            head.changed().await.unwrap();
        }
    };
    let found = tokio::time::timeout(stoker_tests::DEADLINE, seen).await;
    found.unwrap_or_else(|_| panic!("{what} did not happen: {:#?}", told(life)))
}

fn ready(events: &[EventData]) -> Vec<VmId> {
    events.iter().filter_map(|e| if let EventData::WarmReady(ready) = e { Some(ready.vm) } else { None }).collect()
}

fn gone(events: &[EventData]) -> Vec<(VmId, WarmGoneWhy, Option<Cause>)> {
    let gone = |e: &EventData| match e {
        EventData::WarmGone(gone) => Some((gone.vm, gone.why, gone.diagnosis.as_ref().map(|d| d.cause))),
        _ => None,
    };
    events.iter().filter_map(gone).collect()
}

async fn ready_vms(life: &Life, count: usize) -> Vec<VmId> {
    until(life, "warm VMs are ready", |told| Some(ready(told)).filter(|vms| vms.len() >= count)).await
}

fn vm_of(state: &JobState) -> VmId {
    state.attempts.values().next_back().unwrap().started.as_ref().unwrap().value.vm
}

#[tokio::test]
async fn a_job_gets_a_warm_vm_and_another_takes_its_place() {
    let (_dir, world, life) = begin(keep(2, "sim.healthy-ms=5"));
    let vms = ready_vms(&life, 2).await;
    let id = life.enqueue(plain()).await;
    let state = life.reaches(id, Phase::Ready).await;
    assert_eq!(vm_of(&state), vms[0], "the one that was ready first");
    let attempt = state.attempts.values().next().unwrap();
    let started = attempt.started.as_ref().unwrap().at;
    let spawned = attempt.marks.iter().find(|mark| mark.stage == Stage::Spawned).unwrap();
    assert!(spawned.detail.contains("taken from the warm pool"), "{spawned:?}");
    assert!(attempt.marks.iter().any(|mark| mark.stage == Stage::DhcpAck), "{:?}", attempt.marks);
    assert!(attempt.marks.iter().all(|mark| mark.at >= started), "nothing happened before the job: {attempt:#?}");
    assert!(attempt.ready.as_ref().unwrap().value.body.contains(&vms[0].to_string()));
    let taken = |e: &EventData| matches!(e, EventData::WarmTaken(taken) if (taken.vm, taken.job) == (vms[0], id));
    until(&life, "taken", |told| told.iter().any(taken).then_some(())).await;
    assert_eq!(ready_vms(&life, 3).await.len(), 3);
    assert_eq!(world.running(), 3);
    life.stop(id).await;
    life.reaches(id, Phase::Stopped).await;
    life.drain().await;
    assert_eq!(world.running(), 0, "warm VMs do not outlive their worker");
    assert!(world.attached().is_empty());
}

#[tokio::test]
async fn a_job_with_wishes_of_its_own_boots_its_own() {
    let (_dir, _world, life) = begin(keep(1, ""));
    let vms = ready_vms(&life, 1).await;
    for (field, value) in [("kernel_args", json!("quiet")), ("memory_mib", json!(512)), ("image", json!("other"))] {
        let mut spec = plain();
        spec[field] = value;
        let id = life.enqueue(spec).await;
        assert!(!vms.contains(&vm_of(&life.reaches(id, Phase::Ready).await)), "{field}");
    }
    life.drain().await;
}

#[tokio::test]
async fn a_warm_vm_makes_room_for_a_job_and_comes_back_when_there_is_room_again() {
    let (_dir, world, life) = begin(|config| {
        keep(2, "")(config);
        config.capacity.slots = 2;
    });
    let vms = ready_vms(&life, 2).await;
    let mut spec = plain();
    spec["vcpus"] = json!(2);
    let own = life.enqueue(spec).await;
    life.reaches(own, Phase::Ready).await;
    let evicted = until(&life, "evicted", |told| gone(told).into_iter().next()).await;
    assert_eq!(evicted, (vms[1], WarmGoneWhy::Evicted, None), "the younger one");
    let plain = life.enqueue(plain()).await;
    assert_eq!(vm_of(&life.reaches(plain, Phase::Ready).await), vms[0]);
    assert_eq!(world.running(), 2, "a full host keeps none");
    life.stop(own).await;
    life.reaches(own, Phase::Stopped).await;
    ready_vms(&life, 3).await;
    life.drain().await;
    assert_eq!(world.running(), 1);
}

#[tokio::test]
async fn one_that_does_not_come_up_says_why_and_the_next_waits() {
    let (_dir, world, life) = begin(keep(1, "sim.agent=refused sim.panic-ms=1"));
    let failed = until(&life, "two failures", |told| Some(gone(told)).filter(|gone| gone.len() == 2)).await;
    assert!(failed.iter().all(|(_, why, cause)| (*why, *cause) == (WarmGoneWhy::Failed, Some(Cause::KernelPanic))));
    let times: Vec<Time> =
        told(&life).iter().filter(|e| matches!(e.data, EventData::WarmStarted(_))).map(|e| e.time).collect();
    assert!(times[1].since(times[0]) >= Duration::from_millis(800), "{times:?}");
    let id = life.enqueue(plain()).await;
    life.reaches(id, Phase::Ready).await;
    life.drain().await;
    assert_eq!(world.running(), 1);
}

#[tokio::test]
async fn one_that_ends_while_it_waits_is_replaced() {
    let (_dir, world, life) = begin(keep(1, ""));
    ready_vms(&life, 1).await;
    world.kill_all();
    let lost = until(&life, "noticed", |told| gone(told).into_iter().next()).await;
    assert_eq!((lost.1, lost.2), (WarmGoneWhy::Failed, Some(Cause::HypervisorCrashed)));
    ready_vms(&life, 2).await;
    life.drain().await;
    assert_eq!(world.running(), 0);
}

#[tokio::test]
async fn after_a_crash_the_job_keeps_its_vm_and_the_warm_ones_are_accounted_for() {
    let (dir, world, life) = begin(keep(1, ""));
    let first = ready_vms(&life, 1).await[0];
    let id = life.enqueue(plain()).await;
    life.reaches(id, Phase::Ready).await;
    let second = ready_vms(&life, 2).await[1];
    let log = life.crash().await;
    let life = Life::begin_on(&config(dir.path(), |_| {}), &world, log);
    let state = life.until(id, "adopted", |s| s.attempts.values().any(|a| !a.adopted.is_empty())).await;
    assert_eq!(vm_of(&state), first);
    let left = until(&life, "accounted for", |told| gone(told).into_iter().next()).await;
    assert_eq!(left, (second, WarmGoneWhy::WorkerEnded, None));
    life.drain().await;
}

/// Guests that end at any moment, also in that of their hand-over: no job is lost, no VM is left.
#[tokio::test]
async fn hand_over_and_end_may_meet() {
    let (_dir, world, life) = begin(keep(4, "sim.exit-ms=30"));
    ready_vms(&life, 1).await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(life.enqueue(plain()).await);
        ready_vms(&life, ids.len() / 4).await;
    }
    for id in ids {
        let is_over = |state: &JobState| state.phase().is_closed() || state.phase() == Phase::Ready;
        life.until(id, "an end", is_over).await;
        if life.state(id).phase() == Phase::Ready {
            life.stop(id).await;
        }
        life.until(id, "its VM gone", |state| state.phase().is_closed()).await;
    }
    let log = life.log.clone();
    life.drain().await;
    assert_eq!(world.running(), 0);
    assert!(world.attached().is_empty());
    let open = log.open_streams(None).map(|stream| stream.unwrap().tag).filter(|tag| *tag == 1 || *tag == 5);
    assert_eq!(open.count(), 0);
}
