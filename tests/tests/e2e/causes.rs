//! Faults made for real, each of which must be called by its name: in guests, on the host, in what
//! lies between them. (Two owners of one network are in `golden`.)

use serde_json::{Value, json};
use stoker_schemas::{JobId, Phase};

use crate::stage::{Needs, Stage, Up, eventually};
use crate::stranger::Stranger;

/// Enough for fourteen probe guests at once to come as far as they are going to come, and for a request to
/// run out of its own time then, on a busy machine.
const DEADLINE_MS: u64 = 15_000;
/// Longer than any deadline here.
const NEVER: &str = "probe.fault=slow-boot-ms=60000";

const OF_TODAY: &str = "openssl req -x509 -newkey ed25519 -nodes -subj /CN=x -days 2 -keyout /run/k -out /run/c";
const LOOKED_AT: &str = "openssl verify -CAfile /run/c /run/c";

/// A job of the probe guest with one try.
fn probe(fault: &str) -> Value {
    let args = if fault.is_empty() { String::new() } else { format!("probe.fault={fault}") };
    json!({"image": "probe", "kernel_args": args})
}

/// The same with more fields.
fn with(mut job: Value, fields: Value) -> Value {
    for (key, value) in fields.as_object().unwrap() {
        job[key] = value.clone();
    }
    job
}

/// Enqueues it; unless it says otherwise with one try and the deadline above.
async fn enqueue(up: &mut Up, job: &Value) -> JobId {
    let mut job = with(job.clone(), json!({"retry": {"max_attempts": 1}}));
    if job["readiness"]["deadline_ms"].is_null() {
        job["readiness"]["deadline_ms"] = DEADLINE_MS.into();
    }
    let url = format!("{}/v1/jobs", up.server().await);
    let answer = reqwest::Client::new().post(url).json(&job).send().await.unwrap();
    let (status, answer) = (answer.status(), answer.text().await.unwrap());
    assert_eq!(status, 202, "{job}: {answer}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    serde_json::from_value(answer["jobs"][0]["id"].clone()).unwrap()
}

/// What was said of a job's end: its cause, and everything else.
async fn diagnosis(up: &mut Up, id: JobId) -> (String, Value) {
    let job = up.reaches(id, Phase::Dead).await;
    let found = job["attempts"].as_array().unwrap().last().unwrap()["diagnosis"].clone();
    (found["cause"].as_str().unwrap_or_default().to_owned(), found)
}

/// All at once, each under the cause it must be given. Every difference is told, not just the first.
async fn assert_named(up: &mut Up, wanted: &[(&str, JobId)]) {
    let (mut wrong, mut evidence) = (Vec::new(), Vec::new());
    for (cause, id) in wanted {
        let (found, whole) = diagnosis(up, *id).await;
        assert!(!whole["remedy"].as_str().unwrap_or_default().is_empty(), "{cause} says what to do");
        if found != *cause {
            wrong.push(format!("{cause} -> {found}"));
            evidence.push(whole);
        }
    }
    assert!(wrong.is_empty(), "wrongly named: {wrong:?}\n{evidence:#?}");
}

async fn end(stage: &Stage, mut up: Up, wanted: &[(&str, JobId)]) {
    for (cause, id) in wanted {
        up.job(*id, &format!("({cause}) is cleared away"), |job| {
            // An attempt that never made a VM has nothing to clear away but itself.
            job["attempts"].as_array().unwrap().iter().all(|attempt| attempt["gone"].is_object())
        })
        .await;
    }
    up.end().await;
    stage.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_of_guests_are_named() {
    let Some(stage) = Stage::open("faults_of_guests_are_named", Needs::Qemu, "probe") else { return };
    let mut up = stage.up(&["--no-vm"]).await;
    let faults = [
        ("no_dhcp_request", probe("no-dhcp")),
        ("dhcp_unanswered", probe("dhcp-silent-after-offer")),
        ("agent_not_listening", probe("agent-down")),
        ("agent_hanging", probe("hang")),
        ("agent_unhealthy", probe("status=503")),
        ("wrong_body", with(probe("body=no"), json!({"readiness": {"http": {"body_contains": "yes"}}}))),
        ("wrong_vm", probe("wrong-id")),
        ("unit_failed", probe("unit-failed=VM Browser OAuth Agent".replace(' ', "+").as_str())),
        ("unit_missing", with(probe(""), json!({"readiness": {"units": ["Nobody Knows"]}}))),
        ("kernel_panic", probe("panic")),
        // The agent is there for a moment: without a unit that never comes it could be called ready.
        ("guest_out_of_memory", with(probe("oom"), json!({"readiness": {"units": ["Nobody Knows"]}}))),
        ("emergency_mode", probe("emergency")),
        ("guest_exited", probe("exit")),
        ("slow_boot", json!({"image": "probe", "kernel_args": NEVER})),
    ];
    let mut wanted = Vec::new();
    for (cause, job) in &faults {
        wanted.push((*cause, enqueue(&mut up, job).await));
    }
    assert_named(&mut up, &wanted).await;
    end(&stage, up, &wanted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_of_hosts_are_named() {
    let Some(stage) = Stage::open("faults_of_hosts_are_named", Needs::Qemu, "probe") else { return };
    let stage = stage
        .with_image_like("probe", "probe-static", |manifest| {
            manifest["network"] = "static".into();
            manifest["allow_static"] = true.into();
        })
        .with_image_like("probe", "no-kernel", |manifest| manifest["kernel"] = "image.json".into())
        .with_image_like("probe", "incomplete", |manifest| manifest["initrd"] = "initrd.cpio".into())
        .with_image_like("probe", "damaged", |manifest| {
            manifest["digests"]["probe.elf"] = format!("sha256:{}", "0".repeat(64)).into();
        });
    let mut up = stage.up(&["--no-vm"]).await;
    let network = json!({"static": {"address": "10.9.8.7", "prefix": 24, "gateway": "10.9.8.1"}});
    let elsewhere = json!({"image": "probe-static", "network": network});
    let mut wanted = Vec::new();
    for (cause, job) in [
        ("hypervisor_not_started", json!({"image": "no-kernel"})),
        ("image_invalid", json!({"image": "nobody-has-it"})),
        ("image_invalid", json!({"image": "incomplete"})),
        ("image_invalid", json!({"image": "damaged"})),
        ("host_resource", elsewhere),
    ] {
        wanted.push((cause, enqueue(&mut up, &job).await));
    }
    assert_named(&mut up, &wanted).await;

    // Taken off the bridge before the guest asks for its address.
    let slow = enqueue(&mut up, &probe("slow-boot-ms=2500")).await;
    wanted.push(("tap_not_bridged", slow));
    let tap = eventually("a tap", async || stage.taps().into_iter().next()).await;
    // Once the worker has looked at the tap itself, and before the guest asks for its address.
    up.job(slow, "runs", |job| job["attempts"][0]["stages"].to_string().contains("kernel_started")).await;
    stage.ip(&["link", "set", &tap, "nomaster"]);
    assert_named(&mut up, &wanted[5..]).await;

    // The VMM killed under a booting guest.
    let long = with(probe("slow-boot-ms=60000"), json!({"readiness": {"deadline_ms": 60_000}}));
    let id = enqueue(&mut up, &long).await;
    wanted.push(("hypervisor_crashed", id));
    // One that ends before it runs its guest was never started.
    up.job(id, "runs", |job| job["attempts"][0]["stages"].to_string().contains("kernel_started")).await;
    stage.kill_vmm().await;
    assert_named(&mut up, &wanted[6..]).await;

    // Worker and VMM gone together.
    let id = enqueue(&mut up, &long).await;
    eventually("a VMM starts", async || (!stage.vmms().is_empty()).then_some(())).await;
    up.crash().await;
    stage.kill_vmm().await;
    let mut up = stage.up(&["--no-vm"]).await;
    wanted.push(("interrupted", id));
    assert_named(&mut up, &wanted[7..]).await;
    end(&stage, up, &wanted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_firecracker_refuses_is_named() {
    let Some(stage) = Stage::open("what_firecracker_refuses_is_named", Needs::Firecracker, "probe") else { return };
    let stage = stage.with_image_like("probe", "no-kernel", |manifest| manifest["kernel"] = "image.json".into());
    let mut up = stage.up(&["--no-vm"]).await;
    let wanted = [("hypervisor_refused", enqueue(&mut up, &json!({"image": "no-kernel"})).await)];
    assert_named(&mut up, &wanted).await;
    end(&stage, up, &wanted).await;
}

/// In the words of a real kernel and a real systemd.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_of_a_whole_linux_are_named() {
    let Some(stage) = Stage::open("faults_of_a_whole_linux_are_named", Needs::Qemu, "golden") else { return };
    let stage = stage.with_image_like("linux-minimal", "no-initrd", |manifest| {
        manifest["initrd"] = Value::Null;
    });
    let mut up = stage.up(&["--no-vm"]).await;
    let golden = |args: &str, deadline_ms: u64, units: &[&str]| {
        json!({
            "image": "golden", "memory_mib": 512, "kernel_args": args,
            "readiness": {"deadline_ms": deadline_ms, "units": units},
        })
    };
    let command = "Command from Kernel Command Line";
    let runs = |line: &str| {
        format!("systemd.run=\"{line}\" systemd.run_failure_action=none systemd.journald.forward_to_console=1")
    };
    let faults = [
        // "VFS: Unable to mount root fs".
        ("kernel_panic", json!({"image": "no-initrd", "readiness": {"deadline_ms": 60_000}})),
        // "Attempted to kill init!".
        ("kernel_panic", golden("init=/nowhere", 60_000, &[])),
        ("emergency_mode", golden("systemd.unit=emergency.target", 90_000, &[])),
        ("unit_failed", golden("systemd.run=/bin/false systemd.run_failure_action=none", 90_000, &[command])),
        ("slow_boot", golden("systemd.run=\"/bin/sleep 600\"", 60_000, &[command])),
    ];
    let later = [
        // More than any disk here holds.
        ("guest_disk_full", golden(&runs("/usr/bin/fallocate -l 1T /fill"), 90_000, &[command])),
        // A certificate of today, looked at years ago.
        (
            "clock_wrong",
            golden(&runs(&format!("/bin/sh -c '{OF_TODAY}; date -s 2001-01-01; {LOOKED_AT}'")), 90_000, &[command]),
        ),
    ];
    // Not all at once: each is a whole Linux in software emulation, and their deadlines run.
    let mut wanted = Vec::new();
    for some in [&faults[..], &later[..]] {
        let before = wanted.len();
        for (cause, job) in some {
            wanted.push((*cause, enqueue(&mut up, job).await));
        }
        assert_named(&mut up, &wanted[before..]).await;
    }
    end(&stage, up, &wanted).await;
}

/// A machine on the VMs' network that has, unasked, the address of the next VM. Both answer whoever looks for
/// the address, so the VM is one that does not: a busy one would lose some of the time only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_another_machine_has_is_named() {
    let test = "an_address_that_another_machine_has_is_named";
    let Some(stage) = Stage::open(test, Needs::Qemu, "probe") else { return };
    let mut up = stage.up(&["--no-vm"]).await;
    // Its network is there by then.
    up.server().await;
    let stranger = Stranger::arrives(&stage, "192.168.100.2/24");
    // The server has told the host whose address it is: until the host asks anew, it knows better.
    let quiet = with(probe("no-arp,agent-delay-ms=600000"), json!({"readiness": {"deadline_ms": 20_000}}));
    let wanted = [("address_in_use", enqueue(&mut up, &quiet).await)];
    assert_named(&mut up, &wanted).await;
    drop(stranger);
    end(&stage, up, &wanted).await;
}
