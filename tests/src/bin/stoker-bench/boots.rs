//! What many boots and stops leave behind: nothing, neither in the books nor on the host. Simulated VMs for the books;
//! real ones, jailed, with taps, leases, control groups and mounts of their own, for the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use stoker_schemas::JobSpec;
use stoker_worker::counts::USE;
use stoker_worker::supervisor::tags;

use crate::boot::{self, GATEWAY, IMAGES};
use crate::figure::{Figure, Target};
use crate::host::{self, BenchHost};
use crate::{Fallible, process};

const SIMULATED: &str = "boots-simulated";
const FIRECRACKER: &str = "boots-firecracker";
/// Boots at once. The probe guest polls: each takes a core while it boots.
const SIMULATED_AT_ONCE: u32 = 64;
const REAL_AT_ONCE: u32 = 2;
/// Boots before what is open is counted for the first time.
const WARM_UP: usize = 20;
const KINDS: [&str; 2] = ["attempt.ready", "vm.gone"];

pub async fn figures(quick: bool) -> Fallible<Vec<Figure>> {
    let (simulated, real) = if quick { (1_000, 50) } else { (10_000, 1_000) };
    Ok(vec![of_simulated(simulated).await?, of_real(real).await?])
}

async fn of_simulated(times: usize) -> Fallible<Figure> {
    let host = BenchHost::start(&host::simulated(SIMULATED_AT_ONCE), None).await?;
    let spec = json!({"image": "bench", "vcpus": 1, "memory_mib": 64, "kernel_args": "sim.exit-ms=20"});
    let counted = all(&host, &JobSpec::from_value(&spec)?, times, SIMULATED_AT_ONCE, false).await;
    let left = in_the_books(&host);
    host.end().await?;
    let (counted, mut left) = (counted?, left?);
    left.extend(counted.grown);
    Ok(figure(SIMULATED, times, counted.took, &left, "places, addresses, open jobs; files and threads of the worker"))
}

async fn of_real(times: usize) -> Fallible<Figure> {
    let Some(images) = boot::variable(IMAGES) else {
        return Ok(Figure::skipped(FIRECRACKER, &format!("{IMAGES} is not set")));
    };
    let program = match boot::firecracker_here() {
        Ok(program) => program,
        Err(why) => return Ok(Figure::skipped(FIRECRACKER, &why)),
    };
    if !program.with_file_name("jailer").is_file() {
        return Ok(Figure::skipped(FIRECRACKER, "there is no jailer beside Firecracker"));
    }
    let namespace = format!("st-bench-{}", std::process::id());
    let settings = settings(&images, &program, &namespace);
    let measured = match BenchHost::start(&settings, None).await {
        Ok(host) => on_host(host, &namespace, times).await,
        Err(error) => Err(error),
    };
    boot::remove(&namespace).await;
    for group in groups(&namespace) {
        // Only an empty one can be removed.
        let _ = fs::remove_dir(group);
    }
    measured
}

fn settings(images: &Path, program: &Path, namespace: &str) -> Value {
    json!({
        "host": "bench",
        "driver": "firecracker",
        "images": images,
        "firecracker": program,
        "cgroup_parent": namespace,
        "max_booting": REAL_AT_ONCE,
        "stop_grace_ms": 0,
        "network": {"mode": "bridge", "namespace": namespace, "bridge": "stbench0", "gateway": GATEWAY, "prefix": 24},
    })
}

async fn on_host(host: BenchHost, namespace: &str, times: usize) -> Fallible<Figure> {
    sees_a_running_vm(&host, namespace).await?;
    let counted = all(&host, &host::spec("probe", 64)?, times, REAL_AT_ONCE, true).await;
    let left = in_the_books(&host).and_then(|mut left| {
        left.extend(on_the_host(host.data.path(), namespace)?);
        Ok(left)
    });
    let data = host.data.path().to_owned();
    let ended = host.end().await;
    boot::end_left_over(&data, namespace);
    ended?;
    let (counted, mut left) = (counted?, left?);
    left.extend(counted.grown);
    let what = "taps, neighbours, leases, reservations, control groups, mounts, folders, processes; places, addresses, open \
                jobs; files and threads of the worker";
    Ok(figure(FIRECRACKER, times, counted.took, &left, what))
}

/// What finds nothing of a VM that is up would find nothing of one that is left.
async fn sees_a_running_vm(host: &BenchHost, namespace: &str) -> Fallible<()> {
    let journal = host.journal(&KINDS);
    let (id, _) = host.enqueue(&host::spec("probe", 64)?).await?;
    journal.wait(id, "attempt.ready").await?;
    let seen = on_the_host(host.data.path(), namespace)?.join("\n");
    let books = in_the_books(host)?.join(", ");
    host.stop_vm(id).await?;
    journal.wait(id, "vm.gone").await?;
    let wanted = [": st", "leases: ", "reservations: ", "control group", "/vms/", "process "];
    let missed: Vec<_> = wanted.into_iter().filter(|what| !seen.contains(what)).collect();
    if missed.is_empty() && books.contains("places") {
        return Ok(());
    }
    Err(format!("of a VM that is up, {missed:?} were not seen, only {seen}; in the books {books}").into())
}

struct Counted {
    took: Duration,
    /// What the worker has open that it had not before.
    grown: Vec<String>,
}

/// So many VMs up and gone again.
async fn all(host: &BenchHost, spec: &JobSpec, times: usize, at_once: u32, asks: bool) -> Fallible<Counted> {
    let journal = host.journal(&KINDS);
    let one = |_| async {
        let (id, _) = host.enqueue(spec).await?;
        journal.wait(id, "attempt.ready").await?;
        if asks {
            host.stop_vm(id).await?;
        }
        journal.wait(id, "vm.gone").await?;
        Fallible::Ok(())
    };
    let run =
        async |times| stream::iter(0..times).map(one).buffer_unordered(at_once as usize).try_collect::<()>().await;
    run(WARM_UP).await?;
    let (files, threads) = (process::open_files()?, process::threads()?);
    let begun = Instant::now();
    run(times).await?;
    let took = begun.elapsed();
    let mut grown = Vec::new();
    for (what, before, now) in [("files", files, process::open_files()?), ("threads", threads, process::threads()?)] {
        // Threads that block come and go with the load; a leak has one for each VM, or for every tenth.
        grown.extend((now > before + times as u64 / 10).then(|| format!("{now} {what} instead of {before}")));
    }
    Ok(Counted { took, grown })
}

fn figure(name: &str, times: usize, took: Duration, left: &[String], what: &str) -> Figure {
    let of_one = took.as_secs_f64() * 1_000.0 / times as f64;
    let mut detail = format!("{times} boots and stops, {of_one:.1} ms for each; looked for: {what}");
    if !left.is_empty() {
        detail = format!("{detail}; left: {}", left.join(", "));
    }
    Figure::measured(name, "left", Target::AtMost(0.0), left.len() as f64, detail)
}

/// What the worker still counts.
fn in_the_books(host: &BenchHost) -> Fallible<Vec<String>> {
    let counted = [("places", USE.slots_used.now()), ("boots", USE.booting.now()), ("VMs", USE.ready.now())];
    let mut left: Vec<_> = counted.into_iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{n} {what}")).collect();
    for tag in [tags::ACTIVE, tags::QUEUED, tags::RETRYING] {
        let open = host.log.open_streams(Some(tag)).collect::<Result<Vec<_>, _>>()?;
        left.extend((!open.is_empty()).then(|| format!("{} open jobs", open.len())));
    }
    Ok(left)
}

/// What is still on the host.
fn on_the_host(data: &Path, namespace: &str) -> Fallible<Vec<String>> {
    let mut left = Vec::new();
    let links = ip(namespace, "link")?;
    left.extend(links.into_iter().filter(|link| !link.contains(": lo:") && !link.contains(": stbench0:")));
    // One without a MAC is the kernel's note that nobody answers there: a connection that was cut off asked once more.
    left.extend(ip(namespace, "neigh")?.into_iter().filter(|neighbour| neighbour.contains("lladdr")));
    let dhcp = PathBuf::from(format!("/run/stoker/{namespace}-stbench0"));
    for file in ["leases", "reservations"] {
        left.extend(fs::read_to_string(dhcp.join(file))?.lines().map(|line| format!("{file}: {line}")));
    }
    let of_vms = groups(namespace).into_iter().flat_map(|group| folders(&group));
    left.extend(of_vms.map(|group| format!("control group {}", group.display())));
    let data = data.canonicalize()?;
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    left.extend(mounts.lines().filter(|line| line.contains(&*data.to_string_lossy())).map(str::to_owned));
    left.extend(fs::read_dir(data.join("vms"))?.flatten().map(|entry| entry.path().display().to_string()));
    left.extend(processes_in(namespace));
    Ok(left)
}

fn ip(namespace: &str, of: &str) -> Fallible<Vec<String>> {
    let output = Command::new("ip").args(["-n", namespace, "-o", of]).output()?;
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

/// The parent of VMs' control groups, in each tree.
fn groups(parent: &str) -> Vec<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    let trees = folders(top).into_iter().chain([top.to_owned()]);
    trees.map(|tree| tree.join(parent)).filter(|group| group.is_dir()).collect()
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.is_dir()).collect()
}

/// VMMs, by their control groups: from outside, a jailed process' folder is called `/`.
fn processes_in(parent: &str) -> Vec<String> {
    let parent = format!("/{parent}/");
    let inside = |process: &PathBuf| {
        fs::read_to_string(process.join("cgroup")).is_ok_and(|groups: String| groups.contains(&parent))
    };
    let found = folders(Path::new("/proc")).into_iter().filter(inside);
    found.map(|process| format!("process {}", process.display())).collect()
}
