//! Real VMs (Firecracker with the probe guest): their worker killed, their DHCP server killed, their tap pulled, their
//! agents against us.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use stoker_schemas::{Epoch, HostName, JobId, Phase, VmId};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    PATIENCE,
    node::Node,
    stage::{Needs, Stage, Up, eventually},
    table::{Outcome, Row, times},
};

/// Between two looks at which VMs run: much shorter than one boots.
const LOOK: Duration = Duration::from_millis(20);
/// More attempts and deliveries than a job has here.
const EPOCHS: u32 = 6;
/// Time in which a fault falls into a boot.
const SLOW: &str = "probe.fault=slow-boot-ms=2000";
/// Longer than that, short enough that a second attempt is not waited for long.
const DEADLINE_MS: u64 = 10_000;

/// A host with real VMs that is fed by RabbitMQ.
struct Scene {
    stage: Arc<Stage>,
    node: Node,
    up: Up,
    jobs: BTreeSet<JobId>,
    /// Jobs that are not to become ready.
    hopeless: BTreeSet<JobId>,
    most: Arc<watch::Sender<BTreeMap<String, usize>>>,
    looking: JoinHandle<()>,
}

impl Scene {
    async fn open(test: &str) -> Option<Self> {
        let stage = Arc::new(Stage::open(test, Needs::Firecracker, "probe")?);
        let node = Node::start(test).await?;
        let up = start(&stage, &node).await;
        let most = Arc::new(watch::Sender::new(BTreeMap::new()));
        let looking = tokio::spawn(look(stage.clone(), most.clone()));
        let (jobs, hopeless) = Default::default();
        Some(Self { stage, node, up, jobs, hopeless, most, looking })
    }

    /// Enqueues a job of the probe guest.
    async fn enqueue(&mut self, args: &str, attempts: u32, readiness: &Value) -> JobId {
        let mut readiness = readiness.clone();
        readiness["deadline_ms"] = DEADLINE_MS.into();
        let retry = json!({"max_attempts": attempts, "base_ms": 100, "cap_ms": 500});
        let job = json!({"image": "probe", "kernel_args": args, "retry": retry, "readiness": readiness});
        let url = format!("{}/v1/jobs", self.up.server().await);
        let answer = reqwest::Client::new().post(url).json(&job).send().await.unwrap();
        let (status, answer) = (answer.status(), answer.text().await.unwrap());
        assert_eq!(status, 202, "{job}: {answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let id = serde_json::from_value(answer["jobs"][0]["id"].clone()).unwrap();
        self.jobs.insert(id);
        id
    }

    /// A job whose VM boots slowly, once it does.
    async fn booting(&mut self) -> JobId {
        let id = self.enqueue(SLOW, 4, &json!({})).await;
        let runs = |job: &Value| job["attempts"][0]["stages"].to_string().contains("kernel_started");
        self.up.job(id, "boots", runs).await;
        id
    }

    async fn stop(&mut self, id: JobId) {
        let (code, _, stderr) = self.up.stoker(&["stop", &id.to_string()]).await;
        assert_eq!(code, 0, "{stderr}");
        self.up.reaches(id, Phase::Stopped).await;
    }

    /// Everything was stopped or is dead: what is left?
    async fn end(mut self) -> Outcome {
        let (mut lost, mut stuck, mut doubled) = (0, 0, 0);
        for id in &self.jobs {
            let job = self.up.job(*id, "is known", |job| job["phase"].is_string()).await;
            let phase = job["phase"].as_str().unwrap();
            let wanted = if self.hopeless.contains(id) { "dead" } else { "stopped" };
            lost += usize::from(phase != wanted && matches!(phase, "dead" | "cancelled" | "ready" | "stopped"));
            stuck += usize::from(!matches!(phase, "dead" | "cancelled" | "ready" | "stopped"));
        }
        self.looking.abort();
        let host: HostName = "e2e".parse().unwrap();
        let most = self.most.borrow().clone();
        for id in &self.jobs {
            let epochs = (1..=EPOCHS).flat_map(|a| (0..EPOCHS).map(move |d| Epoch { attempt: a, delivery: d }));
            let vms: BTreeSet<_> = epochs.map(|epoch| VmId::derive(*id, epoch, &host).to_string()).collect();
            doubled += usize::from(most.keys().any(|seen| seen.split(' ').filter(|vm| vms.contains(*vm)).count() > 1));
        }
        stuck += self.node.kept_messages(PATIENCE).await;
        self.up.end().await;
        let leaked = self.stage.left();
        for what in &leaked {
            eprintln!("left: {what}");
        }
        Outcome { jobs: self.jobs.len(), lost, doubled, leaked: leaked.len(), stuck, repeated: 0 }
    }
}

async fn start(stage: &Stage, node: &Node) -> Up {
    stage.up(&["--no-vm", "--broker", &node.url]).await
}

/// Keeps every set of VMs that ran at one time, each as their names in a line.
async fn look(stage: Arc<Stage>, most: Arc<watch::Sender<BTreeMap<String, usize>>>) {
    let mut pace = tokio::time::interval(LOOK);
    loop {
        pace.tick().await;
        let vms: BTreeSet<String> = stage.vmms().into_iter().map(|(_, vm)| vm).collect();
        if vms.len() > 1 {
            let names = vms.into_iter().collect::<Vec<_>>().join(" ");
            most.send_modify(|seen| *seen.entry(names).or_default() += 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "e2e::crash does it once; scripts/dev chaos runs it"]
async fn a_worker_killed_over_real_vms_doubles_nothing() {
    let test = "a_worker_killed_over_real_vms_doubles_nothing";
    let mut row = Row::new("worker killed (kill -9), its real VMs live on");
    let Some(mut scene) = Scene::open(test).await else { return row.forget() };
    for _ in 0..times("REAL_WORKER_KILLED", 1, 5) {
        let ready = scene.enqueue("", 4, &json!({})).await;
        scene.up.reaches(ready, Phase::Ready).await;
        let booting = scene.booting().await;
        let begun = Instant::now();
        scene.up.crash().await;
        scene.up = start(&scene.stage, &scene.node).await;
        scene.up.reaches(booting, Phase::Ready).await;
        row.recovered(Some(begun.elapsed()));
        for id in [ready, booting] {
            scene.up.reaches(id, Phase::Ready).await;
            scene.stop(id).await;
        }
    }
    row.end(scene.end().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute; scripts/dev chaos runs it"]
async fn a_dhcp_server_that_is_killed_is_replaced_under_a_boot() {
    let test = "a_dhcp_server_that_is_killed_is_replaced_under_a_boot";
    let mut row = Row::new("dnsmasq killed while a VM boots");
    let Some(mut scene) = Scene::open(test).await else { return row.forget() };
    for _ in 0..times("DNSMASQ_KILLED", 1, 6) {
        let id = scene.booting().await;
        let begun = Instant::now();
        kill(&dnsmasq(&scene.stage.name), "-KILL");
        scene.up.reaches(id, Phase::Ready).await;
        row.recovered(Some(begun.elapsed()));
        scene.stop(id).await;
    }
    row.end(scene.end().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; scripts/dev chaos runs it"]
async fn a_tap_that_is_pulled_costs_an_attempt() {
    let mut row = Row::new("tap pulled while a VM boots");
    let Some(mut scene) = Scene::open("a_tap_that_is_pulled_costs_an_attempt").await else { return row.forget() };
    for n in 0..times("TAP_PULLED", 1, 4) {
        let id = scene.booting().await;
        let tap = eventually("a tap", async || scene.stage.taps().into_iter().next()).await;
        let begun = Instant::now();
        // Taken off its bridge, or deleted under its VM.
        let how: &[&str] = if n % 2 == 0 { &["link", "set", &tap, "nomaster"] } else { &["link", "delete", &tap] };
        scene.stage.ip(how);
        scene.up.reaches(id, Phase::Ready).await;
        row.recovered(Some(begun.elapsed()));
        scene.stop(id).await;
    }
    row.end(scene.end().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; scripts/dev chaos runs it"]
async fn agents_that_lie_are_never_called_ready() {
    let mut row = Row::new("agent lies, redirects, hangs, says the wrong thing");
    let Some(mut scene) = Scene::open("agents_that_lie_are_never_called_ready").await else { return row.forget() };
    for _ in 0..times("AGENT_LIES", 1, 1) {
        for (fault, cause) in [
            ("wrong-id", "wrong_vm"),
            ("status=302", "agent_unhealthy"),
            ("status=503", "agent_unhealthy"),
            ("hang", "agent_hanging"),
            ("body=no", "wrong_body"),
        ] {
            let readiness = if fault == "body=no" { json!({"http": {"body_contains": "yes"}}) } else { json!({}) };
            let begun = Instant::now();
            let id = scene.enqueue(&format!("probe.fault={fault}"), 1, &readiness).await;
            scene.hopeless.insert(id);
            let job = scene.up.reaches(id, Phase::Dead).await;
            assert_eq!(job["attempts"][0]["diagnosis"]["cause"], cause, "{fault}: {job:#}");
            let healthy = scene.enqueue("", 4, &json!({})).await;
            scene.up.reaches(healthy, Phase::Ready).await;
            row.recovered(Some(begun.elapsed()));
            scene.stop(healthy).await;
        }
    }
    row.end(scene.end().await);
}

/// The DHCP server of a stage's network.
fn dnsmasq(stage: &str) -> String {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let is_it = |entry: &fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains("dnsmasq") && line.contains(stage)
    };
    let found = processes.filter(is_it).map(|entry| entry.file_name().to_string_lossy().into_owned()).next();
    found.expect("a DHCP server")
}

fn kill(pid: &str, signal: &str) {
    let _ = Command::new("kill").args([signal, pid]).stderr(Stdio::null()).status();
}
