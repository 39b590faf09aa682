//! What a template saves: from the enqueue's confirm to the durable `attempt.ready`, of copies and of
//! cold boots of the same image, in turns on the same host.

use std::path::Path;

use serde_json::json;
use stoker_schemas::JobSpec;

use crate::boot::{self, Boot};
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
