//! QEMU on a host whose KVM does not run the image's kernel: a script in its place starts a guest that stands
//! still where KVM is asked for, and real TCG else.

use std::{path::Path, sync::Arc, time::Duration};

use stoker_tests::{
    conformance::vm::{attempt_dir, fresh_vm},
    processes, within,
};
use stoker_worker::{
    ports::vm::{Hypervisor, VmPlan},
    vm::{Accel, AccelDecision, Here, Kernels, Qemu, QemuOptions, Speed},
};

use crate::real::{image, qemu_is_there, user_network};

/// A guest that never runs under what it takes for KVM.
const SCRIPT: &str = r#"#!/bin/bash
args=()
for arg in "$@"; do
  case "$arg" in
    kvm) args+=(tcg -S) ;;
    host) args+=(qemu64) ;;
    *) args+=("$arg") ;;
  esac
done
exec qemu-system-x86_64 "${args[@]}"
"#;

struct Host {
    driver: Qemu,
    kernels: Kernels,
    _tools: tempfile::TempDir,
}

async fn host() -> Host {
    let tools = tempfile::tempdir().unwrap();
    let program = tools.path().join("qemu");
    std::fs::write(&program, SCRIPT).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let decision = AccelDecision::judge(Ok(Speed { mips: 2_400, exit_us: Some(4) }));
    assert_eq!(decision.accel, Accel::Kvm);
    let kernels = Kernels::new(decision, None);
    let driver = Qemu::new(&program, Arc::new(Here), QemuOptions::with_accel(kernels.clone())).await.unwrap();
    Host { driver, kernels, _tools: tools }
}

fn plan(test: &str, dir: &Path) -> Option<VmPlan> {
    let image = image(test, "probe").filter(|_| qemu_is_there(test))?;
    Some(VmPlan { vm: fresh_vm(), ..image.plan(dir, "", user_network) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_boot_cut_off_while_kvm_is_judged_leaves_nothing() {
    let dir = attempt_dir();
    let Some(plan) = plan("accel::a_boot_cut_off_while_kvm_is_judged_leaves_nothing", dir.path()) else { return };
    let host = host().await;
    let folder = dir.path().canonicalize().unwrap();
    {
        let mut boot = std::pin::pin!(host.driver.boot(plan));
        within("the VMM is there", async {
            loop {
                // Its socket: QEMU itself, no more the script that starts it.
                if folder.join("qmp.sock").exists() {
                    return;
                }
                assert!(tokio::time::timeout(Duration::from_millis(10), &mut boot).await.is_err(), "it never speaks");
            }
        })
        .await;
        assert!(!processes::working_in(&folder).is_empty());
    }
    within("the VMM is gone", async {
        while !processes::working_in(&folder).is_empty() {
            // Another process's end, which sends us no signal.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adopted_vm_still_knows_what_runs_it() {
    let dir = attempt_dir();
    let Some(plan) = plan("accel::an_adopted_vm_still_knows_what_runs_it", dir.path()) else { return };
    let host = host().await;
    let vm = host.driver.boot(plan.clone()).await.unwrap();
    assert!(vm.lost() >= Duration::from_secs(5), "KVM had its time: {:?}", vm.lost());
    let adopted = host.driver.adopt(vm.record()).await.unwrap().unwrap();
    assert_eq!(adopted.accelerator().as_deref(), Some("TCG"));
    let mut changes = host.kernels.changes();
    within("the kernel is known", async { changes.wait_for(Option::is_some).await.unwrap().clone() }).await;
    assert_eq!(host.kernels.accel(&plan.kernel), Accel::Tcg);
    vm.stop(Duration::ZERO).await.unwrap();
}
