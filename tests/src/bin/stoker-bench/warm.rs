//! How long a job waits for a VM that is up already: from the enqueue's confirm to the durable
//! `attempt.ready`, with cold boots of the same image on the same host in between.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use stoker_schemas::event::{Event, EventData};
use stoker_schemas::{JobSpec, Time, VmId};

use crate::boot::{self, Boot};
use crate::figure::{Figure, Samples, Target};
use crate::host::{self, BenchHost};
use crate::{DEADLINE, Fallible};

/// As many are kept; each hand-over finds all of them waiting.
const KEPT: usize = 2;
/// Hand-overs between two cold boots.
const BETWEEN: usize = 10;
/// Means nothing to a kernel; a job with arguments of its own boots its own VM.
const OWN: &str = "stoker.bench=cold";
/// Events read at a time.
const PAGE: usize = 1_024;

struct Case {
    name: &'static str,
    image: &'static str,
    memory_mib: u32,
    times: usize,
    settings: Value,
}

pub async fn figures(quick: bool) -> Fallible<Vec<Figure>> {
    let (qemu, firecracker) = ("warm-hand-over-qemu", "warm-hand-over-firecracker");
    let Some(images) = boot::variable(boot::IMAGES) else {
        let why = format!("{} is not set", boot::IMAGES);
        return Ok(vec![Figure::skipped(qemu, &why), Figure::skipped(firecracker, &why)]);
    };
    let times = if quick { 20 } else { 100 };
    let settings = json!({"driver": "qemu", "images": images});
    let mut figures =
        vec![measured(Case { name: qemu, image: "linux-minimal", memory_mib: 128, times, settings }).await?];
    figures.push(match boot::firecracker_here() {
        Ok(program) => {
            let settings = json!({"driver": "firecracker", "images": images, "firecracker": program, "jailer": "off"});
            measured(Case { name: firecracker, image: "probe", memory_mib: 64, times, settings }).await?
        }
        Err(why) => Figure::skipped(firecracker, &why),
    });
    Ok(figures)
}

async fn measured(mut case: Case) -> Fallible<Figure> {
    let namespace = format!("st-bench-{}", std::process::id());
    let ours = json!({
        "host": "bench",
        "stop_grace_ms": 0,
        "warm": [{"image": case.image, "vcpus": 1, "memory_mib": case.memory_mib, "count": KEPT}],
        "network": {"mode": "bridge", "namespace": namespace, "bridge": "stbench0", "gateway": boot::GATEWAY, "prefix": 24},
    });
    if let (Some(settings), Value::Object(ours)) = (case.settings.as_object_mut(), ours) {
        settings.extend(ours);
    }
    let figure = match BenchHost::start(&case.settings, None).await {
        Ok(host) => on_host(&case, host, &namespace).await,
        Err(error) => Err(error),
    };
    boot::remove(&namespace).await;
    figure
}

async fn on_host(case: &Case, host: BenchHost, namespace: &str) -> Fallible<Figure> {
    let measured = in_turns(case, &host).await;
    let data = host.data.path().to_owned();
    let ended = host.end().await;
    boot::end_left_over(&data, namespace);
    ended?;
    measured
}

async fn in_turns(case: &Case, host: &BenchHost) -> Fallible<Figure> {
    let journal = host.journal(&boot::KINDS);
    let plain = host::spec(case.image, case.memory_mib)?;
    let own = JobSpec { kernel_args: OWN.to_owned(), ..plain.clone() };
    let mut pool = Pool { next: 1, waiting: BTreeSet::new(), taken: 0 };
    let (mut taken, mut boots) = (Vec::new(), Vec::new());
    for turn in 0..case.times {
        pool.is_full(host).await?;
        if turn % BETWEEN == 0 {
            boots.push(boot::by_stoker(host, &journal, &own).await?);
        }
        taken.push(boot::by_stoker(host, &journal, &plain).await?);
    }
    pool.is_full(host).await?;
    if pool.taken != case.times {
        return Err(format!("{} of {} jobs were given a warm VM", pool.taken, case.times).into());
    }
    Ok(figure(case, &taken, &boots))
}

fn figure(case: &Case, taken: &[Boot], boots: &[Boot]) -> Figure {
    let times = |boots: &[Boot]| boots.iter().map(|boot| boot.ready).collect::<Samples>();
    let all = times(taken);
    let detail = format!(
        "p99 of {} hand-overs, each with {KEPT} VMs waiting; all {} ms, the slowest {:.1}; {} boots in between {} ms; a \
         hand-over's stages, ms after the confirm: {}",
        taken.len(),
        all.summary(),
        all.quantile(1.0),
        boots.len(),
        times(boots).summary(),
        boot::stages(taken),
    );
    Figure::measured(case.name, "ms", Target::AtMost(50.0), all.quantile(0.99), detail)
}

/// The warm VMs, as the log tells of them.
struct Pool {
    next: u64,
    waiting: BTreeSet<VmId>,
    taken: usize,
}

impl Pool {
    async fn is_full(&mut self, host: &BenchHost) -> Fallible<()> {
        let mut head = host.log.head();
        let filled = async {
            loop {
                head.borrow_and_update();
                self.read(host)?;
                if self.waiting.len() == KEPT {
                    return Ok(());
                }
                head.changed().await?;
            }
        };
        tokio::time::timeout(DEADLINE, filled).await.map_err(|_| "the warm pool does not fill up")?
    }

    fn read(&mut self, host: &BenchHost) -> Fallible<()> {
        loop {
            let records = host.log.scan(self.next, PAGE)?;
            let Some(last) = records.last() else { return Ok(()) };
            self.next = last.position + 1;
            for record in records {
                match Event::decode(&record.payload, Time::UNIX_EPOCH)?.data {
                    EventData::WarmReady(ready) => drop(self.waiting.insert(ready.vm)),
                    EventData::WarmGone(gone) => drop(self.waiting.remove(&gone.vm)),
                    EventData::WarmTaken(taken) => self.taken += usize::from(self.waiting.remove(&taken.vm)),
                    _ => {}
                }
            }
        }
    }
}
