//! Work does not wait for history, and history gets everything in the end. (`refused` is about queues.)

mod refused;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use stoker_schemas::{PoolName, event, spec::Priority};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use uuid::Uuid;

use super::*;
use crate::log::{Append, Expected, IndexChange, LogOptions, MAX_CALL_EVENTS};
use crate::ports::broker::{
    BrokerError, BrokerStatus, CONTENT_BATCH, HistoryReader, Offset, Outgoing, Parked, Source, Subscription,
};

const DEADLINE: Duration = Duration::from_secs(30);
/// Source of the samples.
const SOURCE: &str = "/hosts/host-01";
const WORK: &str = "job.retry-scheduled";
const HISTORY: &str = "attempt.ready";

/// Jobs whose events arrived.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Arrived {
    work: Vec<u64>,
    history: BTreeSet<u64>,
}

/// Routes as the topology says; its history can be cut off, its queues can be full.
struct FakeBroker {
    cut: Mutex<bool>,
    /// Ends of routing keys whose queues are full.
    full: Mutex<BTreeSet<&'static str>>,
    /// Messages that were refused.
    refused: watch::Sender<u64>,
    arrived: watch::Sender<Arrived>,
    status: watch::Sender<HistoryStatus>,
}

impl FakeBroker {
    fn new() -> Arc<Self> {
        let status = watch::Sender::new(HistoryStatus::Available);
        let (cut, full, refused) = (Mutex::new(false), Mutex::default(), watch::Sender::default());
        Arc::new(Self { cut, full, refused, arrived: watch::Sender::default(), status })
    }

    /// Somebody else cuts or binds: this process is not told.
    fn cut(&self, cut: bool) {
        *self.cut.lock().unwrap() = cut;
    }

    async fn until(&self, what: &str, holds: impl Fn(&Arrived) -> bool) -> Arrived {
        let mut arrived = self.arrived.subscribe();
        let held = timeout(DEADLINE, arrived.wait_for(holds)).await.map(|held| held.unwrap().clone());
        held.unwrap_or_else(|_| panic!("{what}: {:?}", *self.arrived.borrow()))
    }
}

fn numbers(message: &Outgoing) -> Vec<u64> {
    let body: serde_json::Value = serde_json::from_slice(&message.body).unwrap();
    let events = if message.content_type == CONTENT_BATCH { body.as_array().unwrap().clone() } else { vec![body] };
    let subject = |e: &serde_json::Value| e["subject"].as_str().unwrap().parse::<Uuid>().unwrap();
    events.iter().map(|e| u64::try_from(subject(e).as_u128()).unwrap()).collect()
}

#[async_trait]
impl Broker for FakeBroker {
    async fn publish(&self, message: Outgoing) -> Result<(), BrokerError> {
        let (cut, work) = (*self.cut.lock().unwrap(), message.routing_key.starts_with(WORK));
        if cut && !work {
            return Err(BrokerError::Unroutable(message.routing_key));
        }
        if self.full.lock().unwrap().iter().any(|end| message.routing_key.ends_with(end)) {
            self.refused.send_modify(|refused| *refused += 1);
            return Err(BrokerError::Refused("full".into()));
        }
        let numbers = numbers(&message);
        self.arrived.send_modify(|arrived| {
            if work {
                arrived.work.extend(&numbers);
            }
            if !cut {
                arrived.history.extend(&numbers);
            }
        });
        Ok(())
    }

    fn history_status(&self) -> watch::Receiver<HistoryStatus> {
        self.status.subscribe()
    }

    fn status(&self) -> watch::Receiver<BrokerStatus> {
        watch::channel(BrokerStatus::Connected).1
    }

    async fn subscribe(&self, _: Source) -> Result<Subscription, BrokerError> {
        Err(BrokerError::Closed)
    }

    async fn history(&self, _: Offset) -> Result<HistoryReader, BrokerError> {
        Err(BrokerError::Closed)
    }

    async fn park(&self, _: Parked) -> Result<(), BrokerError> {
        Err(BrokerError::Closed)
    }

    async fn depth(&self, _: &PoolName, _: Priority) -> Result<u64, BrokerError> {
        Err(BrokerError::Closed)
    }

    async fn close(&self) {}
}

/// A log and an outbox on it, which can be ended and begun again.
struct Bench {
    log: EventLog,
    broker: Arc<FakeBroker>,
    published: watch::Receiver<Progress>,
    running: JoinHandle<Result<(), LogError>>,
    _dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = EventLog::open(dir.path(), LogOptions::default()).unwrap();
        let broker = FakeBroker::new();
        let (published, running) = begin(&log, &broker);
        Self { log, broker, published, running, _dir: dir }
    }

    async fn restart(&mut self) {
        self.running.abort();
        let _ = (&mut self.running).await;
        (self.published, self.running) = begin(&self.log, &self.broker);
    }

    /// Appends events of one kind about these jobs.
    async fn append(&self, kind: &str, jobs: impl IntoIterator<Item = u64>) {
        let mut event = event::sample(kind).unwrap();
        let encode = |job: u64| {
            event.subject = Uuid::from_u128(job.into()).to_string();
            Bytes::from(event.encode().unwrap())
        };
        let events: Vec<_> = jobs.into_iter().map(encode).collect();
        for events in events.chunks(MAX_CALL_EVENTS) {
            let (stream, events) = (Uuid::now_v7(), events.to_vec());
            let append = Append { stream, expected: Expected::Any, events, index: IndexChange::Keep };
            self.log.append(vec![append]).await.unwrap();
        }
    }

    /// Waits until what is in the log is published, as far as anybody works from it.
    async fn settled(&mut self) {
        let head = *self.log.head().borrow();
        let done =
            timeout(DEADLINE, self.published.wait_for(|at| at.through >= head)).await.map(|at| at.unwrap().through);
        done.unwrap_or_else(|_| panic!("work waits: {:?}", *self.broker.arrived.borrow()));
    }

    fn gap(&self) -> u64 {
        self.log.cursor(GAP_CURSOR).unwrap()
    }
}

fn begin(log: &EventLog, broker: &Arc<FakeBroker>) -> (watch::Receiver<Progress>, JoinHandle<Result<(), LogError>>) {
    begin_with(log, broker, MAX_SET_ASIDE)
}

fn begin_with(
    log: &EventLog,
    broker: &Arc<FakeBroker>,
    set_aside: usize,
) -> (watch::Receiver<Progress>, JoinHandle<Result<(), LogError>>) {
    let (told, published) = watch::channel(Progress::default());
    let outbox = Outbox::open(log.clone(), broker.clone(), SOURCE.to_owned(), Clock::system(), set_aside).unwrap();
    (published, tokio::spawn(outbox.run(told)))
}

#[tokio::test]
async fn work_goes_on_without_history_which_is_told_later() {
    let mut bench = Bench::new();
    bench.broker.cut(true);
    bench.append(HISTORY, [1, 2]).await;
    bench.append(WORK, [3]).await;
    bench.settled().await;
    let arrived = bench.broker.until("work", |a| a.work == [3]).await;
    assert_eq!((arrived.history, bench.gap()), (BTreeSet::new(), 1));

    bench.broker.cut(false);
    bench.broker.until("history", |a| a.history == BTreeSet::from([1, 2, 3])).await;
    // One task does all: when it publishes the next event, the gap is closed.
    bench.append(WORK, [4]).await;
    bench.settled().await;
    let arrived = bench.broker.until("work goes on", |a| a.work == [3, 4]).await;
    assert_eq!((arrived.history, bench.gap()), (BTreeSet::from([1, 2, 3, 4]), 0));
}

/// Retries that nobody returned because a queue took them: history did not get them either.
#[tokio::test]
async fn work_published_unnoticed_is_told_too() {
    let mut bench = Bench::new();
    bench.append(HISTORY, [1]).await;
    bench.settled().await;
    bench.broker.cut(true);
    for job in [2, 3] {
        bench.append(WORK, [job]).await;
        bench.settled().await;
    }
    assert_eq!(bench.gap(), 0, "nothing came back yet");
    bench.append(HISTORY, [4]).await;
    bench.settled().await;
    bench.broker.cut(false);
    let arrived = bench.broker.until("history", |a| a.history == (1..=4).collect()).await;
    assert_eq!(arrived.work, [2, 3], "told, not done again");
}

/// The adapter says so when it cut the history itself; no event need come back.
#[tokio::test]
async fn a_change_of_status_is_enough() {
    let mut bench = Bench::new();
    bench.append(HISTORY, [1]).await;
    bench.settled().await;
    bench.broker.cut(true);
    bench.broker.status.send_replace(HistoryStatus::Away("stream is down".into()));
    bench.append(WORK, [2]).await;
    bench.settled().await;
    assert_eq!(bench.gap(), 1);
    bench.broker.cut(false);
    bench.broker.status.send_replace(HistoryStatus::Available);
    bench.broker.until("history", |a| a.history.contains(&2)).await;
}

#[tokio::test]
async fn a_gap_survives_a_restart_and_is_told_page_by_page() {
    let mut bench = Bench::new();
    let jobs = 3 * PAGE as u64;
    bench.broker.cut(true);
    bench.append(HISTORY, 1..=jobs).await;
    bench.append(WORK, [jobs + 1]).await;
    bench.settled().await;
    bench.restart().await;
    bench.append(WORK, [jobs + 2]).await;
    bench.settled().await;
    assert_eq!(bench.gap(), 1);
    bench.broker.cut(false);
    bench.restart().await;
    let arrived = bench.broker.until("history", |a| a.history == (1..=jobs + 2).collect()).await;
    assert_eq!(arrived.work, [jobs + 1, jobs + 2], "no work twice");
}
