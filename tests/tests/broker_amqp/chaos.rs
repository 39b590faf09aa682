//! Connections cut under load: what was confirmed is neither lost nor stuck.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use stoker_schemas::spec::Priority;
use stoker_tests::conformance::broker::{HOST, POOL, job, jobs, subscribe, text, text_of};
use stoker_worker::{
    broker::amqp::{AmqpBroker, AmqpConfig},
    ports::broker::{Broker, Offset},
};
use tokio::{sync::watch, task::JoinSet, time::timeout};

use crate::{
    proxy::Proxy,
    rabbit::{Rabbit, on_rabbit},
};

const CUTS: usize = 20;
const PUBLISHERS: u64 = 16;
const CONSUMERS: usize = 3;
/// Confirms between two cuts: the cut comes under load, whatever the speed of the machine.
const CONFIRMS_BETWEEN_CUTS: usize = 200;
const PATIENCE: Duration = Duration::from_secs(120);

struct Tally {
    bodies: Mutex<Bodies>,
    /// Changes whenever `bodies` does.
    changed: watch::Sender<()>,
    failed: AtomicU64,
    redelivered: AtomicU64,
    stale: AtomicU64,
    stop: AtomicBool,
}

#[derive(Default)]
struct Bodies {
    confirmed: BTreeSet<String>,
    received: BTreeSet<String>,
}

impl Tally {
    fn new() -> Self {
        Self {
            bodies: Mutex::default(),
            changed: watch::Sender::new(()),
            failed: AtomicU64::new(0),
            redelivered: AtomicU64::new(0),
            stale: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        }
    }

    fn note<T>(&self, note: impl FnOnce(&mut Bodies) -> T) -> T {
        let noted = note(&mut self.bodies.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_replace(());
        noted
    }

    async fn until(&self, what: &str, reached: impl Fn(&Bodies) -> bool) {
        let mut changed = self.changed.subscribe();
        let there = changed.wait_for(|()| reached(&self.bodies.lock().unwrap_or_else(PoisonError::into_inner)));
        timeout(PATIENCE, there).await.unwrap_or_else(|_| panic!("{what}")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_cuts_under_load_lose_nothing() {
    on_rabbit("twenty_cuts_under_load_lose_nothing", async |place| judge(&*chaos(place).await)).await;
}

fn judge(tally: &Tally) {
    let bodies = tally.bodies.lock().unwrap();
    eprintln!(
        "chaos: {CUTS} cuts, {} confirmed, {} failed publishes, {} received, {} redelivered, {} stale acks",
        bodies.confirmed.len(),
        tally.failed.load(Ordering::Relaxed),
        bodies.received.len(),
        tally.redelivered.load(Ordering::Relaxed),
        tally.stale.load(Ordering::Relaxed),
    );
    let lost: Vec<_> = bodies.confirmed.difference(&bodies.received).take(10).collect();
    assert!(lost.is_empty(), "confirmed but lost: {lost:?}");
    assert!(bodies.confirmed.len() >= CUTS * CONFIRMS_BETWEEN_CUTS);
}

async fn chaos(place: &Rabbit) -> Arc<Tally> {
    let proxy = Proxy::start(&place.url).await;
    let config = AmqpConfig { url: proxy.url.clone(), delivery_limit: 1_000, ..place.config(HOST) };
    let broker = Arc::new(AmqpBroker::connect(config).await.unwrap());
    let tally = Arc::new(Tally::new());
    let mut consumers = JoinSet::new();
    for _ in 0..CONSUMERS {
        consumers.spawn(consume(Arc::clone(&broker), Arc::clone(&tally)));
    }
    let mut publishers = JoinSet::new();
    for id in 0..PUBLISHERS {
        publishers.spawn(publish(id, Arc::clone(&broker), Arc::clone(&tally)));
    }
    for cut in 1..=CUTS {
        let enough = cut * CONFIRMS_BETWEEN_CUTS;
        tally.until(&format!("stuck after cut {}", cut - 1), |b| b.confirmed.len() >= enough).await;
        proxy.cut();
    }
    let enough = (CUTS + 1) * CONFIRMS_BETWEEN_CUTS;
    tally.until("stuck after the last cut", |b| b.confirmed.len() >= enough).await;
    tally.stop.store(true, Ordering::Relaxed);
    timeout(PATIENCE, publishers.join_all()).await.expect("a publisher hangs");
    tally.until("confirmed messages did not arrive", |b| b.confirmed.is_subset(&b.received)).await;
    assert!(proxy.accepted() > CUTS, "the cuts did not hit");
    check_history(&broker, &tally).await;
    broker.close().await;
    consumers.shutdown().await;
    tally
}

async fn publish(id: u64, broker: Arc<AmqpBroker>, tally: Arc<Tally>) {
    let mut n = 0_u64;
    while !tally.stop.load(Ordering::Relaxed) {
        let body = format!("{id}-{n}");
        n += 1;
        match broker.publish(job(POOL, Priority::Normal, body.as_str())).await {
            Ok(()) => {
                tally.note(|b| b.confirmed.insert(body));
            }
            Err(_) => {
                tally.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

async fn consume(broker: Arc<AmqpBroker>, tally: Arc<Tally>) {
    let mut subscription = subscribe(&*broker, jobs(POOL, Priority::Normal), 50).await;
    while let Some(delivery) = subscription.deliveries.recv().await {
        if delivery.delivery_count > 0 {
            tally.redelivered.fetch_add(1, Ordering::Relaxed);
        }
        tally.note(|b| b.received.insert(text(&delivery)));
        if delivery.ack.ack().await.is_err() {
            tally.stale.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The history has everything confirmed as well, without a gap in its offsets.
async fn check_history(broker: &AmqpBroker, tally: &Tally) {
    let mut missing = tally.bodies.lock().unwrap().confirmed.clone();
    let mut reader = broker.history(Offset::First).await.unwrap();
    let mut expected = 0;
    while !missing.is_empty() {
        let entry = timeout(PATIENCE, reader.recv()).await.expect("history lacks confirmed events").unwrap();
        assert_eq!(entry.offset, expected);
        expected += 1;
        missing.remove(&text_of(&entry.body));
    }
}
