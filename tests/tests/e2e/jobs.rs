//! What users see of jobs that cannot work.

use stoker_schemas::Phase;

use crate::stage::{Needs, Stage};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kernel_line_that_configures_the_network_is_refused() {
    let test = "a_kernel_line_that_configures_the_network_is_refused";
    let Some(stage) = Stage::open(test, Needs::Qemu, "probe") else { return };
    let mut up = stage.up(&["--no-vm"]).await;
    let static_ip = "ip=192.168.100.50::192.168.100.1:255.255.255.0::eth0:off";
    let (code, stdout, stderr) = up.stoker(&["enqueue", "probe", "--kernel-args", static_ip]).await;
    assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
    assert!(stderr.contains("ip=") && stderr.contains("DHCP"), "no reason given: {stderr}");
    let (code, stdout, stderr) = up.stoker(&["list", "--json"]).await;
    assert_eq!(code, 0, "{stderr}");
    assert!(!stdout.contains("probe"), "enqueued all the same: {stdout}");
    up.end().await;
    stage.assert_nothing_left();
}

async fn a_broken_agent(test: &str, driver: Needs) {
    let Some(stage) = Stage::open(test, driver, "probe") else { return };
    let mut up = stage.up(&["--no-vm"]).await;
    // Long enough for a slow machine to come to the agent, short enough to wait for twice.
    let flags = ["--deadline-ms", "5000", "--max-attempts", "2", "--retry-base-ms", "50"];
    let id = up.enqueue(&[&["probe", "--kernel-args", "probe.fault=agent-down"], &flags[..]].concat()).await;
    let job = up.reaches(id, Phase::Dead).await;
    assert_eq!(job["attempts"].as_array().unwrap().len(), 2, "{job:#}");
    assert_eq!(job["dead"]["reason"], "attempts_exhausted", "{job:#}");
    let (code, report, stderr) = up.stoker(&["report", &id.to_string()]).await;
    assert_eq!(code, 0, "{stderr}");
    assert!(report.contains("agent not listening"), "{report}");
    assert!(report.contains("attempt 2"), "{report}");
    // Dead is said before the last VM is cleared away; that it went is said when it has.
    up.job(id, "is cleared away", |job| job["attempts"][1]["gone"].is_object()).await;
    stage.assert_nothing_left();
    up.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_agent_ends_dead_with_its_cause_in_qemu() {
    a_broken_agent("a_broken_agent_ends_dead_with_its_cause_in_qemu", Needs::Qemu).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_agent_ends_dead_with_its_cause_in_firecracker() {
    a_broken_agent("a_broken_agent_ends_dead_with_its_cause_in_firecracker", Needs::Firecracker).await;
}
