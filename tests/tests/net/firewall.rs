//! What a guest may reach, tried by guests: the host's services, its other addresses, the metadata
//! service, another guest. Each is really there and answers whoever gets through.

use std::{
    io,
    net::Ipv4Addr,
    path::PathBuf,
    process::{Child, Command},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use stoker_schemas::{
    VmId,
    image::{ImageManifest, Reach},
};
use stoker_tests::{
    conformance::{
        net::{request, some_vm},
        vm::attempt_dir,
    },
    setting, skipped, within,
};
use stoker_worker::{
    net::{BridgeConfig, BridgedNetwork, Namespace},
    ports::{
        net::{AttachRequest, Network},
        vm::{Hypervisor, Vm, VmPlan},
    },
    vm::{Firecracker, FirecrackerOptions, Spawner},
};
use tokio::net::TcpListener;

use crate::sandbox::Sandbox;

/// The host's other address, reached through the gateway.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const SERVICE: u16 = 7_000;

const CLOSED: Reach = Reach { host: false, vms: false, metadata: false };
const OPEN: Reach = Reach { host: true, vms: true, metadata: true };

struct InNamespace(Namespace);

#[async_trait]
impl Spawner for InNamespace {
    async fn spawn(&self, mut command: Command) -> io::Result<Child> {
        self.0.run(move || command.spawn()).await
    }
}

/// A host with services, in a namespace.
struct Stage {
    sandbox: Sandbox,
    network: BridgedNetwork,
    driver: Firecracker,
    kernel: PathBuf,
}

/// A guest and its folder.
struct Guest {
    vm: Arc<dyn Vm>,
    request: AttachRequest,
    dir: tempfile::TempDir,
    /// Listened to, or the network would not note its neighbour.
    _attachment: stoker_worker::ports::net::Attachment,
}

impl Stage {
    async fn open(test: &str, firewall: bool) -> Option<Self> {
        let binary = setting(test, "STOKER_TEST_FIRECRACKER")?;
        let image = setting(test, "STOKER_TEST_IMAGES")?.join("probe");
        let Ok(manifest) = std::fs::read(image.join("image.json")) else {
            skipped(test, "there is no image named probe");
            return None;
        };
        if Command::new("nft").arg("--version").output().is_err() {
            skipped(test, "needs nft (Debian: nftables)");
            return None;
        }
        let manifest: ImageManifest = serde_json::from_slice(&manifest).unwrap();
        let sandbox = Sandbox::open(test).await?;
        let config = BridgeConfig { firewall, ..BridgeConfig::new(sandbox.dir.path().join("dhcp")) };
        let network = BridgedNetwork::open(sandbox.namespace.clone(), config).await.unwrap();
        let spawner = Arc::new(InNamespace(sandbox.namespace.clone()));
        let driver = Firecracker::new(&binary, spawner, FirecrackerOptions::default()).await.unwrap();
        for address in [ELSEWHERE, METADATA] {
            sandbox.ip(&["address", "add", &format!("{address}/32"), "dev", "lo"]);
        }
        for port in [SERVICE, 80] {
            let bound = sandbox.namespace.within(async move { TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await });
            let listener = bound.await.unwrap();
            sandbox.namespace.spawn(async move { while listener.accept().await.is_ok() {} });
        }
        Some(Self { sandbox, network, driver, kernel: image.join(manifest.kernel) })
    }

    fn address(&self, nth: usize) -> Ipv4Addr {
        self.network.pool()[nth]
    }

    async fn boot(&self, nth: usize, reach: Reach, args: &str) -> Guest {
        let vm: VmId = some_vm();
        let request = AttachRequest { reach, ..request(&self.network, vm, nth) };
        let attachment = self.network.attach(request.clone()).await.unwrap();
        let dir = attempt_dir();
        let plan = VmPlan {
            vm,
            vcpus: 1,
            memory_mib: 32,
            kernel: self.kernel.clone(),
            initrd: None,
            kernel_args: format!("console=ttyS0 {args} stoker.vm_id={vm}"),
            template_args: None,
            disk: None,
            nic: attachment.nic.clone(),
            dir: dir.path().to_owned(),
            owner: None,
        };
        let vm = within("boot", self.driver.boot(plan)).await.unwrap();
        Guest { vm, request, dir, _attachment: attachment }
    }

    /// Boots a guest that others may try to reach, and one that tries: what it says of each.
    async fn tried(&self, them: Reach, us: Reach) -> Vec<String> {
        let target = self.boot(0, them, "").await;
        target.says("Started VM Browser OAuth Agent").await;
        // The host itself gets through to any guest, whatever that one may reach.
        let agent = (self.address(0), 8080);
        self.sandbox.namespace.within(async move { tokio::net::TcpStream::connect(agent).await }).await.unwrap();
        let targets = [(self.gateway(), SERVICE), (ELSEWHERE, SERVICE), (METADATA, 80), (self.address(0), 8080)];
        let names = targets.map(|(address, port)| format!("{address}:{port}"));
        let trying = self.boot(1, us, &format!("probe.reach={}", names.join(","))).await;
        let mut outcomes = Vec::new();
        for name in &names {
            let line = trying.says(&format!("reach: {name} ")).await;
            outcomes.push(line.rsplit_once(&format!("{name} ")).unwrap().1.to_owned());
        }
        trying.end(&self.network).await;
        target.end(&self.network).await;
        outcomes
    }

    fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 100, 1)
    }

    fn rules(&self) -> String {
        let listed = Command::new("ip").args(["netns", "exec", &self.sandbox.name, "nft", "list", "ruleset"]).output();
        String::from_utf8(listed.unwrap().stdout).unwrap()
    }
}

impl Guest {
    /// The first whole line with this text.
    async fn says(&self, text: &str) -> String {
        let console = self.dir.path().join("console.log");
        let said = async {
            loop {
                let all = std::fs::read_to_string(&console).unwrap_or_default();
                let whole = &all[..all.rfind('\n').unwrap_or(0)];
                if let Some(line) = whole.lines().find(|line| line.contains(text)) {
                    return line.trim_end().to_owned();
                }
                // A console is a file: nobody tells of a new line.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(text, said).await
    }

    async fn end(self, network: &BridgedNetwork) {
        self.vm.stop(Duration::ZERO).await.unwrap();
        network.detach(self.request.vm, self.request.address).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_reaches_neither_host_nor_metadata_nor_another_guest() {
    const TEST: &str = "a_guest_reaches_neither_host_nor_metadata_nor_another_guest";
    let Some(stage) = Stage::open(TEST, true).await else { return };
    let outcomes = stage.tried(CLOSED, CLOSED).await;
    assert_eq!(outcomes, ["silent", "silent", "silent", "no neighbour"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_image_says_it_may_reach_it_reaches_and_nothing_of_that_stays() {
    const TEST: &str = "what_an_image_says_it_may_reach_it_reaches_and_nothing_of_that_stays";
    let Some(stage) = Stage::open(TEST, true).await else { return };
    let before = stage.rules();
    assert_eq!(stage.tried(OPEN, OPEN).await, ["open", "open", "open", "open"]);
    // Guests reach each other where both say so: nobody is reached against its own image's word.
    assert_eq!(stage.tried(CLOSED, OPEN).await, ["open", "open", "open", "no neighbour"]);
    assert_eq!(stage.tried(OPEN, Reach { host: true, ..CLOSED }).await, ["open", "open", "silent", "no neighbour"]);
    // The metadata service of this test is the host's own, so getting out to it is not enough.
    assert_eq!(
        stage.tried(CLOSED, Reach { metadata: true, ..CLOSED }).await,
        ["silent", "silent", "silent", "no neighbour"]
    );
    assert_eq!(stage.rules(), before, "exceptions were left");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_firewall_everything_is_reached() {
    // Which shows that the other tests can fail.
    let Some(stage) = Stage::open("without_the_firewall_everything_is_reached", false).await else { return };
    assert_eq!(stage.tried(CLOSED, CLOSED).await, ["open", "open", "open", "open"]);
    assert_eq!(stage.rules(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_worker_has_one_set_of_rules_and_leaves_none_at_the_end() {
    const TEST: &str = "a_restarted_worker_has_one_set_of_rules_and_leaves_none_at_the_end";
    let Some(stage) = Stage::open(TEST, true).await else { return };
    let before = stage.rules();
    let guest = stage.boot(0, OPEN, "").await;
    let excepted = stage.rules();
    assert!(excepted.matches(&guest.request.vm.tap()).count() == 3, "{excepted}");
    // The worker is killed; the next one finds VM and rules.
    let Stage { sandbox, network, driver, kernel } = stage;
    drop(network);
    let stage = Stage { network: sandbox.network().await, sandbox, driver, kernel };
    assert_eq!(stage.rules(), before, "exceptions of a VM that nobody has taken over yet");
    let _taken_over = stage.network.reattach(guest.request.clone()).await.unwrap();
    assert_eq!(stage.rules(), excepted);
    guest.end(&stage.network).await;
    assert_eq!(stage.rules(), before);
    let rules = {
        let Stage { sandbox, network, driver, kernel } = stage;
        network.destroy().await.unwrap();
        let network = BridgedNetwork::open(
            sandbox.namespace.clone(),
            BridgeConfig { firewall: false, ..BridgeConfig::new(sandbox.dir.path().join("other")) },
        );
        Stage { network: network.await.unwrap(), sandbox, driver, kernel }.rules()
    };
    assert_eq!(rules, "");
}
