//! VMs that go on from a template: each is somebody of its own, and a bad template costs nothing but
//! the time of a cold boot.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use stoker_schemas::{JobId, Phase};

use crate::stage::{Needs, Stage, Up, eventually};

const IMAGE: &str = "linux-minimal";

/// The one template, once it is complete.
async fn template(stage: &Stage) -> PathBuf {
    let store = stage.data().join("templates");
    eventually("a template", async || {
        let folders = fs::read_dir(&store).ok()?.flatten();
        folders.map(|entry| entry.path()).find(|folder| folder.join("template.json").exists())
    })
    .await
}

async fn ready(up: &mut Up) -> (JobId, Value) {
    let id = up.enqueue(&[IMAGE]).await;
    (id, up.reaches(id, Phase::Ready).await)
}

/// Whether the job's last VM is a copy, by what the log says.
fn is_copy(job: &Value) -> bool {
    let attempt = job["attempts"].as_array().unwrap().last().unwrap();
    let stages = attempt["stages"].as_array().unwrap();
    let spawned = stages.iter().find(|mark| mark["name"] == "spawned").unwrap();
    spawned["detail"].as_str().unwrap().contains("a copy of its image's template")
}

/// Stopped, a guest is ended by its agent, and is not killed after a while.
async fn ends_by_itself(up: &mut Up, id: JobId) {
    let (code, _, stderr) = up.stoker(&["stop", &id.to_string()]).await;
    assert_eq!(code, 0, "{stderr}");
    up.job(id, "is cleared away", |job| job["attempts"][0]["gone"].is_object()).await;
    let (_, console, _) = up.stoker(&["logs", "--console", &id.to_string()]).await;
    assert!(console.contains("stoker-agent: Restart"), "{console}");
}

/// What the guest says of itself, once its kernel has random numbers: booted without a source of
/// entropy that takes a while, and a copy is given some.
async fn identity(stage: &Stage, job: &Value) -> Value {
    let asked = async || Some(stage.ask(job, "/identity").await).filter(|identity| identity["random"].is_string());
    let mut identity = eventually("random numbers", asked).await;
    identity["address"] = job["attempts"][0]["proof"]["agent"].clone();
    identity
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_of_a_template_are_not_each_other() {
    let Some(stage) = Stage::open("copies_of_a_template_are_not_each_other", Needs::Qemu, IMAGE) else { return };
    let mut up = stage.up_prewarmed(&["--no-vm"]).await;
    let (first, job) = ready(&mut up).await;
    assert!(!is_copy(&job), "there was no template yet: {job:#}");
    template(&stage).await;
    let mut jobs = vec![(first, job)];
    for _ in 0..2 {
        let (id, job) = ready(&mut up).await;
        assert!(is_copy(&job), "{job:#}");
        jobs.push((id, job));
    }
    let mut identities = Vec::new();
    for (_, job) in &jobs {
        identities.push(identity(&stage, job).await);
    }
    for part in ["vmId", "hostname", "machineId", "mac", "random", "address"] {
        let different: BTreeSet<String> = identities.iter().map(|identity| identity[part].to_string()).collect();
        assert_eq!(different.len(), identities.len(), "{part}: {identities:#?}");
        assert!(!different.contains("null"), "{part}: {identities:#?}");
    }
    for ((id, job), identity) in jobs.iter().zip(&identities) {
        assert_eq!(job["attempts"][0]["vm"], identity["vmId"], "{id}");
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as f64;
        let off = now - identity["unixMs"].as_f64().unwrap();
        assert!(off.abs() < 60_000.0, "its clock is {off} ms off, which a template's would be in a minute");
    }
    for (id, _) in &jobs {
        ends_by_itself(&mut up, *id).await;
    }
    up.end().await;
    stage.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_needs_no_privileges() {
    let Some(stage) = Stage::open("a_copy_needs_no_privileges", Needs::Qemu, IMAGE) else { return };
    let mut up = stage.up_prewarmed(&["--no-vm", "--unprivileged"]).await;
    ready(&mut up).await;
    template(&stage).await;
    let (id, job) = ready(&mut up).await;
    assert!(is_copy(&job), "{job:#}");
    ends_by_itself(&mut up, id).await;
    up.end().await;
}

/// Damage that is seen before the VM starts, damage that QEMU sees, and damage that only shows when the
/// guest does not come up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_template_goes_and_the_vm_boots_cold() {
    let Some(stage) = Stage::open("a_damaged_template_goes_and_the_vm_boots_cold", Needs::Qemu, IMAGE) else { return };
    let mut up = stage.up_prewarmed(&["--no-vm"]).await;
    ready(&mut up).await;
    let cut_short = |folder: &Path| fs::write(folder.join("state"), "short").unwrap();
    let not_a_state = |folder: &Path| {
        fs::write(folder.join("state"), [7; 5_000]).unwrap();
        let hash = blake3::hash(&[7; 5_000]).to_hex().to_string();
        let note = fs::read(folder.join("template.json")).unwrap();
        let mut note: Value = serde_json::from_slice(&note).unwrap();
        note["state_blake3"] = hash.into();
        fs::write(folder.join("template.json"), note.to_string()).unwrap();
    };
    for (damage, said) in [
        (&cut_short as &dyn Fn(&Path), "its state is not what was saved"),
        (&not_a_state, "its template cannot be continued and goes; booting cold"),
    ] {
        let folder = template(&stage).await;
        damage(&folder);
        let (_, job) = ready(&mut up).await;
        assert!(!is_copy(&job), "{job:#}");
        assert_eq!(job["attempts"].as_array().map(Vec::len), Some(1), "{job:#}");
        assert!(stage.log().contains(said), "{said}: {}", stage.log());
    }
    // Nothing of this can be seen from outside: an empty memory is as long as a full one. Its guest falls
    // at its first instruction, which may be during the set-up or after it: then a second attempt is made.
    let folder = template(&stage).await;
    let memory = fs::File::options().write(true).open(folder.join("memory")).unwrap();
    let bytes = memory.metadata().unwrap().len();
    memory.set_len(0).and_then(|()| memory.set_len(bytes)).unwrap();
    let id = up.enqueue(&[IMAGE, "--deadline-ms=20000", "--retry-base-ms=50"]).await;
    let job = up.reaches(id, Phase::Ready).await;
    assert!(!is_copy(&job), "{job:#}");
    assert!(stage.log().matches("booting cold").count() == 2 || job["attempts"][1].is_object(), "{job:#}");
    up.end().await;
}
