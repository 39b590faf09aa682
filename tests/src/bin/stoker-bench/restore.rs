//! What a template saves: from the enqueue's confirm to the durable `attempt.ready`, of copies and of
//! cold boots of the same image, in turns on the same host. And what a snapshot would save where a
//! guest boots in no time: Firecracker's probe guest, by hand.

use std::path::Path;

use serde_json::json;
use stoker_schemas::JobSpec;

use crate::boot::{self, Boot};
use crate::by_hand::{self, Place, Recipe, Snapshot, Times};
use crate::figure::{Figure, Samples, Target};
use crate::host::{self, BenchHost};
use crate::journal::Journal;
use crate::{DEADLINE, Fallible};

const NAME: &str = "restore-to-ready-qemu";
const MEMORY_MIB: u32 = 128;
/// Means nothing to a kernel; a job with arguments of its own boots cold.
const COLD: &str = "stoker.bench=cold";

pub async fn figures(quick: bool) -> Fallible<Vec<Figure>> {
    let Some(images) = boot::variable(boot::IMAGES) else {
        return Ok(vec![Figure::skipped(NAME, &format!("{} is not set", boot::IMAGES))]);
    };
    let namespace = format!("st-bench-{}", std::process::id());
    let settings = json!({
        "host": "bench",
        "driver": "qemu",
        "images": images,
        "prewarm": true,
        "stop_grace_ms": 0,
        "network": {"mode": "bridge", "namespace": namespace, "bridge": "stbench0", "gateway": boot::GATEWAY, "prefix": 24},
    });
    let measured = match BenchHost::start(&settings, None).await {
        Ok(host) => on_host(host, &namespace, if quick { 3 } else { 15 }).await,
        Err(error) => Err(error),
    };
    boot::remove(&namespace).await;
    measured
}

async fn on_host(host: BenchHost, namespace: &str, pairs: usize) -> Fallible<Vec<Figure>> {
    let journal = host.journal(&boot::KINDS);
    let measured = in_turns(&host, &journal, pairs).await;
    let data = host.data.path().to_owned();
    drop(journal);
    let ended = host.end().await;
    boot::end_left_over(&data, namespace);
    ended?;
    Ok(vec![measured?])
}

async fn in_turns(host: &BenchHost, journal: &Journal, pairs: usize) -> Fallible<Figure> {
    let warm = host::spec("linux-minimal", MEMORY_MIB)?;
    let cold = JobSpec { kernel_args: COLD.to_owned(), ..warm.clone() };
    boot::by_stoker(host, journal, &warm).await?;
    template_is_kept(host.data.path()).await?;
    let (mut copies, mut boots) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        if pair % 2 == 0 {
            copies.push(boot::by_stoker(host, journal, &warm).await?);
            boots.push(boot::by_stoker(host, journal, &cold).await?);
        } else {
            boots.push(boot::by_stoker(host, journal, &cold).await?);
            copies.push(boot::by_stoker(host, journal, &warm).await?);
        }
    }
    Ok(figure(&copies, &boots))
}

/// It is made in the background after the first boot.
async fn template_is_kept(data: &Path) -> Fallible<()> {
    let kept = || {
        let folders = std::fs::read_dir(data.join("templates")).into_iter().flatten().flatten();
        folders.into_iter().any(|folder| folder.path().join("template.json").exists())
    };
    let waited = async {
        while !kept() {
            // Nobody is told of it: a folder appears.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waited).await.map_err(|_| "no template was made".into())
}

fn figure(copies: &[Boot], boots: &[Boot]) -> Figure {
    let times = |boots: &[Boot]| boots.iter().map(|boot| boot.ready).collect::<Samples>();
    let total = |boots: &[Boot]| boots.iter().map(|boot| boot.ready).sum::<f64>();
    let ratios: Samples = copies.iter().zip(boots).map(|(copy, boot)| copy.ready / boot.ready).collect();
    let detail = format!(
        "{} pairs; from a template {} ms, cold {} ms; a pair's ratio: median {:.3}, quartiles {:.3}-{:.3}; a copy's stages, ms \
         after the confirm: {}",
        ratios.len(),
        times(copies).summary(),
        times(boots).summary(),
        ratios.median(),
        ratios.quantile(0.25),
        ratios.quantile(0.75),
        boot::stages(copies),
    );
    Figure::measured(NAME, "x", Target::AtMost(0.15), total(copies) / total(boots), detail)
}

/// Without a target: most of either is the VMM's own start.
pub async fn by_hand(recipe: &Recipe, place: &Place, pairs: usize) -> Fallible<Figure> {
    let snapshot = Snapshot::take(recipe, place).await?;
    let (mut loads, mut boots) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        if pair % 2 == 0 {
            loads.push(snapshot.load(place).await?);
            boots.push(by_hand::boot(recipe, place).await?);
        } else {
            boots.push(by_hand::boot(recipe, place).await?);
            loads.push(snapshot.load(place).await?);
        }
    }
    let all = |times: &[Times], of: fn(&Times) -> f64| times.iter().map(of).collect::<Samples>();
    let total = |times: &[Times]| times.iter().map(|times| times.healthy).sum::<f64>();
    let detail = format!(
        "{pairs} pairs; from a snapshot {} ms, of which {} ms until the VMM had started and loaded it; cold {} ms, of which {} ms \
         until it had started and was told what to boot",
        all(&loads, |t| t.healthy).summary(),
        all(&loads, |t| t.told).summary(),
        all(&boots, |t| t.healthy).summary(),
        all(&boots, |t| t.told).summary(),
    );
    let value = total(&loads) / total(&boots);
    Ok(Figure::measured("restore-to-healthy-firecracker-by-hand", "x", Target::None, value, detail))
}
