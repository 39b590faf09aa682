//! What a start costs when very many jobs have ended dead: worker and control plane together, from nothing until a
//! new job is taken, boots and is ready. Once with everything in one process, once over RabbitMQ with its queue of
//! dead letters full.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde_json::{Value, json};
use stoker_producer::clock;
use stoker_producer::http::CancellationToken;
use stoker_producer::readmodel::ReadModel;
use stoker_schemas::JobId;
use stoker_worker::broker::embedded::EmbeddedBroker;
use stoker_worker::clock::Clock;
use stoker_worker::log::{Append, EventLog, Expected, IndexChange, LogOptions};
use stoker_worker::outbox;
use stoker_worker::ports::broker::Broker;
use tempfile::TempDir;

use crate::figure::{Figure, Samples, Target};
use crate::host::{self, BenchHost};
use crate::rabbit::{self, Rabbit};
use crate::server::Server;
use crate::{Fallible, disk};
use stoker_tests::crowd::Crowd;

const NAME: &str = "start-with-dead-jobs";
/// Jobs written to the log at once.
const AT_ONCE: u64 = 200;
/// Starts measured.
const STARTS: usize = 5;
/// What the queue of dead letters holds at most.
const DEAD_LETTERS: usize = 100_000;
const BOOTING: u32 = 8;

pub async fn figures(jobs: u64, quick: bool) -> Fallible<Vec<Figure>> {
    let jobs = if quick { 10_000 } else { jobs };
    let data = host::data_folder()?;
    let begun = Instant::now();
    let events = fill(data.path(), jobs).await?;
    let filled = format!(
        "{jobs} dead jobs ({events} events, {} MiB of log, {} MiB of rows, filled in {:.0} s)",
        disk::mebibytes(&data.path().join("log"))?,
        disk::mebibytes(&data.path().join("control"))?,
        begun.elapsed().as_secs_f64()
    );
    let mut figures = vec![starts("embedded", &data, None, &filled).await?];
    let name = format!("{NAME}-rabbitmq");
    figures.push(match Rabbit::from_environment() {
        Some(rabbit) => {
            let letters = if quick { DEAD_LETTERS / 100 } else { DEAD_LETTERS };
            published_before(data.path()).await?;
            // Its rows are of another history: from now on they are of this one.
            start(data.clone(), Some(rabbit.clone())).await?;
            rabbit.fill_dead_queue(letters).await?;
            let filled = format!("{filled}, {letters} more in RabbitMQ's queue of dead letters at the first start");
            let measured = starts("rabbitmq", &data, Some(rabbit.clone()), &filled).await;
            rabbit.clean(&"bench".parse()?).await?;
            measured?
        }
        None => Figure::skipped(&name, &format!("{} is not set", rabbit::URL)),
    });
    Ok(figures)
}

/// Seconds from nothing, one after the other.
struct Start {
    /// The worker works.
    worker: f64,
    /// A new job was taken over the API.
    taken: f64,
    /// It was ready.
    ready: f64,
    /// The page of dead jobs was answered.
    page: f64,
    /// The control plane had read the history to its end.
    caught_up: f64,
}

async fn starts(broker: &str, data: &Arc<TempDir>, rabbit: Option<Rabbit>, filled: &str) -> Fallible<Figure> {
    let mut starts = Vec::with_capacity(STARTS);
    for _ in 0..STARTS {
        starts.push(start(data.clone(), rabbit.clone()).await?);
    }
    let all = |of: fn(&Start) -> f64| starts.iter().map(of).collect::<Samples>();
    let detail = format!(
        "the slowest of {STARTS} starts until a new job was ready, with {filled}; s after the beginning: worker {}, job taken \
         {}, job ready {}, page of dead jobs {}, history read to its end {}",
        all(|start| start.worker).summary(),
        all(|start| start.taken).summary(),
        all(|start| start.ready).summary(),
        all(|start| start.page).summary(),
        all(|start| start.caught_up).summary(),
    );
    let slowest = all(|start| start.ready).quantile(1.0);
    Ok(Figure::measured(format!("{NAME}-{broker}"), "s", Target::AtMost(2.0), slowest, detail))
}

async fn start(data: Arc<TempDir>, rabbit: Option<Rabbit>) -> Fallible<Start> {
    let begun = Instant::now();
    let since = || begun.elapsed().as_secs_f64();
    let host = BenchHost::start_in(data.clone(), &host::simulated(BOOTING), rabbit).await?;
    let worker = since();
    let journal = host.journal(&["attempt.ready", "vm.gone"]);
    let server = Server::start(host.front(), data.path()).await?;
    let job = server.enqueue(&json!({"image": "bench", "vcpus": 1, "memory_mib": 64})).await?;
    let (job, taken) = (JobId(job.parse()?), since());
    journal.wait(job, "attempt.ready").await?;
    let ready = since();
    let dead: Value = serde_json::from_slice(&server.get("/v1/dead?limit=50").await?)?;
    let page = since();
    if dead["jobs"].as_array().is_none_or(|jobs| jobs.len() != 50) {
        return Err("the rows are not those of the log".into());
    }
    server.ready().await?;
    let caught_up = since();
    server.has_job(&job.to_string()).await?;
    host.stop_vm(job).await?;
    journal.wait(job, "vm.gone").await?;
    drop(journal);
    server.end().await?;
    host.end_for_now().await?;
    Ok(Start { worker, taken, ready, page, caught_up })
}

/// A worker on RabbitMQ has published its log.
async fn published_before(data: &Path) -> Fallible<()> {
    let log = EventLog::open(data.join("log"), LogOptions::default())?;
    log.set_cursor(outbox::CURSOR, log.durable())?;
    log.flush_cursors().await?;
    drop(log);
    disk::closed(data).await
}

/// Writes the log, and has the rows made from it meanwhile; how many events there are.
async fn fill(data: &Path, jobs: u64) -> Fallible<u64> {
    let log = EventLog::open(data.join("log"), LogOptions::default())?;
    let broker: Arc<dyn Broker> = Arc::new(EmbeddedBroker::open(log.clone(), Clock::system())?);
    let model = ReadModel::open(&data.join("control"), clock::system())?;
    let stop = CancellationToken::new();
    let following = {
        let (model, broker, stop) = (model.clone(), broker.clone(), stop.clone());
        tokio::spawn(async move { model.follow(broker, stop).await })
    };
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
    drop(log);
    let mut news = model.changes();
    while model.next_seq() < events {
        // Falling behind is news, too.
        let _ = news.recv().await;
    }
    stop.cancel();
    following.await??;
    broker.close().await;
    drop((broker, model));
    disk::closed(data).await?;
    Ok(events)
}
