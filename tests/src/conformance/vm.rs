//! What every hypervisor driver must do. A [`Subject`] says how its guests are made; each function
//! is one requirement. They panic where a driver falls short, as tests do.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use stoker_schemas::VmId;
use stoker_worker::{
    console::{Capture, ConsoleEvent},
    ports::vm::{Hypervisor, Vm, VmError, VmExit, VmPlan, VmRecord},
};

use crate::{processes, within};

/// Between looks at something that gives no signal (another process' end).
const LOOK: Duration = Duration::from_millis(5);
/// Grace given to guests that are asked to stop.
const GRACE: Duration = Duration::from_secs(20);

/// A driver under test and guests for it.
#[async_trait]
pub trait Subject: Send + Sync {
    /// The driver as a newly started worker would make it.
    async fn driver(&self) -> Arc<dyn Hypervisor>;
    /// A VM that boots, writes to its console and stays.
    fn plan(&self, dir: &Path) -> VmPlan;
    /// A VM whose guest ends the VMM by itself.
    fn plan_that_exits(&self, dir: &Path) -> VmPlan;
    /// A VM that cannot be booted, by the VMM's own judgement.
    fn broken_plan(&self, dir: &Path) -> VmPlan;
    /// Ends the VMM without asking the driver, as a crash would.
    fn crash(&self, record: &VmRecord);
    /// Processes that work in this directory.
    fn processes_in(&self, dir: &Path) -> usize {
        processes::working_in(dir).len()
    }
    /// What VMs have outside their directories at this moment (control groups, mounts), by name.
    fn left_outside(&self) -> Vec<String> {
        Vec::new()
    }
    /// Whether a guest that is asked to stop does so by itself.
    fn stops_when_asked(&self) -> bool;
}

/// An attempt's directory.
///
/// # Panics
/// When it cannot be made.
pub fn attempt_dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// A VM id that no other test has.
pub fn fresh_vm() -> VmId {
    VmId(uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, uuid::Uuid::now_v7().as_bytes()))
}

async fn boot(subject: &dyn Subject, plan: VmPlan) -> Arc<dyn Vm> {
    within("boot", subject.driver().await.boot(plan)).await.unwrap()
}

async fn stop(vm: &Arc<dyn Vm>, grace: Duration) -> VmExit {
    within("stop", vm.stop(grace)).await.unwrap()
}

async fn exited(vm: &Arc<dyn Vm>) -> VmExit {
    within("exit", vm.exited()).await
}

async fn still_runs(vm: &Arc<dyn Vm>) -> bool {
    // One look is enough: an end that has happened is told at once.
    tokio::time::timeout(Duration::from_millis(50), vm.exited()).await.is_err()
}

async fn nothing_left(subject: &dyn Subject, dir: &Path) {
    let gone = async {
        // Looked for again and again: /proc tells nobody when a process that is not ours has ended.
        while subject.processes_in(dir) > 0 {
            tokio::time::sleep(LOOK).await;
        }
    };
    within("end of every process of the attempt", gone).await;
    let sockets: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "sock"))
        .collect();
    assert!(sockets.is_empty(), "left behind: {sockets:?}");
    assert_eq!(subject.left_outside(), Vec::<String>::new(), "left behind");
}

/// A booted guest is heard on its console, stops, and says the same about its end when asked again.
///
/// # Panics
/// When it does not.
pub async fn boots_speaks_and_stops(subject: &dyn Subject) {
    let dir = attempt_dir();
    let vm = boot(subject, subject.plan(dir.path())).await;
    let mut console = Capture::start(vm.console(), dir.path());
    let mut told = Vec::new();
    let up = async {
        while let Some(event) = console.events.recv().await {
            let up = matches!(event, ConsoleEvent::UnitStarted(_));
            told.push(event);
            if up {
                break;
            }
        }
    };
    within("a started unit on the console", up).await;
    assert_eq!(told.first(), Some(&ConsoleEvent::KernelStarted));
    assert!(matches!(told.last(), Some(ConsoleEvent::UnitStarted(_))), "{told:?}");
    assert!(still_runs(&vm).await);
    let exit = stop(&vm, Duration::ZERO).await;
    assert_eq!(exit.signal, Some(9), "{exit:?}");
    assert_eq!(stop(&vm, GRACE).await, exit, "stopping is idempotent");
    assert_eq!(exited(&vm).await, exit);
    console.finish().await;
    assert!(console.bytes() > 0);
    nothing_left(subject, dir.path()).await;
}

/// A guest that is asked nicely ends within the grace, or is killed after it.
///
/// # Panics
/// When it does not.
pub async fn stops_within_grace(subject: &dyn Subject) {
    let dir = attempt_dir();
    let vm = boot(subject, subject.plan(dir.path())).await;
    let mut console = Capture::start(vm.console(), dir.path());
    let up = async { while !matches!(console.events.recv().await, Some(ConsoleEvent::UnitStarted(_)) | None) {} };
    within("a started unit on the console", up).await;
    let grace = if subject.stops_when_asked() { GRACE } else { Duration::from_millis(200) };
    let exit = stop(&vm, grace).await;
    if subject.stops_when_asked() {
        assert_eq!(exit.code, Some(0), "{exit:?}");
    } else {
        assert_eq!(exit.signal, Some(9), "{exit:?}");
    }
    nothing_left(subject, dir.path()).await;
}

/// A guest that ends by itself is noticed, with the VMM's exit code in words.
///
/// # Panics
/// When it is not.
pub async fn exit_is_noticed(subject: &dyn Subject) {
    let dir = attempt_dir();
    let vm = boot(subject, subject.plan_that_exits(dir.path())).await;
    let exit = exited(&vm).await;
    assert_eq!((exit.code, exit.signal), (Some(0), None), "{exit:?}");
    assert!(exit.reason.contains("exit code 0: "), "{exit:?}");
    stop(&vm, GRACE).await;
    nothing_left(subject, dir.path()).await;
}

/// A VMM's sudden death is noticed, and its record means nothing afterwards.
///
/// # Panics
/// When it is not.
pub async fn crash_is_noticed(subject: &dyn Subject) {
    let dir = attempt_dir();
    let vm = boot(subject, subject.plan(dir.path())).await;
    subject.crash(&vm.record());
    let exit = exited(&vm).await;
    assert_eq!(exit.signal, Some(9), "{exit:?}");
    stop(&vm, GRACE).await;
    assert!(subject.driver().await.adopt(vm.record()).await.unwrap().is_none());
    nothing_left(subject, dir.path()).await;
}

/// A VM outlives the handle and the driver; a later worker finds it by its record and ends it.
///
/// # Panics
/// When it does not.
pub async fn adopted_after_a_restart(subject: &dyn Subject) {
    let dir = attempt_dir();
    let vm = boot(subject, subject.plan(dir.path())).await;
    let record = vm.record();
    drop(vm);
    let adopted = subject.driver().await.adopt(record.clone()).await.unwrap().unwrap();
    assert_eq!(adopted.record(), record);
    assert!(still_runs(&adopted).await);
    let mut console = Capture::start(adopted.console(), dir.path());
    assert_eq!(within("console of an adopted VM", console.events.recv()).await, Some(ConsoleEvent::KernelStarted));
    stop(&adopted, Duration::ZERO).await;
    assert!(subject.driver().await.adopt(record).await.unwrap().is_none(), "a dead VM was adopted");
    nothing_left(subject, dir.path()).await;
}

/// A record whose pid belongs to another process by now is not adopted, and that process lives on.
///
/// # Panics
/// When it is.
pub async fn reused_pid_is_not_adopted(subject: &dyn Subject) {
    let dir = attempt_dir();
    let vm = boot(subject, subject.plan(dir.path())).await;
    let record = VmRecord { start_ticks: vm.record().start_ticks + 1, ..vm.record() };
    assert!(subject.driver().await.adopt(record).await.unwrap().is_none());
    assert!(still_runs(&vm).await);
    stop(&vm, Duration::ZERO).await;
    nothing_left(subject, dir.path()).await;
}

/// What cannot boot says why, by type and in words, and leaves nothing.
///
/// # Panics
/// When it does not.
pub async fn refusal_is_typed_and_clean(subject: &dyn Subject) {
    let dir = attempt_dir();
    let outcome = within("refusal", subject.driver().await.boot(subject.broken_plan(dir.path()))).await;
    let error = outcome.err().unwrap();
    assert!(matches!(error, VmError::Refused { .. } | VmError::Died { .. }), "{error:?}");
    assert!(error.to_string().len() > 20, "says nothing: {error}");
    nothing_left(subject, dir.path()).await;
}

/// A boot that is given up on midway leaves no VMM.
///
/// # Panics
/// When it does.
pub async fn cancelled_boot_leaves_nothing(subject: &dyn Subject) {
    for micros in [1, 300, 1_000, 3_000, 8_000] {
        let dir = attempt_dir();
        let driver = subject.driver().await;
        let plan = subject.plan(dir.path());
        let id = plan.vm;
        if let Ok(booted) = tokio::time::timeout(Duration::from_micros(micros), driver.boot(plan)).await {
            stop(&booted.unwrap(), Duration::ZERO).await;
        }
        let gone = async {
            // As in `nothing_left`: nobody tells of its end.
            while subject.processes_in(dir.path()) > 0 {
                tokio::time::sleep(LOOK).await;
            }
        };
        within("end of the VMM of a cancelled boot", gone).await;
        // What the attempt does when it is removed.
        driver.clean_up(id).await.unwrap();
        assert_eq!(subject.left_outside(), Vec::<String>::new(), "left by a boot given up after {micros} us");
    }
}

/// VMs side by side have nothing in common.
///
/// # Panics
/// When one's end touches the other.
pub async fn two_are_independent(subject: &dyn Subject) {
    let (one_dir, other_dir) = (attempt_dir(), attempt_dir());
    let one = boot(subject, subject.plan(one_dir.path())).await;
    let other = boot(subject, subject.plan(other_dir.path())).await;
    assert_ne!(one.record(), other.record());
    stop(&one, Duration::ZERO).await;
    assert!(still_runs(&other).await);
    stop(&other, Duration::ZERO).await;
    nothing_left(subject, one_dir.path()).await;
    nothing_left(subject, other_dir.path()).await;
}
