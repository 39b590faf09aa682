//! How many VMs boot at once, for whatever they boot.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use stoker_schemas::image::Driver;
use stoker_schemas::{JobSpec, Phase, VmId};
use stoker_tests::harness::{self, Life, config};
use stoker_worker::boots::Boots;
use stoker_worker::log::{EventLog, LogOptions};
use stoker_worker::ports::vm::{Hypervisor, Vm, VmError, VmPlan, VmRecord};
use stoker_worker::supervisor::Warm;
use stoker_worker::vm::simulated::{SimWorld, Simulated};

use super::{begin, job};

/// Boots under way, and the most there were.
#[derive(Debug, Default)]
struct Count {
    booting: Vec<VmId>,
    peak: usize,
    templates: usize,
}

/// Simulated guests, and a driver that makes a template of each that became ready.
struct Counting {
    guests: Simulated,
    boots: OnceLock<Boots>,
    count: Arc<Mutex<Count>>,
}

fn begun(count: &Mutex<Count>, vm: VmId) {
    let mut count = count.lock().unwrap();
    count.booting.push(vm);
    count.peak = count.peak.max(count.booting.len());
}

fn ended(count: &Mutex<Count>, vm: VmId) {
    count.lock().unwrap().booting.retain(|booting| *booting != vm);
}

#[async_trait]
impl Hypervisor for Counting {
    fn driver(&self) -> Driver {
        self.guests.driver()
    }

    fn describe(&self) -> String {
        self.guests.describe()
    }

    async fn boot(&self, plan: VmPlan) -> Result<Arc<dyn Vm>, VmError> {
        begun(&self.count, plan.vm);
        self.guests.boot(plan).await
    }

    async fn adopt(&self, record: VmRecord) -> Result<Option<Arc<dyn Vm>>, VmError> {
        self.guests.adopt(record).await
    }

    fn learn(&self, plan: &VmPlan, _: bool) {
        ended(&self.count, plan.vm);
        let (boots, count) = (self.boots.get().unwrap().clone(), self.count.clone());
        tokio::spawn(async move {
            let _place = boots.begin().await;
            let template = VmId(uuid::Uuid::now_v7());
            begun(&count, template);
            tokio::time::sleep(Duration::from_millis(10)).await;
            ended(&count, template);
            count.lock().unwrap().templates += 1;
        });
    }

    async fn clean_up(&self, vm: VmId) -> Result<(), VmError> {
        ended(&self.count, vm);
        Ok(())
    }

    fn share_boots(&self, boots: Boots) {
        self.boots.set(boots).unwrap();
    }
}

const POOLS: [&str; 3] = ["default", "batch", "gpu"];

fn in_lane(pool: &str, lane: &str) -> Value {
    let mut spec = job("sim.healthy-ms=10");
    (spec["pool"], spec["priority"]) = (json!(pool), json!(lane));
    spec
}

/// Three pools, both lanes of each full, warm VMs and templates: never more at once than the host may.
#[tokio::test]
async fn no_more_boot_at_once_than_the_host_may() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), |config| {
        config.pools = POOLS.map(|name| name.parse().unwrap()).into();
        config.max_booting = 3;
        config.capacity.slots = 200;
        let spec = JobSpec::from_value(&json!({"image": "warm", "kernel_args": "sim.healthy-ms=10"})).unwrap();
        config.warm = vec![Warm { spec, count: 4 }];
    });
    let (world, count) = (SimWorld::new(), Arc::new(Mutex::new(Count::default())));
    let guests = Simulated::new(world.clone());
    let hypervisor = Arc::new(Counting { guests, boots: OnceLock::new(), count: count.clone() });
    let log = EventLog::open(config.data.join("log"), LogOptions::default()).unwrap();
    let rig = stoker_worker::attempt::Rig { hypervisor, ..harness::rig(&world) };
    let life = Life::begin_with(&config, rig, log);
    let mut ids = Vec::new();
    for _ in 0..10 {
        for pool in POOLS {
            for lane in ["high", "normal"] {
                ids.push(life.enqueue(in_lane(pool, lane)).await);
            }
        }
    }
    for id in ids {
        life.reaches(id, Phase::Ready).await;
    }
    let (peak, templates) = {
        let count = count.lock().unwrap();
        (count.peak, count.templates)
    };
    assert!(peak <= 3, "{peak} booted at once");
    assert!(peak == 3 && templates > 0, "{peak} booted at once, {templates} templates: the test tests nothing");
    life.drain().await;
}

/// Guests that never answer, and have long to do so.
fn endless(lane: &str) -> Value {
    json!({
        "image": "sim", "kernel_args": "sim.agent=never", "priority": lane, "readiness": {"deadline_ms": 600_000}
    })
}

/// One lane may use every place, and takes few messages beyond from other hosts.
#[tokio::test]
async fn one_busy_lane_gets_every_place_and_little_more() {
    let (_dir, world, life) = begin(|config| config.max_booting = 6);
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(life.enqueue(endless("normal")).await);
    }
    for id in &ids[..6] {
        life.until(*id, "an attempt", |state| !state.attempts.is_empty()).await;
    }
    assert_eq!(world.running(), 6);
    let waiting = life.broker.depth(&"default".parse().unwrap(), stoker_schemas::spec::Priority::Normal).await.unwrap();
    assert!(waiting >= 20 - 6 - 2, "{waiting} left for other hosts");
    // A high job does not wait behind them: it is here, and the next that begins.
    let high = life.enqueue(endless("high")).await;
    life.cancel(ids[0]).await;
    life.until(high, "an attempt", |state| !state.attempts.is_empty()).await;
    drop(life);
}

/// With one place and high jobs without end, a normal one gets its turn.
#[tokio::test]
async fn a_normal_job_is_not_passed_by_for_ever() {
    let (_dir, _world, life) = begin(|config| {
        config.max_booting = 1;
        config.hold = Duration::from_secs(60);
    });
    let mut high = Vec::new();
    for _ in 0..40 {
        high.push(life.enqueue(in_lane("default", "high")).await);
    }
    let normal = life.enqueue(in_lane("default", "normal")).await;
    life.reaches(normal, Phase::Ready).await;
    let waiting = high.iter().filter(|id| life.state(**id).attempts.is_empty()).count();
    assert!(waiting > 10, "{waiting} high jobs still wait");
    life.drain().await;
}

/// A job that has to have the place of a warm VM gets it.
#[tokio::test]
async fn a_warm_vm_that_boots_gives_its_place_to_a_job() {
    let (_dir, _world, life) = begin(|config| {
        config.max_booting = 1;
        let spec = json!({"image": "warm", "kernel_args": "sim.agent=never", "readiness": {"deadline_ms": 600_000}});
        config.warm = vec![Warm { spec: JobSpec::from_value(&spec).unwrap(), count: 1 }];
    });
    let mut head = life.log.head();
    stoker_tests::within("the warm VM begun", head.wait_for(|head| *head >= 2)).await.unwrap();
    let id = life.enqueue(job("sim.healthy-ms=5")).await;
    life.reaches(id, Phase::Ready).await;
    life.drain().await;
}
