//! API and pages over a million jobs, while events keep arriving; and how soon a restarted control
//! plane has everything again.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use stoker_producer::clock;
use stoker_schemas::Event;
use stoker_worker::ports::broker::{Broker, CONTENT_BATCH, Outgoing};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::figure::{Figure, Samples, Target};
use crate::rabbit::{self, Rabbit};
use crate::server::Server;
use crate::{DEADLINE, Fallible};
use stoker_tests::crowd::{self, Crowd, EVENTS_PER_JOB};

/// Time between two jobs that are there already: a million of them are a day.
const APART: Duration = Duration::from_millis(80);
/// Events that arrive a second.
const ARRIVALS: u64 = 2_000;
/// Messages a second that bring them, as hosts send them: many events in one.
const MESSAGES: u64 = 40;
/// Jobs in one message while the rows are filled, and messages under way at once.
const JOBS_PER_MESSAGE: u64 = 20;
const AT_ONCE: usize = 64;
/// A million jobs take minutes.
const FILLED_WITHIN: Duration = Duration::from_secs(1_800);
/// Where hosts send what only readers of the history want.
const BATCH_KEY: &str = "history.batch";

/// What is asked for, by the figure it counts for.
const QUESTIONS: [(&str, &[&str]); 4] = [
    ("list", &["/v1/jobs?limit=50", "/jobs", "/v1/jobs?limit=500", "/"]),
    (
        "filter",
        &[
            "/v1/jobs?phase=dead&limit=50",
            "/jobs?phase=dead&cause=kernel_panic",
            "/v1/jobs?image=golden&limit=50",
            "/v1/jobs?label=team%3Dteam-7&limit=50",
            "/v1/jobs?label=build%3Db17&limit=50",
            "/jobs?host=h-07&phase=ready",
        ],
    ),
    ("search", &["/v1/jobs?text=b4242&limit=50", "/jobs?text=team-13", "/jobs?text=ID", "/v1/jobs?text=nowhere"]),
    ("job", &["/v1/jobs/ID", "/jobs/ID", "/v1/jobs/ID/events", "/v1/jobs/ID/report"]),
];

pub async fn figures(quick: bool) -> Fallible<Vec<Figure>> {
    let Some(rabbit) = Rabbit::from_environment() else {
        return Ok(vec![Figure::skipped("front", &format!("{} is not set", rabbit::URL))]);
    };
    let host = "bench".parse()?;
    let broker: Arc<dyn Broker> = Arc::new(rabbit.connect(None).await?);
    let measured = measure(&rabbit, &broker, quick).await;
    broker.close().await;
    rabbit.clean(&host).await?;
    measured
}

async fn measure(rabbit: &Rabbit, broker: &Arc<dyn Broker>, quick: bool) -> Fallible<Vec<Figure>> {
    let (jobs, rounds) = if quick { (50_000, 20) } else { (1_000_000, 100) };
    let data = tempfile::Builder::new().prefix("st-bench-").tempdir()?;
    let server = start(rabbit, data.path()).await?;
    let begun = Instant::now();
    let events = fill(broker, jobs).await?;
    server.knows(jobs, FILLED_WITHIN).await?;
    let rate = events as f64 / begun.elapsed().as_secs_f64();
    let detail = format!("{events} events of {jobs} jobs through RabbitMQ into the rows");
    let mut figures = vec![Figure::measured("front-refill", "events/s", Target::None, rate, detail)];

    // sled reads on opening what was written since it was opened before: after a refill, everything.
    let (server, took) = restart(server, rabbit, data.path()).await?;
    let detail = format!("{jobs} jobs, all of them written since the start before");
    figures.push(Figure::measured("front-restart-after-refill", "s", Target::None, took, detail));

    let arrivals = Arrivals::start(broker);
    for (name, paths) in QUESTIONS {
        let (times, behind) = (ask(&server, paths, rounds).await?, server.misses(jobs + arrivals.told()).await?);
        let detail = format!(
            "{} answers, ms: {}, largest {:.1}; {jobs} jobs, {ARRIVALS} events/s arriving, {behind} jobs behind",
            times.len(),
            times.summary(),
            times.quantile(1.0)
        );
        let p99 = times.quantile(0.99);
        figures.push(Figure::measured(format!("front-{name}-p99"), "ms", Target::AtMost(50.0), p99, detail));
    }
    let (server, took) = restart(server, rabbit, data.path()).await?;
    let detail = format!("{jobs} jobs, from start to having read what was told meanwhile");
    figures.push(Figure::measured("front-restart", "s", Target::AtMost(2.0), took, detail));
    let told = arrivals.end().await?;
    // All of them come, or it says how many do not.
    let _ = server.knows(jobs + told, DEADLINE).await;
    let missed = server.misses(jobs + told).await? as f64;
    let detail = format!("of {told} jobs told before, while and after it was away");
    figures.push(Figure::measured("front-missed", "jobs", Target::AtMost(0.0), missed, detail));
    server.end().await?;
    Ok(figures)
}

/// Tells of so many jobs of the day before, as fast as the broker confirms; how many events they have.
async fn fill(broker: &Arc<dyn Broker>, jobs: u64) -> Fallible<u64> {
    let (now, mut crowd) = (clock::system()(), Crowd::default());
    let messages = (0..jobs).step_by(usize::try_from(JOBS_PER_MESSAGE)?).map(|first| {
        let jobs = (first..jobs.min(first + JOBS_PER_MESSAGE)).map(|n| {
            let before_now = APART.saturating_mul(u32::try_from(jobs - n).unwrap_or(u32::MAX));
            crowd.tell(crowd::before(now, before_now))
        });
        batch(jobs)
    });
    let published = stream::iter(messages).map(|message| async {
        let (message, events) = message?;
        broker.publish(message).await?;
        Fallible::Ok(events)
    });
    published.buffered(AT_ONCE).try_fold(0, async |sum, events| Ok(sum + events)).await
}

/// A message with these jobs' events, and how many they are.
fn batch(jobs: impl Iterator<Item = Fallible<Vec<Event>>>) -> Fallible<(Outgoing, u64)> {
    let (mut body, mut message_id, mut events) = (vec![b'['], String::new(), 0);
    for job in jobs {
        for event in job? {
            if events > 0 {
                body.push(b',');
            }
            message_id = event.id();
            body.extend(event.encode()?);
            events += 1;
        }
    }
    body.push(b']');
    let (routing_key, body) = (BATCH_KEY.to_owned(), Bytes::from(body));
    Ok((Outgoing { routing_key, message_id, content_type: CONTENT_BATCH, delay: None, body }, events))
}

/// Milliseconds of each answer, whole.
async fn ask(server: &Server, paths: &[&str], rounds: usize) -> Fallible<Samples> {
    let ids = server.some_ids().await?;
    let mut times = Vec::with_capacity(paths.len() * rounds);
    for round in 0..rounds {
        for path in paths {
            let path = path.replace("ID", &ids[round % ids.len()]);
            let begun = Instant::now();
            server.get(&path).await?;
            times.push(begun.elapsed().as_secs_f64() * 1_000.0);
        }
    }
    Ok(times.into_iter().collect())
}

/// New jobs, told all the time.
struct Arrivals {
    stop: watch::Sender<bool>,
    told: Arc<AtomicU64>,
    telling: JoinHandle<Fallible<()>>,
}

impl Arrivals {
    fn start(broker: &Arc<dyn Broker>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let told = Arc::new(AtomicU64::new(0));
        let telling = tokio::spawn(tell(broker.clone(), told.clone(), stopped));
        Self { stop, told, telling }
    }

    fn told(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }

    /// How many jobs were told.
    async fn end(self) -> Fallible<u64> {
        self.stop.send_replace(true);
        timeout(DEADLINE, self.telling).await???;
        Ok(self.told.load(Ordering::Relaxed))
    }
}

async fn tell(broker: Arc<dyn Broker>, told: Arc<AtomicU64>, stopped: watch::Receiver<bool>) -> Fallible<()> {
    let (now, mut crowd) = (clock::system(), Crowd::default());
    let jobs = (ARRIVALS / MESSAGES).div_ceil(EVENTS_PER_JOB);
    let mut clock = interval(Duration::from_secs(1) / u32::try_from(MESSAGES)?);
    // Late is made up for: the rate is what was promised.
    clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
    while !*stopped.borrow() {
        clock.tick().await;
        let (message, _) = batch((0..jobs).map(|_| crowd.tell(now())))?;
        broker.publish(message).await?;
        told.fetch_add(jobs, Ordering::Relaxed);
    }
    Ok(())
}

async fn start(rabbit: &Rabbit, data: &Path) -> Fallible<Server> {
    Server::start(Arc::new(rabbit.connect(None).await?), data).await
}

/// Ends it and starts another; seconds from that start until it has caught up.
async fn restart(server: Server, rabbit: &Rabbit, data: &Path) -> Fallible<(Server, f64)> {
    server.end().await?;
    let begun = Instant::now();
    let server = start(rabbit, data).await?;
    server.ready().await?;
    Ok((server, begun.elapsed().as_secs_f64()))
}
