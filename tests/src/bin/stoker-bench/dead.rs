//! What a start costs when very many jobs have ended dead: the log with the broker on it, and the control plane's
//! rows, from nothing to the first page of dead letters.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use stoker_producer::clock;
use stoker_producer::http::CancellationToken;
use stoker_producer::readmodel::{Filter, ReadModel};
use stoker_schemas::{JobId, Phase};
use stoker_worker::broker::embedded::EmbeddedBroker;
use stoker_worker::clock::Clock;
use stoker_worker::log::{Append, EventLog, Expected, IndexChange, LogOptions};
use stoker_worker::ports::broker::Broker;
use tempfile::TempDir;

use crate::crowd::Crowd;
use crate::figure::{Figure, Samples, Target};
use crate::{DEADLINE, Fallible};

const NAME: &str = "start-with-dead-jobs";
/// Jobs written to the log at once.
const AT_ONCE: u64 = 200;
/// Starts measured.
const STARTS: usize = 5;

pub async fn figures(quick: bool) -> Fallible<Vec<Figure>> {
    let jobs = if quick { 10_000 } else { 1_000_000 };
    let dir = TempDir::with_prefix("stoker-bench-")?;
    let events = fill(&dir, jobs).await?;
    let (mut logs, mut rows, mut starts) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let (log, begun) = open(&dir).await?;
        let broker = EmbeddedBroker::open(log, Clock::system())?;
        let of_log = begun.elapsed();
        let model = ReadModel::open(&dir.path().join("rows"), clock::system())?;
        let page = model.list(&Filter { phase: Some(Phase::Dead.into()), ..Filter::default() }, None, 50)?;
        let letters = model.letters(true, None, None, 50)?;
        let all = begun.elapsed();
        if page.jobs.len() != 50 || model.next_seq() != events || !letters.letters.is_empty() {
            return Err("the rows are not those of the log".into());
        }
        logs.push(millis(of_log));
        rows.push(millis(all.saturating_sub(of_log)));
        starts.push(all.as_secs_f64());
        broker.close().await;
    }
    let slowest = starts.into_iter().fold(0.0, f64::max);
    let summary = |times: Vec<f64>| times.into_iter().collect::<Samples>().summary();
    let detail = format!(
        "the slowest of {STARTS} with {jobs} dead jobs ({events} events); log and broker {} ms, rows {} ms",
        summary(logs),
        summary(rows)
    );
    Ok(vec![Figure::measured(NAME, "s", Target::AtMost(2.0), slowest, detail)])
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

/// The log, and when its opening began. Tasks of the one before may hold it for a moment.
async fn open(dir: &TempDir) -> Fallible<(EventLog, Instant)> {
    let path = dir.path().join("log");
    let opening = async {
        loop {
            let begun = Instant::now();
            match EventLog::open(&path, LogOptions::default()) {
                Ok(log) => return (log, begun),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    Ok(tokio::time::timeout(DEADLINE, opening).await?)
}

/// Writes the log, and has the rows made from it; how many events there are.
async fn fill(dir: &TempDir, jobs: u64) -> Fallible<u64> {
    let (log, _) = open(dir).await?;
    let mut crowd = Crowd::of_the_dead();
    let mut events = 0;
    for _ in 0..jobs / AT_ONCE {
        let mut appends = Vec::new();
        for _ in 0..AT_ONCE {
            let told = crowd.tell(Clock::system().now())?;
            let stream = told.first().and_then(|event| event.job()).map_or(uuid::Uuid::nil(), |JobId(id)| id);
            let bodies = told.iter().map(|event| event.encode().map(Bytes::from)).collect::<Result<Vec<_>, _>>()?;
            events += bodies.len() as u64;
            appends.push(Append { stream, expected: Expected::Any, events: bodies, index: IndexChange::Remove });
        }
        log.append(appends).await?;
    }
    let broker: Arc<dyn Broker> = Arc::new(EmbeddedBroker::open(log, Clock::system())?);
    let model = ReadModel::open(&dir.path().join("rows"), clock::system())?;
    let stop = CancellationToken::new();
    let following = {
        let (model, broker, stop) = (model.clone(), broker.clone(), stop.clone());
        tokio::spawn(async move { model.follow(broker, stop).await })
    };
    let mut news = model.changes();
    while model.next_seq() < events {
        // Falling behind is news, too.
        let _ = news.recv().await;
    }
    stop.cancel();
    following.await??;
    broker.close().await;
    Ok(events)
}
