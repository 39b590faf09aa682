//! Real hypervisors. Firecracker runs in a network namespace of its own per VM, where it makes its
//! own tap, so that nothing of the host's network is touched; QEMU uses the user network, which
//! needs no privileges. What is missing here is said and skipped.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use stoker_schemas::image::ImageManifest;
use stoker_tests::{
    conformance::vm::{Subject, attempt_dir, fresh_vm},
    setting, skipped, within,
};
use stoker_worker::{
    console::Capture,
    ports::{
        net::Nic,
        vm::{Hypervisor, VmError, VmPlan, VmRecord},
    },
    vm::{Firecracker, FirecrackerOptions, Here, Qemu, QemuOptions},
};

/// QEMU as distributions name it.
const QEMU: &str = "qemu-system-x86_64";

pub(crate) struct Image {
    pub(crate) folder: PathBuf,
    pub(crate) manifest: ImageManifest,
}

pub(crate) fn image(test: &str, name: &str) -> Option<Image> {
    let folder = setting(test, "STOKER_TEST_IMAGES")?.join(name);
    let read = std::fs::read(folder.join("image.json")).map_err(|e| e.to_string());
    match read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|e| e.to_string())) {
        Ok(manifest) => Some(Image { folder, manifest }),
        Err(error) => {
            skipped(test, &format!("image {name}: {error} (scripts/dev image makes it)"));
            None
        }
    }
}

impl Image {
    pub(crate) fn plan(&self, dir: &Path, args: &str, nic: impl FnOnce(stoker_schemas::VmId) -> Nic) -> VmPlan {
        let vm = fresh_vm();
        VmPlan {
            vm,
            vcpus: 1,
            memory_mib: self.manifest.min_memory_mib.max(32),
            kernel: self.folder.join(&self.manifest.kernel),
            initrd: self.manifest.initrd.as_ref().map(|file| self.folder.join(file)),
            kernel_args: format!("{} {args} stoker.vm_id={vm}", self.manifest.kernel_args),
            template_args: None,
            disk: None,
            nic: nic(vm),
            dir: dir.to_owned(),
            owner: None,
        }
    }
}

pub(crate) fn kill_9(record: &VmRecord) {
    let status = Command::new("kill").args(["-9", &record.pid.to_string()]).status().unwrap();
    assert!(status.success());
}

mod firecracker {
    use super::*;
    use crate::conformance;

    pub(super) struct InNamespace {
        binary: PathBuf,
        /// Holds the wrapper.
        _tools: tempfile::TempDir,
        image: Image,
    }

    pub(super) async fn subject(test: &str) -> Option<InNamespace> {
        let real = setting(test, "STOKER_TEST_FIRECRACKER")?;
        let image = image(test, "probe")?;
        if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
            skipped(test, &format!("/dev/kvm: {error}"));
            return None;
        }
        let unshared = Command::new("unshare").args(["--net", "true"]).stderr(Stdio::null()).status();
        if !unshared.is_ok_and(|status| status.success()) {
            skipped(test, "no permission to make a network namespace (run as root)");
            return None;
        }
        let tools = tempfile::tempdir().unwrap();
        let binary = tools.path().join("firecracker");
        // `exec` twice: the wrapper's pid stays the VMM's.
        let script = format!("#!/bin/sh\nexec unshare --net -- '{}' \"$@\"\n", real.display());
        std::fs::write(&binary, script).unwrap();
        std::fs::set_permissions(&binary, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Some(InNamespace { binary, _tools: tools, image })
    }

    fn tap(vm: stoker_schemas::VmId) -> Nic {
        Nic::Tap { name: vm.tap(), mac: vm.mac() }
    }

    #[async_trait]
    impl Subject for InNamespace {
        async fn driver(&self) -> Arc<dyn Hypervisor> {
            Arc::new(Firecracker::new(&self.binary, Arc::new(Here), FirecrackerOptions::default()).await.unwrap())
        }
        fn plan(&self, dir: &Path) -> VmPlan {
            // There is no DHCP server in the namespace: the first unit stands for a boot.
            self.image.plan(dir, "probe.fault=no-dhcp", tap)
        }
        fn plan_that_exits(&self, dir: &Path) -> VmPlan {
            self.image.plan(dir, "probe.fault=exit", tap)
        }
        fn broken_plan(&self, dir: &Path) -> VmPlan {
            VmPlan { kernel: dir.join("no-such-kernel"), ..self.plan(dir) }
        }
        fn crash(&self, record: &VmRecord) {
            kill_9(record);
        }
        fn stops_when_asked(&self) -> bool {
            true
        }
    }

    conformance!(subject);

    #[tokio::test]
    async fn refusals_carry_firecrackers_own_words() {
        let Some(subject) = subject("real::firecracker::refusals_carry_firecrackers_own_words").await else { return };
        let driver = subject.driver().await;
        let boot = async |change: fn(&mut VmPlan)| {
            let dir = attempt_dir();
            let mut plan = subject.plan(dir.path());
            change(&mut plan);
            driver.boot(plan).await.err().unwrap()
        };
        let kernel = boot(|plan| plan.kernel = "/no/such/kernel".into()).await;
        assert!(
            matches!(&kernel, VmError::Refused { request, message, .. } if request == "PUT /boot-source" && message.contains("No such file")),
            "{kernel:?}"
        );
        let vcpus = boot(|plan| plan.vcpus = 33).await;
        assert!(matches!(&vcpus, VmError::Refused { request, .. } if request == "PUT /machine-config"), "{vcpus:?}");
        let not_elf = boot(|plan| plan.kernel = "/proc/self/status".into()).await;
        assert!(matches!(&not_elf, VmError::Refused { request, .. } if request == "PUT /actions"), "{not_elf:?}");
        let user = boot(|plan| plan.nic = Nic::User { mac: plan.vm.mac(), host_port: 1, guest_port: 1 }).await;
        assert!(matches!(user, VmError::Unsupported { .. }), "{user:?}");
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn user_network(vm: stoker_schemas::VmId) -> Nic {
    Nic::User { mac: vm.mac(), host_port: free_port(), guest_port: 8080 }
}

struct OnUserNetwork {
    image: Image,
    exits: &'static str,
    stops_when_asked: bool,
}

pub(crate) fn qemu_is_there(test: &str) -> bool {
    let there = Command::new(QEMU).arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    if !there {
        skipped(test, &format!("{QEMU} is not installed"));
    }
    there
}

#[async_trait]
impl Subject for OnUserNetwork {
    async fn driver(&self) -> Arc<dyn Hypervisor> {
        Arc::new(Qemu::new(Path::new(QEMU), Arc::new(Here), QemuOptions::default()).await.unwrap())
    }
    fn plan(&self, dir: &Path) -> VmPlan {
        self.image.plan(dir, "", user_network)
    }
    fn plan_that_exits(&self, dir: &Path) -> VmPlan {
        self.image.plan(dir, self.exits, user_network)
    }
    fn broken_plan(&self, dir: &Path) -> VmPlan {
        VmPlan { kernel: dir.join("no-such-kernel"), ..self.plan(dir) }
    }
    fn crash(&self, record: &VmRecord) {
        kill_9(record);
    }
    fn stops_when_asked(&self) -> bool {
        self.stops_when_asked
    }
}

impl OnUserNetwork {
    /// Boots and waits for `/health` of this very VM through the forwarded port.
    async fn answers(&self) {
        let dir = attempt_dir();
        let plan = self.plan(dir.path());
        let Nic::User { host_port, .. } = plan.nic else { unreachable!("user network") };
        let (id, url) = (plan.vm.to_string(), format!("http://127.0.0.1:{host_port}/health"));
        let driver = self.driver().await;
        let vm = within("boot", driver.boot(plan)).await.unwrap();
        let client = reqwest::Client::builder().timeout(Duration::from_secs(2)).no_proxy().build().unwrap();
        let healthy = async {
            loop {
                if let Ok(answer) = client.get(&url).send().await
                    && let Ok(body) = answer.text().await
                {
                    break body;
                }
                // The guest has no way to tell us that its agent listens: that is what is tested.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let body = within("an answer from the agent", healthy).await;
        assert!(body.contains(&id), "{body}");
        assert_eq!(within("status", vm.status()).await.as_deref(), Some("running"));
        vm.stop(Duration::ZERO).await.unwrap();
        assert_eq!(vm.status().await, None);
    }
}

mod qemu_probe {
    use super::*;
    use crate::conformance;

    async fn subject(test: &str) -> Option<OnUserNetwork> {
        let image = image(test, "probe").filter(|_| qemu_is_there(test))?;
        Some(OnUserNetwork { image, exits: "probe.fault=exit", stops_when_asked: false })
    }

    conformance!(subject);

    #[tokio::test]
    async fn its_agent_answers_through_the_forwarded_port() {
        if let Some(subject) = subject("real::qemu_probe::its_agent_answers_through_the_forwarded_port").await {
            subject.answers().await;
        }
    }

    #[tokio::test]
    async fn a_console_flood_stays_bounded_and_is_read_to_its_end() {
        let Some(subject) = subject("real::qemu_probe::a_console_flood_stays_bounded_and_is_read_to_its_end").await
        else {
            return;
        };
        let dir = attempt_dir();
        let plan = subject.image.plan(dir.path(), "probe.fault=console-flood=4096,unit-failed=Flooded", user_network);
        let vm = within("boot", subject.driver().await.boot(plan)).await.unwrap();
        let mut console = Capture::start(vm.console(), dir.path());
        let flooded = async {
            while console.bytes() < 4 << 20 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within("4 MiB of console", flooded).await;
        vm.stop(Duration::ZERO).await.unwrap();
        console.finish().await;
        let file = std::fs::metadata(dir.path().join("console.log")).unwrap();
        let used = std::os::unix::fs::MetadataExt::blocks(&file) * 512;
        assert!(used < 2 << 20, "{used} of {} bytes on disk", file.len());
    }
}

mod qemu_linux {
    use super::*;
    use crate::conformance;

    async fn subject(test: &str) -> Option<OnUserNetwork> {
        let image = image(test, "linux-minimal").filter(|_| qemu_is_there(test))?;
        // The agent there is PID 1: told to run something that is not there, it ends, the kernel
        // panics, and `panic=-1` with `-no-reboot` is a clean exit of QEMU.
        Some(OnUserNetwork { image, exits: "rdinit=/no/such/init", stops_when_asked: true })
    }

    conformance!(subject);

    #[tokio::test]
    async fn its_agent_answers_through_the_forwarded_port() {
        if let Some(subject) = subject("real::qemu_linux::its_agent_answers_through_the_forwarded_port").await {
            subject.answers().await;
        }
    }
}
