//! A hundred boots and stops in a row, half of them killed at random moments: nothing stays. The
//! moments come from a printed seed; STOKER_TEST_SEED plays them again.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use stoker_schemas::JobId;
use stoker_worker::vm::{cgroup::Cgroups, firecracker::jail::DEFAULT_CGROUP_PARENT};

use crate::stage::{Needs, Stage, Up, eventually};

const BOOTS: usize = 100;
/// A boot takes some 60 ms in all; kills fall before, in and after it.
const KILL_WITHIN_MS: u64 = 120;

/// xorshift64: a sequence that the seed alone decides.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

fn seed() -> u64 {
    let given = std::env::var("STOKER_TEST_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| u64::try_from(uuid::Uuid::now_v7().as_u128() & u128::from(u64::MAX)).unwrap()).max(1)
}

/// What these VMs still have on the host beyond the test's own namespace and folder.
fn left_of(vms: &[String], stage: &Stage) -> Vec<String> {
    let groups = vms.iter().flat_map(|vm| Cgroups::detect().folders(DEFAULT_CGROUP_PARENT, vm));
    let groups = groups.filter(|group| group.exists()).map(|group| group.display().to_string());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let data = stage.data().display().to_string();
    let mounts = mounts.lines().filter(|line| line.contains(&data)).map(str::to_owned);
    groups.chain(mounts).chain(stage.rules_with_taps()).collect()
}

/// Waits until the job is over and all its VMs are gone; their names.
async fn cleared(up: &mut Up, id: JobId) -> Vec<String> {
    let attempts = |job: &Value| job["attempts"].as_array().cloned().unwrap_or_default();
    let over = |job: &Value| {
        let ended = matches!(job["phase"].as_str(), Some("stopped" | "cancelled" | "dead"));
        ended && attempts(job).iter().all(|attempt| attempt["gone"].is_object())
    };
    let job = up.job(id, "is over and cleared away", over).await;
    attempts(&job).iter().map(|attempt| attempt["vm"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_boots_half_of_them_killed_leave_nothing() {
    let test = "a_hundred_boots_half_of_them_killed_leave_nothing";
    let Some(stage) = Stage::open(test, Needs::Firecracker, "probe") else { return };
    let seed = seed();
    eprintln!("STOKER_TEST_SEED={seed}");
    let mut dice = Dice(seed);
    let mut up = stage.up(&["--no-vm"]).await;
    let (mut killed, mut vms) = (0, Vec::new());
    for _ in 0..BOOTS {
        let id = up.enqueue(&["probe", "--max-attempts", "1"]).await;
        if dice.roll(2) == 0 {
            up.job(id, "is ready", |job| job["phase"] == "ready").await;
            let (code, _, stderr) = up.stoker(&["stop", &id.to_string()]).await;
            assert_eq!(code, 0, "{stderr}");
        } else {
            eventually("a VMM starts", async || (!stage.vmms().is_empty()).then_some(())).await;
            // The random moment itself, not a wait for something.
            tokio::time::sleep(Duration::from_millis(dice.roll(KILL_WITHIN_MS))).await;
            let vmms = stage.vmms();
            for (pid, _) in &vmms {
                let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).stderr(Stdio::null()).status();
                killed += 1;
            }
            // Not seen for a moment, between the jailer and what it becomes: then it lives on, and is stopped.
            if vmms.is_empty() {
                up.job(id, "is ready", |job| job["phase"] == "ready").await;
                let (code, _, stderr) = up.stoker(&["stop", &id.to_string()]).await;
                assert_eq!(code, 0, "{stderr}");
            }
        }
        vms.extend(cleared(&mut up, id).await);
    }
    eprintln!("{killed} of {BOOTS} killed");
    stage.assert_nothing_left();
    assert_eq!(left_of(&vms, &stage), Vec::<String>::new());
    // Or this would look in the wrong place.
    assert!(vms.len() >= BOOTS, "{} VMs", vms.len());
    up.end().await;
}
