//! The jailer, with real VMs: the hypervisor suite again, and what a jail must be beside that. Each
//! test has a network namespace, a control group and a range of users of its own.

use std::{
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use stoker_schemas::{VmId, image::Driver};
use stoker_tests::{
    conformance::vm::{Subject, attempt_dir},
    setting, skipped, within,
};
use stoker_worker::{
    console::{Capture, ConsoleEvent},
    dirs::Dirs,
    net::Namespace,
    ports::{
        net::Nic,
        vm::{Disk, DiskFormat, Hypervisor, VmError, VmPlan, VmRecord},
    },
    reaper,
    vm::{Firecracker, FirecrackerOptions, Jailer, Spawner, cgroup::Cgroups, firecracker::jail::DEFAULT_UID_BASE},
};

use crate::{
    conformance,
    real::{Image, image, kill_9},
    sandbox::Sandbox,
};

/// Users of one test; tests run side by side.
const USERS_PER_TEST: u32 = 1_000;

/// A place for jailed VMs, gone with the test.
struct Jailed {
    binary: PathBuf,
    jailer: Jailer,
    image: Image,
    sandbox: Sandbox,
    next_user: AtomicU32,
}

struct InNamespace(Namespace);

#[async_trait]
impl Spawner for InNamespace {
    async fn spawn(&self, mut command: Command) -> io::Result<Child> {
        self.0.run(move || command.spawn()).await
    }
}

async fn subject(test: &str) -> Option<Jailed> {
    static TESTS: AtomicU32 = AtomicU32::new(1);
    let binary = setting(test, "STOKER_TEST_FIRECRACKER")?;
    let program = binary.with_file_name("jailer");
    if !program.is_file() {
        skipped(test, &format!("{} is not there", program.display()));
        return None;
    }
    let image = image(test, "probe")?;
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        skipped(test, &format!("/dev/kvm: {error}"));
        return None;
    }
    let sandbox = Sandbox::open(test).await?;
    let jailer = Jailer { program, cgroups: Cgroups::detect(), cgroup_parent: sandbox.name.clone() };
    let first = DEFAULT_UID_BASE + TESTS.fetch_add(1, Ordering::Relaxed) * USERS_PER_TEST;
    Some(Jailed { binary, jailer, image, sandbox, next_user: first.into() })
}

impl Jailed {
    async fn firecracker(&self) -> Arc<dyn Hypervisor> {
        let spawner = Arc::new(InNamespace(self.sandbox.namespace.clone()));
        let options = FirecrackerOptions { jailer: Some(self.jailer.clone()), ..FirecrackerOptions::default() };
        Arc::new(Firecracker::new(&self.binary, spawner, options).await.unwrap())
    }

    fn plan_with(&self, dir: &Path, args: &str) -> VmPlan {
        let user = self.next_user.fetch_add(1, Ordering::Relaxed);
        let plan = self.image.plan(dir, args, |vm| Nic::Tap { name: vm.tap(), mac: vm.mac() });
        // A jailed VMM may not make its tap.
        let (tap, user_text) = (plan.vm.tap(), user.to_string());
        self.sandbox.ip(&["tuntap", "add", "dev", &tap, "mode", "tap", "vnet_hdr", "user", &user_text]);
        self.sandbox.ip(&["link", "set", &tap, "up"]);
        VmPlan { owner: Some(user), ..plan }
    }

    /// Boots in a worker's folder of attempts and waits for its first unit.
    async fn boot(&self, plan: VmPlan) -> Arc<dyn stoker_worker::ports::vm::Vm> {
        let dir = plan.dir.clone();
        let vm = within("boot", self.firecracker().await.boot(plan)).await.unwrap();
        let mut console = Capture::start(vm.console(), &dir);
        let up = async { while !matches!(console.events.recv().await, Some(ConsoleEvent::UnitStarted(_)) | None) {} };
        within("a started unit on the console", up).await;
        vm
    }

    fn root_of(&self, plan: &VmPlan) -> PathBuf {
        plan.dir.join("firecracker").join(plan.vm.to_string()).join("root")
    }
}

impl Drop for Jailed {
    fn drop(&mut self) {
        for parent in self.jailer.cgroups.folders(&self.jailer.cgroup_parent, "") {
            // Empty unless a test failed; then the kernel keeps it, and it shows.
            let _ = std::fs::remove_dir(parent.components().as_path());
        }
    }
}

#[async_trait]
impl Subject for Jailed {
    async fn driver(&self) -> Arc<dyn Hypervisor> {
        self.firecracker().await
    }
    fn plan(&self, dir: &Path) -> VmPlan {
        self.plan_with(dir, "probe.fault=no-dhcp")
    }
    fn plan_that_exits(&self, dir: &Path) -> VmPlan {
        self.plan_with(dir, "probe.fault=exit")
    }
    fn broken_plan(&self, dir: &Path) -> VmPlan {
        // Not an ELF file: found out by the VMM, in its jail.
        VmPlan { kernel: self.image.folder.join("image.json"), ..self.plan(dir) }
    }
    fn crash(&self, record: &VmRecord) {
        kill_9(record);
    }
    fn left_outside(&self) -> Vec<String> {
        let parents = self.jailer.cgroups.folders(&self.jailer.cgroup_parent, "");
        let below = |parent: &PathBuf| std::fs::read_dir(parent).into_iter().flatten().flatten().collect::<Vec<_>>();
        let groups = parents.iter().flat_map(below).filter(|entry| entry.path().is_dir());
        groups.map(|entry| entry.path().display().to_string()).collect()
    }
    fn stops_when_asked(&self) -> bool {
        true
    }
}

conformance!(subject);

/// A line of `/proc/<pid>/status`, its fields.
fn status(pid: u32, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.split_whitespace().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vmm_is_its_own_user_with_nothing_but_its_own_files() {
    let Some(subject) = subject("jailed::a_vmm_is_its_own_user_with_nothing_but_its_own_files").await else { return };
    let dir = attempt_dir();
    let mut plan = subject.plan(dir.path());
    let base = dir.path().join("image.ext4");
    std::fs::write(&base, vec![7; 1 << 20]).unwrap();
    let scratch = dir.path().join("disk.raw");
    std::fs::File::create(&scratch).unwrap().set_len(1 << 20).unwrap();
    let before = [&plan.kernel, &base].map(|file| std::fs::metadata(file).unwrap());
    plan.disk = Some(Disk { path: scratch.clone(), format: DiskFormat::Raw, read_only_base: Some(base.clone()) });
    let (uid, root) = (plan.owner.unwrap(), subject.root_of(&plan));
    let kernel = plan.kernel.clone();
    let vm = subject.boot(plan).await;
    let pid = vm.record().pid;
    let user = uid.to_string();
    assert_eq!(status(pid, "Uid"), [user.as_str(); 4]);
    assert_eq!(status(pid, "Gid"), [user.as_str(); 4]);
    assert!(status(pid, "Groups").is_empty(), "none of the worker's groups");
    assert_eq!(status(pid, "CapEff"), ["0000000000000000"]);
    assert_eq!(status(pid, "Seccomp"), ["2"]);
    let inside = std::fs::metadata(format!("/proc/{pid}/root")).unwrap();
    let jail = std::fs::metadata(&root).unwrap();
    assert_eq!((inside.dev(), inside.ino()), (jail.dev(), jail.ino()));
    // Lent files are the image's very own, unchanged; given ones are the VM's.
    for (file, was) in [&kernel, &base].into_iter().zip(before) {
        let is = std::fs::metadata(file).unwrap();
        assert_eq!((is.uid(), is.gid(), is.mode(), is.ino()), (was.uid(), was.gid(), was.mode(), was.ino()));
        assert_eq!(is.mode() & 0o022, 0, "{} can be written to", file.display());
    }
    assert_eq!(std::fs::metadata(root.join("base")).unwrap().ino(), std::fs::metadata(&base).unwrap().ino());
    assert_eq!(std::fs::metadata(root.join("disk")).unwrap().uid(), uid);
    // Its console is the guest's alone; its log is elsewhere.
    let console = std::fs::read_to_string(dir.path().join("console.log")).unwrap();
    assert!(console.contains("Stoker probe guest") && !console.contains("API"), "{console}");
    vm.stop(Duration::ZERO).await.unwrap();
    assert_eq!(subject.left_outside(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vmm_is_kept_within_its_limits() {
    let Some(subject) = subject("jailed::a_vmm_is_kept_within_its_limits").await else { return };
    if subject.jailer.cgroups == Cgroups::Absent {
        return skipped("jailed::a_vmm_is_kept_within_its_limits", "this host has no control groups");
    }
    let dir = attempt_dir();
    let plan = VmPlan { vcpus: 2, memory_mib: 64, ..subject.plan(dir.path()) };
    let id = plan.vm.to_string();
    let vm = subject.boot(plan).await;
    let groups = subject.jailer.cgroups.folders(&subject.jailer.cgroup_parent, &id);
    let read = |name: &str| {
        let found = groups.iter().find_map(|group| std::fs::read_to_string(group.join(name)).ok());
        found.map(|text| text.trim().to_owned())
    };
    for group in &groups {
        let members = std::fs::read_to_string(group.join("cgroup.procs")).unwrap();
        assert_eq!(members.trim(), vm.record().pid.to_string(), "{}", group.display());
    }
    let memory = ((64 + 64) << 20).to_string();
    match &subject.jailer.cgroups {
        Cgroups::V2 { .. } => {
            assert_eq!(read("memory.max"), Some(memory));
            assert_eq!(read("cpu.max").as_deref(), Some("300000 100000"));
        }
        Cgroups::V1 { .. } | Cgroups::Absent => {
            assert_eq!(read("memory.limit_in_bytes"), Some(memory));
            assert_eq!(read("cpu.cfs_quota_us").as_deref(), Some("300000"));
        }
    }
    assert_eq!(read("pids.max").as_deref(), Some("18"));
    vm.stop(Duration::ZERO).await.unwrap();
    assert_eq!(subject.left_outside(), Vec::<String>::new());
}

fn mounts_below(dir: &Path) -> Vec<String> {
    let dir = dir.canonicalize().unwrap().display().to_string();
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.contains(&dir)).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_on_another_file_system_is_mounted_and_let_go() {
    const TEST: &str = "jailed::an_image_on_another_file_system_is_mounted_and_let_go";
    let Some(subject) = subject(TEST).await else { return };
    let data = attempt_dir();
    let images = tempfile::tempdir_in("/dev/shm").unwrap();
    let device = |path: &Path| std::fs::metadata(path).unwrap().dev();
    if device(data.path()) == device(images.path()) {
        return skipped(TEST, "temporary files lie in /dev/shm: no second file system");
    }
    let dirs = Dirs::open(data.path()).unwrap();
    let kernel = images.path().join("kernel.elf");
    std::fs::copy(&subject.plan(data.path()).kernel, &kernel).unwrap();
    std::fs::set_permissions(&kernel, std::fs::Permissions::from_mode(0o644)).unwrap();
    let plan = subject.plan(data.path());
    let plan = VmPlan { kernel: kernel.clone(), dir: dirs.create_vm(plan.vm).unwrap(), ..plan };
    let (id, dir) = (plan.vm, plan.dir.clone());
    let lent = subject.root_of(&plan).join("kernel");
    let vm = subject.boot(plan).await;
    assert_eq!(mounts_below(&dir).len(), 1, "{:?}", mounts_below(&dir));
    let opened = std::fs::File::options().write(true).open(&lent).unwrap_err();
    assert_eq!(opened.kind(), io::ErrorKind::ReadOnlyFilesystem, "even for root");
    // A worker that was killed unmounts nothing; the next one removes the folder, and only that.
    kill_9(&vm.record());
    within("its end", vm.exited()).await;
    subject.firecracker().await.clean_up(id).await.unwrap();
    dirs.remove_vm(id).unwrap();
    assert_eq!(mounts_below(data.path()), Vec::<String>::new());
    assert!(!dir.exists());
    assert!(std::fs::metadata(&kernel).unwrap().len() > 1_000, "the image lost its kernel");
    assert_eq!(subject.left_outside(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jailed_vmm_without_a_record_is_found_and_removed() {
    let Some(subject) = subject("jailed::a_jailed_vmm_without_a_record_is_found_and_removed").await else { return };
    let data = attempt_dir();
    let dirs = Dirs::open(data.path()).unwrap();
    let plan = subject.plan(data.path());
    let plan = VmPlan { dir: dirs.create_vm(plan.vm).unwrap(), ..plan };
    let id: VmId = plan.vm;
    let vm = subject.boot(plan).await;
    let found = reaper::find_vmm(&dirs, id, Driver::Firecracker).unwrap();
    assert_eq!(found, vm.record());
    drop(vm);
    let adopted = subject.firecracker().await.adopt(found).await.unwrap().unwrap();
    let exit = within("stop", adopted.stop(Duration::from_secs(20))).await.unwrap();
    assert_ne!(exit.signal, Some(9), "asked over its socket in the jail, it stops by itself: {exit:?}");
    assert_eq!(reaper::find_vmm(&dirs, id, Driver::Firecracker), None);
    dirs.remove_vm(id).unwrap();
    assert_eq!(subject.left_outside(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_jailed_says_what_to_do() {
    let Some(subject) = subject("jailed::what_cannot_be_jailed_says_what_to_do").await else { return };
    let dir = attempt_dir();
    let driver = subject.firecracker().await;
    let closed = dir.path().join("closed.elf");
    std::fs::copy(&subject.plan(dir.path()).kernel, &closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o600)).unwrap();
    let plan = VmPlan { kernel: closed.clone(), ..subject.plan(dir.path()) };
    let error = driver.boot(plan).await.err().unwrap().to_string();
    assert!(error.contains("chmod o+r") && error.contains("closed.elf"), "{error}");
    let plan = VmPlan { owner: None, ..subject.plan(dir.path()) };
    let error = driver.boot(plan).await.err().unwrap().to_string();
    assert!(error.contains("bridge"), "{error}");
    // Another's tap: the VMM may not have it, and may not make one either.
    let theirs = subject.plan(dir.path());
    let plan = VmPlan { nic: theirs.nic.clone(), dir: attempt_dir().keep(), ..subject.plan(dir.path()) };
    let folder = plan.dir.clone();
    let error = driver.boot(plan).await.err().unwrap();
    assert!(
        matches!(&error, VmError::Refused { request, .. } if request == "PUT /network-interfaces/eth0"),
        "{error:?}"
    );
    std::fs::remove_dir_all(folder).unwrap();
    let missing = Jailer { program: "/no/such/jailer".into(), ..subject.jailer.clone() };
    let options = FirecrackerOptions { jailer: Some(missing), ..FirecrackerOptions::default() };
    let spawner = Arc::new(InNamespace(subject.sandbox.namespace.clone()));
    let error = Firecracker::new(&subject.binary, spawner, options).await.err().unwrap().to_string();
    assert!(error.contains("/no/such/jailer"), "{error}");
    assert_eq!(subject.left_outside(), Vec::<String>::new());
}
