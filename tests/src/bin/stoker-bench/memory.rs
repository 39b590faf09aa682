//! Memory of a worker that has a backlog and no room for any of it, in a process of its own.

use std::process::{ExitCode, Stdio};

use serde::{Deserialize, Serialize};

use crate::Fallible;
use crate::figure::{Figure, Target};
use crate::flow;
use crate::host::{self, BenchHost};
use crate::process::rss_kib;

/// Backlogs looked at, one after the other in one process.
const BACKLOGS: [usize; 3] = [10_000, 100_000, 1_000_000];

/// Growth for each further job that still counts as flat: less than a tenth of what it has on disk.
const MAX_GROWTH: f64 = 100.0;

/// A line from the child.
#[derive(Debug, Serialize, Deserialize)]
struct Reading {
    jobs: usize,
    rss_kib: u64,
    seconds: f64,
}

/// Measures in a child and reads what it prints.
pub async fn figures(quick: bool) -> Fallible<Vec<Figure>> {
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.arg("--memory-child").args(quick.then_some("--quick")).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.stderr(Stdio::inherit()).output().await?;
    if !output.status.success() {
        return Err(format!("the measuring process ended with {}", output.status).into());
    }
    let readings: Result<Vec<Reading>, _> =
        String::from_utf8(output.stdout)?.lines().map(serde_json::from_str).collect();
    let readings = readings?;
    let Some((empty, backlogs)) = readings.split_first() else { return Err("nothing was measured".into()) };
    let figure = |reading: &Reading| {
        let grown = reading.rss_kib.saturating_sub(empty.rss_kib) as f64 * 1_024.0 / reading.jobs as f64;
        let detail = format!(
            "{:.0} MiB when empty; {grown:.0} bytes a job; filled in {:.1} s",
            mib(empty.rss_kib),
            reading.seconds
        );
        let name = format!("memory-backlog-{}k", reading.jobs / 1_000);
        Figure::measured(name, "MiB", Target::None, mib(reading.rss_kib), detail)
    };
    let mut figures: Vec<_> = backlogs.iter().map(figure).collect();
    if let [.., before, last] = backlogs {
        figures.push(growth(before, last));
    }
    Ok(figures)
}

/// Flat means: what grows is the index of positions, not the messages.
fn growth(before: &Reading, last: &Reading) -> Figure {
    let jobs = last.jobs.saturating_sub(before.jobs) as f64;
    let bytes = last.rss_kib.saturating_sub(before.rss_kib) as f64 * 1_024.0 / jobs;
    let detail =
        format!("from {} to {} jobs waiting; an event of one has about a thousand bytes", before.jobs, last.jobs);
    Figure::measured("memory-growth-per-job", "bytes", Target::AtMost(MAX_GROWTH), bytes, detail)
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1_024.0
}

/// The child: fills the backlog step by step, prints a reading after each.
pub async fn child(quick: bool) -> Fallible<ExitCode> {
    let data = host::data_folder()?;
    let mut config = host::resolve(&host::simulated(1), data.path())?;
    // The pages of the simulated network's addresses would be counted; no slot, no delivery.
    config.capacity.slots = 0;
    let host = BenchHost::start_with(config, data, None).await?;
    let begun = std::time::Instant::now();
    print(&Reading { jobs: 0, rss_kib: rss_kib()?, seconds: 0.0 })?;
    let mut there = 0;
    for jobs in BACKLOGS.into_iter().take(if quick { 2 } else { 3 }) {
        flow::enqueue_all(&host, jobs - there).await?;
        there = jobs;
        print(&Reading { jobs, rss_kib: rss_kib()?, seconds: begun.elapsed().as_secs_f64() })?;
    }
    host.end().await?;
    Ok(ExitCode::SUCCESS)
}

fn print(reading: &Reading) -> Fallible<()> {
    use std::io::Write as _;
    Ok(writeln!(std::io::stdout(), "{}", serde_json::to_string(reading)?)?)
}
