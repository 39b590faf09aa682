//! A KVM that does not do what a boot needs. QEMU's place is taken by a script that lets TCG play KVM, so that
//! nothing depends on what this machine's own KVM can do.

use std::time::Duration;

use serde_json::Value;
use stoker_schemas::Phase;

use crate::stage::{Needs, Stage};

/// Starts QEMU with what `play` makes of the accelerator: `$kvm` is set where KVM is asked for, `$trial` where the
/// guest is the trial's. It adds to `args`.
fn script(play: &str) -> String {
    format!(
        r#"
args=() kvm= trial=
for arg in "$@"; do
  case "$arg" in
    kvm) kvm=yes args+=(tcg) ;;
    host) args+=(qemu64) ;;
    *probe.trial*) trial=yes args+=("$arg") ;;
    *) args+=("$arg") ;;
  esac
done
{play}
exec qemu-system-x86_64 "${{args[@]}}"
"#
    )
}

/// About 4 million instructions a second: 2^8 ns for each, kept to the host's clock.
const INTERPRETS: &str = r#"[[ -z $kvm ]] || args+=(-icount shift=8,align=on)"#;
/// The trial runs well; any other guest's processor stands still.
const SILENT: &str = r#"[[ -z $kvm || -n $trial ]] || args+=(-S)"#;
/// The trial runs well; QEMU ends at once with any other guest.
const DIES: &str = r#"[[ -z $kvm || -n $trial ]] || { echo "KVM internal error" >&2; exit 1; }"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kvm_that_interprets_is_not_taken() {
    let Some(stage) = Stage::open("a_kvm_that_interprets_is_not_taken", Needs::Qemu, "linux-minimal") else { return };
    let stage = stage.with_qemu(&script(INTERPRETS));
    let (code, text) = stage.up(&["--once"]).await.ended().await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("TCG (KVM is too slow here: a trial guest ran at "), "{text}");
    assert!(text.contains("**READY in ") && text.contains("attempt 1: the agent answered"), "{text}");
    stage.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kvm_is_used_where_it_is_set_whatever_a_trial_would_say() {
    let test = "kvm_is_used_where_it_is_set_whatever_a_trial_would_say";
    let Some(stage) = Stage::open(test, Needs::Qemu, "linux-minimal") else { return };
    let stage = stage.with_qemu(&script(INTERPRETS));
    let (code, text) = stage.up(&["--once", "--no-vm", "--accel", "tcg"]).await.ended().await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("TCG (as set)"), "{text}");
    let (code, text) = stage.up(&["--once", "--no-vm", "--accel", "kvm"]).await.ended().await;
    match std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => assert!(code == 0 && text.contains("KVM (as set)"), "{text}"),
        Err(_) => {
            let log = stage.log();
            assert!(code == 3 && log.contains("/dev/kvm: ") && log.contains("set it to auto or tcg"), "{log}");
        }
    }
}

/// Boots on a host whose KVM passes the trial and does not run the image's kernel.
async fn goes_on_with_tcg(test: &str, kvm: &str) {
    let Some(stage) = Stage::open(test, Needs::Qemu, "linux-minimal") else { return };
    let stage = stage.with_qemu(&script(kvm));
    let mut up = stage.up(&["--no-vm"]).await;
    let greeting = up.says("dashboard").await;
    assert!(greeting.contains("KVM (a trial guest ran at "), "{greeting}");
    let id = up.enqueue(&["linux-minimal", "--memory-mib", "128"]).await;
    let job = up.reaches(id, Phase::Ready).await;
    assert_eq!(job["attempts"].as_array().map(Vec::len), Some(1), "it costs no attempt: {job:#}");
    let spawned = stage_of(&job, "spawned");
    assert!(spawned["detail"].as_str().unwrap().contains("without a console byte with KVM"), "{job:#}");

    // The host says so, once, and boots that kernel with TCG from now on.
    let (_, hosts, _) = up.stoker(&["hosts", "--json"]).await;
    assert!(hosts.contains("TCG for linux-minimal/vmlinux, silent with KVM"), "{hosts}");
    let second = up.enqueue(&["linux-minimal", "--memory-mib", "128"]).await;
    let job = up.reaches(second, Phase::Ready).await;
    assert!(!stage_of(&job, "spawned")["detail"].as_str().unwrap().contains("KVM"), "{job:#}");
    let url = format!("{}/v1/log?kind=host.hypervisor-changed", up.server().await);
    let log = reqwest::get(url).await.unwrap().text().await.unwrap();
    assert_eq!(log.matches("boots with TCG").count(), 1, "{log}");
    for id in [id, second] {
        up.stoker(&["stop", &id.to_string()]).await;
        up.job(id, "is cleared away", |job| job["attempts"][0]["gone"] != Value::Null).await;
    }
    up.end().await;
    assert_eq!(stage.log().matches("boots it with TCG until it is restarted").count(), 1, "{}", stage.log());

    // The next worker knows it.
    let mut up = stage.up(&["--no-vm"]).await;
    let greeting = up.says("dashboard").await;
    assert!(greeting.contains("TCG for linux-minimal/vmlinux, silent with KVM"), "{greeting}");
    up.end().await;
    stage.assert_nothing_left();
}

fn stage_of(job: &Value, name: &str) -> Value {
    let stages = job["attempts"][0]["stages"].as_array().unwrap();
    stages.iter().find(|stage| stage["name"] == name).unwrap_or_else(|| panic!("{name}: {job:#}")).clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kernel_that_is_silent_with_kvm_boots_with_tcg() {
    goes_on_with_tcg("a_kernel_that_is_silent_with_kvm_boots_with_tcg", SILENT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vmm_that_ends_with_kvm_is_started_with_tcg() {
    goes_on_with_tcg("a_vmm_that_ends_with_kvm_is_started_with_tcg", DIES).await;
}

/// Any guest's processor stands still, whatever runs it; only the trial's does not.
const SILENT_WITH_BOTH: &str = r#"[[ -n $trial || $1 != -name ]] || args+=(-S)"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kernel_that_is_silent_with_both_is_named() {
    let Some(stage) = Stage::open("a_kernel_that_is_silent_with_both_is_named", Needs::Qemu, "probe") else { return };
    let stage = stage.with_qemu(&script(SILENT_WITH_BOTH));
    let mut up = stage.up(&["--no-vm"]).await;
    let id = up.enqueue(&["probe", "--deadline-ms", "2000", "--max-attempts", "1"]).await;
    let job = up.reaches(id, Phase::Dead).await;
    let diagnosis = &job["attempts"][0]["diagnosis"];
    assert_eq!(diagnosis["cause"], "guest_silent", "{job:#}");
    let evidence = diagnosis["evidence"].to_string();
    for seen in ["accelerator: TCG, after 5.", "kernel line: console=ttyS0", "console: 0 bytes", "hypervisor state: "] {
        assert!(evidence.contains(seen), "{seen}: {job:#}");
    }
    // What is silent with both says nothing of KVM.
    let (_, hosts, _) = up.stoker(&["hosts", "--json"]).await;
    assert!(!hosts.contains("silent with KVM"), "{hosts}");
    up.job(id, "is cleared away", |job| job["attempts"][0]["gone"] != Value::Null).await;
    up.end().await;
    stage.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_that_kvm_took_is_given_back() {
    let Some(stage) = Stage::open("time_that_kvm_took_is_given_back", Needs::Qemu, "probe") else { return };
    let stage = stage.with_qemu(&script(SILENT));
    let mut up = stage.up(&["--no-vm"]).await;
    // KVM's silence alone takes longer than the job's whole deadline.
    let deadline = Duration::from_secs(4);
    let id = up.enqueue(&["probe", "--deadline-ms", &deadline.as_millis().to_string()]).await;
    let job = up.reaches(id, Phase::Ready).await;
    let took = job["attempts"][0]["took_ms"].as_u64().unwrap();
    assert!(u128::from(took) > deadline.as_millis(), "{job:#}");
    assert_eq!(job["attempts"].as_array().map(Vec::len), Some(1), "{job:#}");
    up.end().await;
}
