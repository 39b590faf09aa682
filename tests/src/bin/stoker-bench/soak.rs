//! What a host and its control plane take while jobs come and end at a steady rate: whatever grows shows as a slope.
//! Worker, `stoker serve` and the load are this process; the broker is RabbitMQ.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stoker_schemas::JobSpec;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::figure::{Figure, Target, slope};
use crate::host::{self, BenchHost};
use crate::rabbit::{self, Rabbit};
use crate::server::Server;
use crate::{DEADLINE, Fallible, disk, process};

const NAME: &str = "soak";
/// Between two jobs: 100 a second, each with seven events or so.
const EVERY: Duration = Duration::from_millis(10);
/// Between two samples.
const SAMPLED_EVERY: Duration = Duration::from_secs(5);
/// Memory is judged in the last third, the rest in the last two: until then the caches of log and rows fill, which
/// takes some 800,000 events.
const PARTS: usize = 3;
/// Of so many jobs one cannot boot and ends dead; the others power themselves off.
const DEAD_OF: u64 = 10;
/// How much memory may rise for each event of the history: sled keeps the place of each page, of log and rows, in memory.
/// Measured before this was set: 34 bytes.
const FLAT_BYTES: f64 = 40.0;
/// How much another line may rise in an hour and still count as flat.
const FLAT_COUNT: f64 = 1.0;
/// The disk holds the history, which grows with the jobs; how much of it a job takes may not.
const FLAT_PART: f64 = 0.05;

/// One look at the process.
struct Sample {
    /// Hours since the beginning.
    at: f64,
    rss_mib: f64,
    files: f64,
    threads: f64,
    disk: f64,
    jobs: f64,
    events: f64,
}

pub async fn figures(minutes: u32) -> Fallible<Vec<Figure>> {
    let Some(rabbit) = Rabbit::from_environment() else {
        return Ok(vec![Figure::skipped(NAME, &format!("{} is not set", rabbit::URL))]);
    };
    let host = BenchHost::start(&host::simulated(64), Some(rabbit)).await?;
    let server = Server::start(host.front(), host.data.path()).await?;
    let soaked = soak(&host, &server, Duration::from_secs(60) * minutes).await;
    server.end().await?;
    host.end().await?;
    let (samples, jobs, left) = soaked?;
    Ok(judged(&samples, minutes, jobs, left))
}

/// Samples, how many jobs there were, and how many of them had not ended at the end.
async fn soak(host: &BenchHost, server: &Server, time: Duration) -> Fallible<(Vec<Sample>, u64, u64)> {
    let (ends, dies) = specs()?;
    let begun = Instant::now();
    let mut pace = interval(EVERY);
    // Late is made up for: the rate is what was promised.
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut samples, mut jobs) = (Vec::new(), 0);
    while begun.elapsed() < time {
        pace.tick().await;
        host.enqueue(if jobs % DEAD_OF == 0 { &dies } else { &ends }).await?;
        jobs += 1;
        if begun.elapsed() >= SAMPLED_EVERY * u32::try_from(samples.len() + 1)? {
            samples.push(sample(begun, host, jobs)?);
        }
    }
    let ended = async {
        loop {
            let left = jobs.saturating_sub(ended(server).await?);
            if left == 0 {
                return Fallible::Ok(());
            }
            // What is asked for is a row that others write.
            tokio::time::sleep(EVERY).await;
        }
    };
    let left = match timeout(DEADLINE, ended).await {
        Ok(ended) => ended.map(|()| 0)?,
        Err(_) => jobs.saturating_sub(self::ended(server).await?),
    };
    Ok((samples, jobs, left))
}

fn specs() -> Fallible<(JobSpec, JobSpec)> {
    let job = |args: &str| {
        let retry = json!({"max_attempts": 1});
        json!({"image": "bench", "vcpus": 1, "memory_mib": 64, "kernel_args": args, "retry": retry})
    };
    Ok((JobSpec::from_value(&job("sim.exit-ms=500"))?, JobSpec::from_value(&job("sim.boot=refused"))?))
}

/// Jobs that ended, as the control plane knows it.
async fn ended(server: &Server) -> Fallible<u64> {
    let counts: Value = serde_json::from_slice(&server.get("/v1/counts").await?)?;
    Ok(["stopped", "dead"].iter().filter_map(|phase| counts["phases"][phase].as_u64()).sum())
}

fn sample(begun: Instant, host: &BenchHost, jobs: u64) -> Fallible<Sample> {
    Ok(Sample {
        at: begun.elapsed().as_secs_f64() / 3_600.0,
        rss_mib: process::rss_kib()? as f64 / 1_024.0,
        files: process::open_files()? as f64,
        threads: process::threads()? as f64,
        disk: disk::bytes(host.data.path())? as f64,
        jobs: jobs as f64,
        events: host.log.durable() as f64,
    })
}

fn judged(samples: &[Sample], minutes: u32, jobs: u64, left: u64) -> Vec<Figure> {
    let (warm_up, measured) = samples.split_at(samples.len() / PARTS);
    let rising = |of: fn(&Sample) -> f64| slope(measured.iter().map(|sample| (sample.at, of(sample))));
    let first_and_last = |of: fn(&Sample) -> f64| {
        let at = |sample: Option<&Sample>| sample.map_or(f64::NAN, of);
        format!(
            "{:.1} at the beginning, {:.1} after the warm-up, {:.1} at the end",
            at(warm_up.first()),
            at(measured.first()),
            at(measured.last())
        )
    };
    let of_all = format!(
        "{minutes} min at {:.0} jobs/s ({jobs} jobs), {} samples after the first third",
        1.0 / EVERY.as_secs_f64(),
        measured.len()
    );
    let line = |name: &str, unit, bound, of: fn(&Sample) -> f64| {
        let detail = format!("least squares; {of_all}; {}", first_and_last(of));
        Figure::measured(format!("{NAME}-{name}"), unit, Target::AtMost(bound), rising(of), detail)
    };
    let half = measured.len() / 2;
    let disk_of_a_job = |samples: &[Sample]| slope(samples.iter().map(|sample| (sample.jobs, sample.disk)));
    let (earlier, later) = (disk_of_a_job(&measured[..half]), disk_of_a_job(&measured[half..]));
    let detail = format!("{later:.0} bytes for each job in the later half, {earlier:.0} in the earlier one; {of_all}");
    vec![
        memory(samples, &of_all),
        line("open-files", "/h", FLAT_COUNT, |sample| sample.files),
        line("threads", "/h", FLAT_COUNT, |sample| sample.threads),
        Figure::measured(
            format!("{NAME}-disk-of-a-job"),
            "x",
            Target::AtMost(1.0 + FLAT_PART),
            later / earlier,
            detail,
        ),
        Figure::measured(format!("{NAME}-jobs-not-ended"), "jobs", Target::AtMost(0.0), left as f64, of_all),
    ]
}

/// Over the events, not the time: the history is what it grows with.
fn memory(samples: &[Sample], of_all: &str) -> Figure {
    let part = &samples[samples.len() - samples.len() / PARTS..];
    let of_an_event = slope(part.iter().map(|sample| (sample.events, sample.rss_mib * f64::from(1 << 20))));
    let an_hour = slope(part.iter().map(|sample| (sample.at, sample.rss_mib)));
    let at = |part: usize| {
        samples.get((samples.len() * part / PARTS).min(samples.len() - 1)).map_or(f64::NAN, |s| s.rss_mib)
    };
    let detail = format!(
        "least squares over the last third, {an_hour:.1} MiB/h; MiB at the beginning, after a third, after two and at the \
         end: {:.0}, {:.0}, {:.0}, {:.0}; {of_all}",
        at(0),
        at(1),
        at(2),
        at(PARTS)
    );
    Figure::measured(format!("{NAME}-memory"), "bytes/event", Target::AtMost(FLAT_BYTES), of_an_event, detail)
}
