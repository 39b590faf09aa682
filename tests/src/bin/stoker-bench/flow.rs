//! Jobs through the whole worker with simulated VMs: how soon they start, how many a second.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use stoker_schemas::JobId;
use stoker_worker::log::{Append, EventLog, Expected, IndexChange};
use tokio::time::{MissedTickBehavior, interval};

use crate::Fallible;
use crate::figure::{Figure, Samples, Target};
use crate::host::{self, BenchHost};
use crate::rabbit::{self, Rabbit};

/// Time between two jobs of the steady stream: 100 a second.
const EVERY: Duration = Duration::from_millis(10);
/// Jobs before the measured ones: connections, queues and pages are warm then.
const WARM_UP: usize = 50;
/// Boots at once while latency is measured: no job waits for another.
const LATENCY_BOOTING: u32 = 64;
/// Boots at once, and enqueues under way, while throughput is measured.
const THROUGHPUT_BOOTING: u32 = 512;
const MEMORY_MIB: u32 = 64;
/// Appends that show what the disk needs for one.
const LONE_APPENDS: usize = 200;

/// From an enqueue's confirm to the durable `attempt.started`, at 100 jobs a second.
pub async fn queue_to_start(rabbit: Option<Rabbit>, quick: bool) -> Fallible<Vec<Figure>> {
    let is_rabbit = rabbit.is_some();
    let jobs = if quick { 300 } else { 1_000 };
    let host = BenchHost::start(&host::simulated(LATENCY_BOOTING), rabbit).await?;
    let waits = waits(&host, jobs).await;
    let append = lone_append(&host.log).await;
    host.end().await?;
    let waits = waits?;
    let detail = format!(
        "{jobs} jobs at 100/s; ms: median and quartiles {}, largest {:.2}; one durable append alone {}",
        waits.summary(),
        waits.quantile(1.0),
        append?.summary()
    );
    let figure = |part: &str, target, value| {
        let broker = if is_rabbit { "rabbitmq" } else { "embedded" };
        Figure::measured(format!("queue-to-start-{broker}-{part}"), "ms", target, value, detail.clone())
    };
    let (half, most) = if is_rabbit { (2.0, Target::AtMost(5.0)) } else { (0.6, Target::None) };
    Ok(vec![figure("p50", Target::AtMost(half), waits.median()), figure("p99", most, waits.quantile(0.99))])
}

/// Milliseconds of a durable append with nothing else under way: what no queue can be quicker than.
async fn lone_append(log: &EventLog) -> Fallible<Samples> {
    let (stream, payload) = (uuid::Uuid::now_v7(), Bytes::from_static(&[b'x'; 1_000]));
    let mut times = Vec::with_capacity(LONE_APPENDS);
    for _ in 0..LONE_APPENDS {
        let append =
            Append { stream, expected: Expected::Any, events: vec![payload.clone()], index: IndexChange::Keep };
        let begun = Instant::now();
        log.append(vec![append]).await?;
        times.push(begun.elapsed().as_secs_f64() * 1_000.0);
    }
    Ok(times.into_iter().collect())
}

async fn waits(host: &BenchHost, jobs: usize) -> Fallible<Samples> {
    let journal = host.journal(&["attempt.started"]);
    let spec = host::spec("bench", MEMORY_MIB)?;
    let mut clock = interval(EVERY);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ticks = stream::unfold(clock, async |mut clock| {
        clock.tick().await;
        Some(((), clock))
    });
    // A slow confirm must not hold up the next enqueue: the stream stays at its pace.
    let enqueued = ticks.take(WARM_UP + jobs).map(|()| host.enqueue(&spec)).buffered(WARM_UP);
    let enqueued: Vec<(JobId, Instant)> = enqueued.try_collect().await?;
    let mut waits = Vec::with_capacity(jobs);
    for (id, confirmed) in enqueued.into_iter().skip(WARM_UP) {
        let started = journal.wait(id, "attempt.started").await?;
        // The worker may be quicker than the producer's task that hears of the confirm.
        waits.push(started.saturating_duration_since(confirmed).as_secs_f64() * 1_000.0);
    }
    Ok(waits.into_iter().collect())
}

/// Whole jobs a second: enqueued, started, booted, probed and `attempt.ready` durable.
pub async fn throughput(quick: bool) -> Fallible<Vec<Figure>> {
    let mut figures = vec![jobs_per_second("throughput-embedded", None, Target::AtLeast(5_000.0), quick).await?];
    let name = "throughput-rabbitmq";
    figures.push(match Rabbit::from_environment() {
        Some(rabbit) => jobs_per_second(name, Some(rabbit), Target::AtLeast(2_500.0), quick).await?,
        None => Figure::skipped(name, &format!("{} is not set", rabbit::URL)),
    });
    Ok(figures)
}

async fn jobs_per_second(name: &str, rabbit: Option<Rabbit>, target: Target, quick: bool) -> Fallible<Figure> {
    let jobs = if quick { 5_000 } else { 20_000 };
    let host = BenchHost::start(&host::simulated(THROUGHPUT_BOOTING), rabbit).await?;
    let took = all_ready(&host, jobs).await;
    host.end().await?;
    let (enqueued, ready) = took?;
    let detail = format!(
        "{jobs} jobs, {THROUGHPUT_BOOTING} booting at once; all enqueued after {:.2} s, all ready after {:.2} s",
        enqueued.as_secs_f64(),
        ready.as_secs_f64()
    );
    Ok(Figure::measured(name, "jobs/s", target, jobs as f64 / ready.as_secs_f64(), detail))
}

async fn all_ready(host: &BenchHost, jobs: usize) -> Fallible<(Duration, Duration)> {
    let journal = host.journal(&["attempt.ready"]);
    let begun = Instant::now();
    enqueue_all(host, jobs).await?;
    let enqueued = begun.elapsed();
    let ready = journal.wait_count(jobs).await?.saturating_duration_since(begun);
    Ok((enqueued, ready))
}

/// Enqueues as fast as the broker confirms.
pub async fn enqueue_all(host: &BenchHost, jobs: usize) -> Fallible<()> {
    let spec = host::spec("bench", MEMORY_MIB)?;
    let enqueues = stream::iter(0..jobs).map(|_| host.enqueue(&spec)).buffer_unordered(THROUGHPUT_BOOTING as usize);
    enqueues.try_for_each(async |_| Ok(())).await
}
