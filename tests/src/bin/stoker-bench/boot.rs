//! What Stoker adds to a boot: from the enqueue's confirm to the durable `attempt.ready`, over the
//! same VM by hand, in turns on the same bridge.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;
use stoker_schemas::event::{Event, EventData, StageMark};
use stoker_schemas::{Epoch, JobId, JobSpec, Time, VmId};
use stoker_worker::clock::Clock;
use stoker_worker::net::Namespace;

use crate::Fallible;
use crate::by_hand::{self, Place, Recipe, Times};
use crate::figure::{Figure, Samples, Target};
use crate::host::{self, BenchHost};
use crate::journal::Journal;
use crate::restore;

/// Images, made by `scripts/dev image`; `scripts/dev bench` sets it.
pub const IMAGES: &str = "STOKER_TEST_IMAGES";
/// Firecracker's program; `scripts/dev bench` sets it.
const FIRECRACKER: &str = "STOKER_TEST_FIRECRACKER";
pub const KINDS: [&str; 2] = ["attempt.ready", "vm.gone"];
/// Gateway of the bench's own bridge, in its own namespace.
pub const GATEWAY: std::net::Ipv4Addr = std::net::Ipv4Addr::new(192, 168, 142, 1);
/// The last address of the pool: Stoker takes them from the front.
const BY_HAND: std::net::Ipv4Addr = std::net::Ipv4Addr::new(192, 168, 142, 254);

/// What is booted, and how often.
struct Case {
    name: &'static str,
    driver: &'static str,
    image: &'static str,
    memory_mib: u32,
    pairs: usize,
    target: Target,
    /// Its path, for Firecracker.
    program: Option<PathBuf>,
}

pub async fn firecracker(quick: bool) -> Fallible<Vec<Figure>> {
    let name = "boot-overhead-firecracker";
    let program = match firecracker_here() {
        Ok(program) => program,
        Err(why) => return Ok(vec![Figure::skipped(name, &why)]),
    };
    let (driver, image, memory_mib) = ("firecracker", "probe", 64);
    let pairs = if quick { 20 } else { 40 };
    let target = Target::AtMost(1.30);
    overhead(Case { name, driver, image, memory_mib, pairs, target, program: Some(program) }).await
}

pub async fn qemu(quick: bool) -> Fallible<Vec<Figure>> {
    let (name, driver, image, memory_mib) = ("boot-overhead-qemu", "qemu", "linux-minimal", 128);
    let pairs = if quick { 5 } else { 25 };
    overhead(Case { name, driver, image, memory_mib, pairs, target: Target::AtMost(1.03), program: None }).await
}

/// Firecracker's program; or why it cannot be used here.
pub fn firecracker_here() -> Result<PathBuf, String> {
    let program = variable(FIRECRACKER).ok_or_else(|| format!("{FIRECRACKER} is not set"))?;
    if Path::new("/dev/kvm").exists() { Ok(program) } else { Err("there is no /dev/kvm".to_owned()) }
}

pub fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

async fn overhead(case: Case) -> Fallible<Vec<Figure>> {
    let Some(images) = variable(IMAGES) else {
        return Ok(vec![Figure::skipped(case.name, &format!("{IMAGES} is not set"))]);
    };
    let namespace = format!("st-bench-{}", std::process::id());
    let settings = json!({
        "host": "bench",
        "driver": case.driver,
        "images": images,
        "firecracker": case.program,
        // What is compared is the same VMM, started by hand without a jail.
        "jailer": "off",
        "prewarm": false,
        "stop_grace_ms": 0,
        "network": {"mode": "bridge", "namespace": namespace, "bridge": "stbench0", "gateway": GATEWAY, "prefix": 24},
    });
    let host = BenchHost::start(&settings, None).await;
    let measured = match host {
        Ok(host) => on_host(&case, host, &namespace).await,
        Err(error) => Err(error),
    };
    remove(&namespace).await;
    measured
}

/// The namespace's name, and with it the bridge: nothing else lives there.
pub async fn remove(namespace: &str) {
    if !Path::new("/run/netns").join(namespace).exists() {
        return;
    }
    let deleted = match Namespace::open(namespace).await {
        Ok(opened) => opened.delete().await,
        Err(error) => Err(error),
    };
    if let Err(error) = deleted {
        eprintln!("network namespace {namespace} is left: {error}");
    }
    // dnsmasq's files; in memory, and nobody else's.
    let _ = std::fs::remove_dir_all(format!("/run/stoker/{namespace}-stbench0"));
}

async fn on_host(case: &Case, host: BenchHost, namespace: &str) -> Fallible<Vec<Figure>> {
    let journal = host.journal(&KINDS);
    let by_hand = tempfile::Builder::new().prefix("st-hand-").tempdir()?;
    let place = Place {
        network: host.rig.network.clone(),
        namespace: Namespace::open(namespace).await?,
        address: BY_HAND,
        dir: by_hand.path().to_owned(),
        host: host.config().host.clone(),
    };
    let measured = pairs(case, &host, &journal, &place).await;
    let data = host.data.path().to_owned();
    drop((journal, place));
    let ended = host.end().await;
    // Only now: a worker starts its DHCP server again.
    end_left_over(&data, namespace);
    ended?;
    measured
}

/// A worker leaves its DHCP server, and VMs, to the next worker; here there is none. They are known by
/// files that are named after this run.
pub fn end_left_over(data: &Path, namespace: &str) {
    let mark = format!("/run/stoker/{namespace}-stbench0/");
    let Ok(processes) = std::fs::read_dir("/proc") else { return };
    for entry in processes.flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let is_dnsmasq = line.starts_with(b"dnsmasq") && String::from_utf8_lossy(&line).contains(&mark);
        let is_vmm = std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(data));
        if is_dnsmasq || is_vmm {
            // It may have ended by itself meanwhile.
            let _ = std::process::Command::new("kill").arg("-KILL").arg(entry.file_name()).status();
        }
    }
}

async fn pairs(case: &Case, host: &BenchHost, journal: &Journal, place: &Place) -> Fallible<Vec<Figure>> {
    let spec = host::spec(case.image, case.memory_mib)?;
    let recipe = warm_up(case, host, journal, &spec).await?;
    by_hand::boot(&recipe, place).await?;
    let mut stoker = Vec::new();
    let mut hand: Vec<Times> = Vec::new();
    for pair in 0..case.pairs {
        // In turns, so that neither always finds what the other left in the caches.
        if pair % 2 == 0 {
            stoker.push(by_stoker(host, journal, &spec).await?);
            hand.push(by_hand::boot(&recipe, place).await?);
        } else {
            hand.push(by_hand::boot(&recipe, place).await?);
            stoker.push(by_stoker(host, journal, &spec).await?);
        }
    }
    let mut figures = vec![figure(case, &stoker, &hand)];
    if case.program.is_some() {
        figures.push(restore::by_hand(&recipe, place, case.pairs).await?);
    }
    Ok(figures)
}

fn figure(case: &Case, stoker: &[Boot], hand: &[Times]) -> Figure {
    let ratios: Samples = stoker.iter().zip(hand).map(|(s, h)| s.ready / h.healthy).collect();
    let with_attach: Samples = stoker.iter().zip(hand).map(|(s, h)| s.ready / (h.attach + h.healthy)).collect();
    let all = |times: &mut dyn Iterator<Item = f64>| times.collect::<Samples>();
    let detail = format!(
        "{} pairs; Stoker {} ms, by hand {} ms; a pair's ratio: median {:.2}, quartiles {:.2}-{:.2}; by hand the lease is there \
         after {:.1} ms, tap and reservation before the clock starts ({} ms; counted: ratio {:.2}); Stoker's stages, ms after the confirm: {}",
        ratios.len(),
        all(&mut stoker.iter().map(|b| b.ready)).summary(),
        all(&mut hand.iter().map(|t| t.healthy)).summary(),
        ratios.median(),
        ratios.quantile(0.25),
        ratios.quantile(0.75),
        all(&mut hand.iter().map(|t| t.dhcp_ack)).median(),
        all(&mut hand.iter().map(|t| t.attach)).summary(),
        with_attach.median(),
        stages(stoker),
    );
    // Totals, not the median of the pairs: a guest's boots come in two speeds some per cent apart, and
    // the median of a few ratios is then whichever pairing was the more frequent.
    let total = |times: &mut dyn Iterator<Item = f64>| times.sum::<f64>();
    let ratio = total(&mut stoker.iter().map(|b| b.ready)) / total(&mut hand.iter().map(|t| t.healthy));
    Figure::measured(case.name, "x", case.target, ratio, detail)
}

pub fn stages(boots: &[Boot]) -> String {
    let mut by_stage: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (stage, after) in boots.iter().flat_map(|boot| &boot.stages) {
        by_stage.entry(stage).or_default().push(*after);
    }
    let mut medians: Vec<(f64, &str)> =
        by_stage.into_iter().map(|(stage, times)| (times.into_iter().collect::<Samples>().median(), stage)).collect();
    medians.sort_by(|a, b| a.0.total_cmp(&b.0));
    let words: Vec<String> = medians.iter().map(|(after, stage)| format!("{stage} {after:.1}")).collect();
    words.join(", ")
}

/// One boot by Stoker, in milliseconds after the enqueue's confirm.
pub struct Boot {
    pub ready: f64,
    stages: Vec<(&'static str, f64)>,
}

pub async fn by_stoker(host: &BenchHost, journal: &Journal, spec: &JobSpec) -> Fallible<Boot> {
    let (id, confirmed) = host.enqueue(spec).await?;
    let at = Clock::system().now();
    let ready = journal.wait(id, "attempt.ready").await?.saturating_duration_since(confirmed);
    host.stop_vm(id).await?;
    journal.wait(id, "vm.gone").await?;
    let stages = marks(host, id)?.into_iter().map(|mark| (mark.stage.as_str(), after(at, mark.at))).collect();
    Ok(Boot { ready: ready.as_secs_f64() * 1_000.0, stages })
}

/// Every stage that the log knows of the job's boot.
fn marks(host: &BenchHost, id: JobId) -> Fallible<Vec<StageMark>> {
    let mut marks = Vec::new();
    for record in host.log.read_stream(id.0)? {
        match Event::decode(&record.payload, Time::UNIX_EPOCH)?.data {
            EventData::AttemptProgressed(told) => marks.extend(told.marks),
            EventData::AttemptReady(ready) => marks.extend(ready.marks),
            _ => {}
        }
    }
    Ok(marks)
}

fn after(start: Time, at: Time) -> f64 {
    (at.unix_micros() - start.unix_micros()) as f64 / 1_000.0
}

/// The first boot fills caches, and its VMM tells how Stoker starts one.
async fn warm_up(case: &Case, host: &BenchHost, journal: &Journal, spec: &JobSpec) -> Fallible<Recipe> {
    let (id, _) = host.enqueue(spec).await?;
    journal.wait(id, "attempt.ready").await?;
    let vm = VmId::derive(id, Epoch::first(1), &host.config().host);
    let recipe = Recipe::of_running(vm, &host.data.path().join("vms").join(vm.to_string()));
    host.stop_vm(id).await?;
    journal.wait(id, "vm.gone").await?;
    if case.program.is_none() {
        return recipe;
    }
    let image = host.rig.images.load(&spec.image)?;
    Ok(recipe?.with_api(&image.kernel(), &image.manifest.kernel_args, case.memory_mib))
}
