//! `stoker up --once`: everything in one process, a first VM, its report, and nothing left.

use stoker_tests::setting;

use crate::stage::{Needs, Stage};

/// Runs to the end; the report, which must say that the VM was up.
async fn once(stage: &Stage, arguments: &[&str]) -> String {
    let up = stage.up(&[&["--once"], arguments].concat()).await;
    let (code, text) = up.ended().await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("**READY in "), "{text}");
    assert!(text.contains("| HTTP answer | ✓"), "{text}");
    assert!(text.contains("| unit VM Browser OAuth Agent | ✓"), "{text}");
    stage.assert_nothing_left();
    stage.assert_nothing_runs();
    text
}

fn has_lease(text: &str) -> bool {
    text.lines().any(|line| line.starts_with("| DHCP lease | ✓") && line.contains("(192.168.100."))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn linux_in_qemu_is_proven_ready() {
    let Some(stage) = Stage::open("linux_in_qemu_is_proven_ready", Needs::Qemu, "linux-minimal") else { return };
    let text = once(&stage, &[]).await;
    assert!(has_lease(&text), "{text}");
    assert!(text.contains("| unit Network Configuration | ✓"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_network_does_without_privileges() {
    let test = "a_user_network_does_without_privileges";
    let Some(stage) = Stage::open(test, Needs::Qemu, "linux-minimal") else { return };
    let text = once(&stage, &["--unprivileged"]).await;
    assert!(text.contains("user network (as asked)"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_user_gets_the_user_network_unasked() {
    let test = "a_plain_user_gets_the_user_network_unasked";
    let Some(stage) = Stage::open(test, Needs::Qemu, "linux-minimal") else { return };
    let stage = stage.for_nobody("linux-minimal");
    let text = once(&stage, &[]).await;
    assert!(text.contains("user network (not root)"), "{text}");
    assert!(text.contains("identity | ✓"), "{text}");
    stage.assert_only_nobodys_files();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_user_is_told_whose_the_data_folder_is() {
    let test = "a_plain_user_is_told_whose_the_data_folder_is";
    let Some(stage) = Stage::open(test, Needs::Qemu, "linux-minimal") else { return };
    let stage = stage.for_nobody("linux-minimal");
    let foreign = stage.leave_data_of_root();
    let (code, _) = stage.up(&["--once"]).await.ended().await;
    assert_eq!(code, 3);
    let said = stage.log();
    assert!(said.contains(&format!("{} cannot be used: Permission denied", foreign.display())), "{said}");
    assert!(said.contains("another with --data"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_goes_through_rabbitmq() {
    let test = "a_job_goes_through_rabbitmq";
    let Some(url) = setting(test, "STOKER_TEST_AMQP_URL") else { return };
    let Some(stage) = Stage::open(test, Needs::Qemu, "linux-minimal") else { return };
    // A pool of its own: other tests work on the same broker.
    let text = once(&stage, &["--broker", url.to_str().unwrap(), "--pool", &stage.name]).await;
    assert!(has_lease(&text), "{text}");
    assert!(!text.contains("guest:guest"), "a password is shown: {text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn firecracker_is_proven_ready() {
    let Some(stage) = Stage::open("firecracker_is_proven_ready", Needs::Firecracker, "probe") else { return };
    let text = once(&stage, &[]).await;
    assert!(has_lease(&text), "{text}");
}
