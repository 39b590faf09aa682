//! What a job costs when the log is long: the same jobs through the same worker, over logs of ten thousand to ten
//! million events, in turns. And what one more job costs the rows of a control plane that has many.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use stoker_producer::clock;
use stoker_producer::readmodel::ReadModel;
use stoker_schemas::JobSpec;
use stoker_worker::ports::broker::{CONTENT_EVENT, HistoryEntry};
use tempfile::TempDir;

use crate::figure::{Figure, Samples, Target};
use crate::host::{self, BenchHost};
use crate::{Fallible, disk, log, process};
use stoker_tests::crowd::Crowd;

/// Events in the log before the measured jobs.
const SIZES: [u64; 4] = [10_000, 100_000, 1_000_000, 10_000_000];
/// Bytes on disk of ten million events, and what must be left beside them.
const LARGEST_BYTES: u64 = 6 << 30;
const LEFT_BYTES: u64 = 4 << 30;
/// A log of this size or less is measured in a copy: the jobs of one round would be a good part of it.
const COPIED: u64 = 100_000;
/// Events in the history that the rows were made from.
const ROW_SIZES: [u64; 3] = [10_000, 100_000, 1_000_000];
/// Boots at once.
const BOOTING: u32 = 64;
/// Jobs before the measured ones.
const WARM_UP: usize = 200;
/// Dearer than this by more events, and the cost grows.
const MAX_GROWTH: f64 = 1.2;
const KINDS: [&str; 2] = ["attempt.ready", "vm.gone"];

pub async fn figures(quick: bool) -> Fallible<Vec<Figure>> {
    let mut figures = of_the_log(quick).await?;
    figures.extend(tokio::task::spawn_blocking(move || of_the_rows(quick)).await??);
    Ok(figures)
}

/// A log of one size, and what was measured on it, round by round.
struct Sized {
    events: u64,
    data: Arc<TempDir>,
    mebibytes: u64,
    rounds: Vec<Round>,
}

#[derive(Clone, Copy)]
struct Round {
    /// Microseconds of a job, enqueued to gone, with many under way.
    wall: f64,
    /// Microseconds of processor time.
    cpu: f64,
    /// Milliseconds until the worker works.
    start: f64,
}

async fn of_the_log(quick: bool) -> Fallible<Vec<Figure>> {
    let (rounds, jobs) = if quick { (3, 1_000) } else { (9, 3_000) };
    let sizes: Vec<u64> = SIZES.into_iter().filter(|events| fits(*events, quick)).collect();
    let mut logs = Vec::with_capacity(sizes.len());
    for events in sizes {
        let data = host::data_folder()?;
        log::fill(&data.path().join("log"), usize::try_from(events)?).await?;
        disk::closed(data.path()).await?;
        let mebibytes = disk::mebibytes(data.path())?;
        logs.push(Sized { events, data, mebibytes, rounds: Vec::new() });
    }
    for round in 0..rounds {
        // There and back again: who comes first in a round comes last in the next.
        let count = logs.len();
        for n in (0..count).map(|n| if round % 2 == 0 { n } else { count - 1 - n }) {
            let measured = measure(&logs[n], jobs).await?;
            logs[n].rounds.push(measured);
        }
    }
    let skipped = SIZES.into_iter().filter(|events| !quick && logs.iter().all(|log| log.events != *events));
    let skipped: Vec<_> = skipped.map(|events| Figure::skipped(&name(events), "no room on disk")).collect();
    let mut figures: Vec<Figure> = logs.iter().map(|log| figure(log, &logs[0], jobs)).collect();
    figures.extend(skipped);
    figures.extend(logs.last().map(start_figure));
    Ok(figures)
}

fn name(events: u64) -> String {
    format!("growth-job-{events}")
}

fn fits(events: u64, quick: bool) -> bool {
    let largest = SIZES[SIZES.len() - 1];
    events < largest || (!quick && free_bytes().is_some_and(|free| free > LARGEST_BYTES + LEFT_BYTES))
}

/// Room where scratch folders are.
fn free_bytes() -> Option<u64> {
    let output = Command::new("df").args(["--output=avail", "-B1"]).arg(std::env::temp_dir()).output().ok()?;
    String::from_utf8(output.stdout).ok()?.lines().nth(1)?.trim().parse().ok()
}

/// Ready, then powered off by itself.
fn spec() -> Fallible<JobSpec> {
    let spec = json!({"image": "bench", "vcpus": 1, "memory_mib": 64, "kernel_args": "sim.exit-ms=100"});
    Ok(JobSpec::from_value(&spec)?)
}

async fn measure(of: &Sized, jobs: usize) -> Fallible<Round> {
    let data = if of.events <= COPIED { copied(of.data.path())? } else { of.data.clone() };
    let begun = Instant::now();
    let host = BenchHost::start_in(data, &host::simulated(BOOTING), None).await?;
    let start = begun.elapsed().as_secs_f64() * 1_000.0;
    let journal = host.journal(&KINDS);
    run(&host, WARM_UP).await?;
    journal.wait_count(WARM_UP * KINDS.len()).await?;
    let (begun, cpu) = (Instant::now(), process::cpu()?);
    run(&host, jobs).await?;
    let ended = journal.wait_count((WARM_UP + jobs) * KINDS.len()).await?;
    let (wall, cpu) = (ended.duration_since(begun), process::cpu()?.saturating_sub(cpu));
    drop(journal);
    host.end_for_now().await?;
    let a_job = |micros: u128| micros as f64 / jobs as f64;
    Ok(Round { wall: a_job(wall.as_micros()), cpu: a_job(cpu.as_micros()), start })
}

async fn run(host: &BenchHost, jobs: usize) -> Fallible<()> {
    let spec = spec()?;
    let enqueues = stream::iter(0..jobs).map(|_| host.enqueue(&spec)).buffer_unordered(BOOTING as usize);
    enqueues.try_for_each(async |_| Ok(())).await
}

fn copied(data: &Path) -> Fallible<Arc<TempDir>> {
    let copy = host::data_folder()?;
    let copying = Command::new("cp").arg("-r").arg(data.join("log")).arg(copy.path()).status()?;
    if copying.success() { Ok(copy) } else { Err("the log cannot be copied".into()) }
}

fn figure(log: &Sized, smallest: &Sized, jobs: usize) -> Figure {
    let of = |what: fn(&Round) -> f64| log.rounds.iter().map(what).collect::<Samples>();
    let over = |what: fn(&Round) -> f64| {
        let pairs = log.rounds.iter().zip(&smallest.rounds);
        pairs.map(|(round, first)| what(round) / what(first)).collect::<Samples>()
    };
    let ratio = over(|round| round.wall);
    let detail = format!(
        "{} rounds of {jobs} jobs, enqueued to gone, {BOOTING} booting at once, over a log of {} MiB; us of a job: {}, of \
         processor time {}; over those with {} events in the same round: {}, of processor time {}; start {} ms",
        log.rounds.len(),
        log.mebibytes,
        of(|round| round.wall).summary(),
        of(|round| round.cpu).summary(),
        smallest.events,
        ratio.summary(),
        over(|round| round.cpu).summary(),
        of(|round| round.start).summary(),
    );
    let target = if log.events == smallest.events { Target::None } else { Target::AtMost(MAX_GROWTH) };
    Figure::measured(name(log.events), "x", target, ratio.median(), detail)
}

fn start_figure(largest: &Sized) -> Figure {
    let starts: Samples = largest.rounds.iter().map(|round| round.start / 1_000.0).collect();
    let detail = format!(
        "the slowest of {} starts of a worker with {} events in the log, {} MiB; the first one reads what sled wrote since \
         the log was begun; s: {}",
        starts.len(),
        largest.events,
        largest.mebibytes,
        starts.summary()
    );
    Figure::measured("growth-start", "s", Target::AtMost(2.0), starts.quantile(1.0), detail)
}

/// Rows of one size.
struct Rows {
    model: ReadModel,
    crowd: Crowd,
    next: u64,
    bytes_per_event: f64,
    times: Vec<f64>,
    /// The same in processor time.
    cpu: Vec<f64>,
    _dir: TempDir,
}

/// Jobs told at once: about what a batch of the history has.
const JOBS_AT_ONCE: usize = 50;
/// Batches of a round.
const BATCHES: usize = 20;

fn of_the_rows(quick: bool) -> Fallible<Vec<Figure>> {
    let (sizes, rounds) = if quick { (&ROW_SIZES[..2], 5) } else { (&ROW_SIZES[..], 15) };
    let mut all = sizes.iter().map(|events| Rows::filled(*events)).collect::<Fallible<Vec<_>>>()?;
    for _ in 0..rounds {
        for rows in &mut all {
            let (begun, cpu) = (Instant::now(), process::cpu()?);
            for _ in 0..BATCHES {
                rows.tell(JOBS_AT_ONCE)?;
            }
            let a_job = |time: Duration| time.as_micros() as f64 / (JOBS_AT_ONCE * BATCHES) as f64;
            rows.times.push(a_job(begun.elapsed()));
            rows.cpu.push(a_job(process::cpu()?.saturating_sub(cpu)));
        }
    }
    let figures = all.iter().zip(sizes).map(|(rows, events)| {
        let over = |of: fn(&Rows) -> &Vec<f64>| {
            of(rows).iter().zip(of(&all[0])).map(|(time, first)| time / first).collect::<Samples>()
        };
        let ratio = over(|rows| &rows.times);
        let detail = format!(
            "{rounds} rounds of {} jobs; us of a job: {}, of processor time {}; over those with {} events: {}, of processor \
             time {}; {:.0} bytes on disk for each event of the history",
            JOBS_AT_ONCE * BATCHES,
            rows.times.iter().copied().collect::<Samples>().summary(),
            rows.cpu.iter().copied().collect::<Samples>().summary(),
            ROW_SIZES[0],
            ratio.summary(),
            over(|rows| &rows.cpu).summary(),
            rows.bytes_per_event
        );
        let target = if *events == ROW_SIZES[0] { Target::None } else { Target::AtMost(MAX_GROWTH) };
        Figure::measured(format!("growth-rows-{events}"), "x", target, ratio.median(), detail)
    });
    Ok(figures.collect())
}

impl Rows {
    fn filled(events: u64) -> Fallible<Self> {
        let dir = tempfile::Builder::new().prefix("st-bench-").tempdir()?;
        let model = ReadModel::open(&dir.path().join("control"), clock::system())?;
        let mut rows = Self {
            model,
            crowd: Crowd::default(),
            next: 1,
            bytes_per_event: 0.0,
            times: Vec::new(),
            cpu: Vec::new(),
            _dir: dir,
        };
        while rows.next <= events {
            rows.tell(JOBS_AT_ONCE)?;
        }
        rows.bytes_per_event = disk::bytes(rows._dir.path())? as f64 / events as f64;
        Ok(rows)
    }

    /// Tells of so many more jobs.
    fn tell(&mut self, jobs: usize) -> Fallible<()> {
        let mut entries = Vec::new();
        for _ in 0..jobs {
            for event in self.crowd.tell(clock::system()())? {
                let (offset, content_type) = (self.next, CONTENT_EVENT.to_owned());
                let body = Bytes::from(event.encode()?);
                entries.push(HistoryEntry { offset, content_type, routing_key: event.data.kind().to_owned(), body });
                self.next += 1;
            }
        }
        Ok(self.model.apply(&entries)?)
    }
}
