//! The event log against the disk below it, its replay, and how soon it opens.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use stoker_worker::log::{Append, EventLog, Expected, IndexChange, LogOptions};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::Fallible;
use crate::figure::{Figure, Samples, Target};

/// Bytes of an event: about what a small one of Stoker's has.
const EVENT_BYTES: usize = 300;
const APPENDERS: usize = 64;
/// Size of the plain file that is written over and over.
const FIXED_BYTES: u64 = 64 * 1024 * 1024;
/// Events in one call while the log is filled.
const FILL_CALL: usize = 512;
/// Calls under way while the log is filled.
const FILL_CALLERS: usize = 4;
/// Events of one stream while the log is filled: about what a job has.
const EVENTS_PER_STREAM: usize = 8;

pub fn figures(quick: bool) -> Fallible<Vec<Figure>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut figures = append_ratio(&runtime, quick)?;
    figures.extend(reading(&runtime, quick)?);
    Ok(figures)
}

/// Durable appends of 64 callers over the same batches written to a plain file, in turns.
fn append_ratio(runtime: &Runtime, quick: bool) -> Fallible<Vec<Figure>> {
    let (rounds, round) = if quick { (3, Duration::from_millis(700)) } else { (9, Duration::from_secs(1)) };
    let dir = tempfile::Builder::new().prefix("st-bench-").tempdir()?;
    let log = EventLog::open(dir.path().join("log"), LogOptions::default())?;
    let mut growing = File::create(dir.path().join("growing"))?;
    let mut fixed = overwritable(&dir.path().join("fixed"))?;
    let (mut by_log, mut by_growing, mut by_fixed) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        by_log.push(runtime.block_on(append_for(&log, round))?);
        by_growing.push(write_for(&mut growing, round, u64::MAX)?);
        by_fixed.push(write_for(&mut fixed, round, FIXED_BYTES)?);
    }
    let figure = |name: &str, target, by_file: &[f64]| {
        let ratios: Samples = by_log.iter().zip(by_file).map(|(log, file)| log / file).collect();
        let detail = format!(
            "{rounds} rounds; log {} events/s, file {} events/s (batches of {APPENDERS} x {EVENT_BYTES} bytes, fdatasync)",
            by_log.iter().copied().collect::<Samples>().summary(),
            by_file.iter().copied().collect::<Samples>().summary()
        );
        Figure::measured(name, "x", target, ratios.median(), detail)
    };
    Ok(vec![
        figure("log-append-over-file", Target::AtLeast(0.6), &by_growing),
        figure("log-append-over-overwriting", Target::None, &by_fixed),
    ])
}

async fn append_for(log: &EventLog, round: Duration) -> Fallible<f64> {
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let mut appenders = JoinSet::new();
    let begun = Instant::now();
    for _ in 0..APPENDERS {
        let (log, stop) = (log.clone(), stop.clone());
        appenders.spawn(async move {
            let (stream, payload) = (Uuid::now_v7(), Bytes::from(vec![b'x'; EVENT_BYTES]));
            let mut appended = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                log.append(vec![append(stream, vec![payload.clone()])]).await?;
                appended += 1;
            }
            Fallible::Ok(appended)
        });
    }
    tokio::time::sleep(round).await;
    stop.store(true, Ordering::Relaxed);
    let mut appended = 0;
    while let Some(one) = appenders.join_next().await {
        appended += one??;
    }
    Ok(f64::from(appended) / begun.elapsed().as_secs_f64())
}

fn append(stream: Uuid, events: Vec<Bytes>) -> Append {
    Append { stream, expected: Expected::Any, events, index: IndexChange::Keep }
}

/// A file whose blocks exist: writing over them needs no word of the file system's journal, which is
/// less than any log that grows can do.
fn overwritable(path: &Path) -> Fallible<File> {
    let mut file = File::create(path)?;
    std::io::copy(&mut std::io::repeat(0).take(FIXED_BYTES), &mut file)?;
    file.sync_all()?;
    file.rewind()?;
    Ok(file)
}

/// Events a second, of batches written one after the other; beyond `size` from the start again.
fn write_for(file: &mut File, round: Duration, size: u64) -> Fallible<f64> {
    let batch = vec![b'x'; APPENDERS * EVENT_BYTES];
    let begun = Instant::now();
    let mut written = 0;
    while begun.elapsed() < round {
        if file.stream_position()? + batch.len() as u64 > size {
            file.rewind()?;
        }
        file.write_all(&batch)?;
        file.sync_data()?;
        written += APPENDERS;
    }
    Ok(written as f64 / begun.elapsed().as_secs_f64())
}

/// A log with many events: how long opening takes, how fast it is replayed.
fn reading(runtime: &Runtime, quick: bool) -> Fallible<Vec<Figure>> {
    let events = if quick { 200_000 } else { 1_000_000 };
    let dir = tempfile::Builder::new().prefix("st-bench-").tempdir()?;
    let path = dir.path().join("log");
    let filled = Instant::now();
    runtime.block_on(fill(&path, events))?;
    let filled = filled.elapsed();
    let begun = Instant::now();
    let log = EventLog::open(&path, LogOptions::default())?;
    let opened = begun.elapsed().as_secs_f64();
    let passes = (0..3).map(|_| replay(&log, events)).collect::<Fallible<Vec<f64>>>()?;
    let first = passes[0];
    let detail = format!(
        "{events} events of {EVENT_BYTES} bytes, filled in {:.1} s; first pass after opening {first:.0}/s",
        filled.as_secs_f64()
    );
    let rate = passes.into_iter().collect::<Samples>().median();
    Ok(vec![
        Figure::measured("log-open", "s", Target::AtMost(1.0), opened, detail.clone()),
        Figure::measured("log-replay-first-pass", "events/s", Target::AtLeast(1e6), first, detail.clone()),
        Figure::measured("log-replay", "events/s", Target::AtLeast(1e6), rate, detail),
    ])
}

/// Writes so many events of small jobs.
pub async fn fill(path: &Path, events: usize) -> Fallible<()> {
    let log = EventLog::open(path, LogOptions::default())?;
    let mut fillers = JoinSet::new();
    for _ in 0..FILL_CALLERS {
        let log = log.clone();
        fillers.spawn(async move {
            let payload = Bytes::from(vec![b'x'; EVENT_BYTES]);
            for _ in 0..events.div_ceil(FILL_CALLERS * FILL_CALL) {
                let streams = (0..FILL_CALL / EVENTS_PER_STREAM).map(|_| Uuid::now_v7());
                let call = streams.map(|stream| append(stream, vec![payload.clone(); EVENTS_PER_STREAM])).collect();
                log.append(call).await?;
            }
            Fallible::Ok(())
        });
    }
    while let Some(filled) = fillers.join_next().await {
        filled??;
    }
    Ok(())
}

/// Events a second, of a walk through all of them.
fn replay(log: &EventLog, at_least: usize) -> Fallible<f64> {
    let mut seen = 0_usize;
    let begun = Instant::now();
    log.replay(1, |_| {
        seen += 1;
        ControlFlow::Continue(())
    })?;
    if seen < at_least {
        return Err(format!("{seen} of {at_least} events were replayed").into());
    }
    Ok(seen as f64 / begun.elapsed().as_secs_f64())
}
