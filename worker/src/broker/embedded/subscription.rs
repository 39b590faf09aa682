//! Hands a queue's messages to one reader, within its credit; takes back what it did not settle.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use stoker_schemas::event::Event;
use stoker_schemas::letter::GivenUpBy;
use stoker_schemas::topology::{self, Names};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::Inner;
use super::queues::{Item, Queue};
use crate::log::LogError;
use crate::ports::broker::{About, Ack, BrokerError, Delivery, NotDeferred, Source, Subscription};
use crate::ports::handle::Handles;

/// Deliveries handed over and not yet looked at; the credit bounds them as well.
const HANDED_OVER: usize = 256;

/// What one reader holds.
struct Holding {
    queue: Arc<Queue>,
    items: Mutex<BTreeMap<u64, Item>>,
    /// Something was settled.
    settled: Notify,
    handles: Handles,
}

impl Holding {
    fn items(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Item>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) -> u32 {
        u32::try_from(self.items().len()).unwrap_or(u32::MAX)
    }
}

pub(super) fn start(inner: Arc<Inner>, source: Source) -> Subscription {
    let (send, deliveries) = mpsc::channel(HANDED_OVER);
    let (credit, credited) = watch::channel(0);
    let queue = inner.queues.get(&source);
    let handles = Handles::new(source.clone(), &send, inner.closed.clone());
    let holding = Arc::new(Holding { queue, items: Mutex::default(), settled: Notify::new(), handles });
    tokio::spawn(async move {
        pump(&inner, &source, &holding, &send, credited).await;
        let left = std::mem::take(&mut *holding.items());
        holding.queue.give_back(left.into_values());
    });
    Subscription { deliveries, credit }
}

async fn pump(
    inner: &Arc<Inner>,
    source: &Source,
    holding: &Arc<Holding>,
    send: &mpsc::Sender<Delivery>,
    mut credited: watch::Receiver<u32>,
) {
    loop {
        let mut wake_at = None;
        let has_credit = holding.count() < *credited.borrow_and_update();
        if has_credit {
            match holding.queue.pop() {
                Ok(item) => {
                    if !hand_over(inner, source, holding, send, item).await {
                        return;
                    }
                    continue;
                }
                Err(due) => wake_at = due,
            }
        }
        tokio::select! {
            biased;
            () = inner.closed.cancelled() => return,
            () = send.closed() => return,
            changed = credited.changed() => if changed.is_err() { return },
            () = holding.settled.notified(), if !has_credit => {}
            () = holding.queue.changed.notified(), if has_credit => {}
            () = sleep_until(wake_at.unwrap_or_else(Instant::now)), if wake_at.is_some() => {}
        }
    }
}

/// False when the reader is gone.
async fn hand_over(
    inner: &Arc<Inner>,
    source: &Source,
    holding: &Arc<Holding>,
    send: &mpsc::Sender<Delivery>,
    item: Item,
) -> bool {
    let record = match inner.log.scan(item.position, 1) {
        Ok(records) => records.into_iter().next(),
        Err(error) => {
            tracing::error!(%error, position = item.position, "message cannot be read from the log");
            if let LogError::Corrupt { stream: Some(stream), .. } = &error {
                tokio::spawn(inner.clone().tell_damaged(*stream, error));
            }
            None
        }
    };
    let Some(record) = record.filter(|r| r.position == item.position) else { return true };
    holding.items().insert(item.position, item);
    let (inner, position) = (inner.clone(), item.position);
    let routing_key = routing_key(&inner, source, &record.payload);
    let about = About { queue: queue_name(source), ..About::default() };
    let (letter, body) = ((routing_key.clone(), about.clone()), record.payload);
    let settles = EmbeddedAck { inner, holding: holding.clone(), position, letter, body: body.clone() };
    let ack = holding.handles.issue(Box::new(settles));
    let Item { deliveries: delivery_count, deferrals, .. } = item;
    let delivery = Delivery { routing_key, delivery_count, deferrals, about, body, ack };
    send.send(delivery).await.is_ok()
}

/// Where the message was published to. For a new job its queue says so, and the hot path is spared
/// one more decoding.
fn routing_key(inner: &Inner, source: &Source, payload: &[u8]) -> String {
    let kind = super::follower::kind_of(payload).unwrap_or_default();
    if let (Source::Jobs(pool, lane), "job.enqueued") = (source, kind.as_str()) {
        return topology::jobs_binding(pool, *lane);
    }
    // Only what could be decoded was queued; if it cannot be now, its reader will say why.
    Event::decode(payload, inner.clock.now()).map_or(kind, |event| topology::route(&event).0)
}

/// As it would be called on a broker between hosts.
fn queue_name(source: &Source) -> String {
    match source {
        Source::Jobs(pool, lane) => Names::default().jobs_queue(pool, *lane),
        Source::HostCommands | Source::Dead => String::new(),
    }
}

struct EmbeddedAck {
    inner: Arc<Inner>,
    holding: Arc<Holding>,
    position: u64,
    /// Routing key, and what else is known of the message: for a dead letter.
    letter: (String, About),
    body: Bytes,
}

impl EmbeddedAck {
    fn settle(&self) -> Result<Item, BrokerError> {
        let item = self.holding.items().remove(&self.position).ok_or(BrokerError::Stale)?;
        self.holding.settled.notify_one();
        Ok(item)
    }
}

#[async_trait]
impl Ack for EmbeddedAck {
    async fn ack(self: Box<Self>) -> Result<(), BrokerError> {
        self.settle().map(drop)
    }

    async fn requeue(self: Box<Self>) -> Result<(), BrokerError> {
        let item = self.settle()?;
        self.holding.queue.give_back(std::iter::once(item));
        Ok(())
    }

    /// Nothing is written: a process that ends meanwhile offers the job again when it starts.
    async fn defer(self: Box<Self>, delay: Duration) -> Result<(), NotDeferred> {
        match self.settle() {
            Ok(item) => {
                self.holding.queue.defer(item, Instant::now() + delay);
                Ok(())
            }
            Err(error) => Err(NotDeferred { ack: self, error }),
        }
    }

    async fn dead_letter(self: Box<Self>) -> Result<(), BrokerError> {
        let item = self.settle()?;
        let (routing_key, about) = &self.letter;
        let rejected = GivenUpBy::Broker("rejected".to_owned());
        let told = self.inner.tell_dead(rejected, routing_key, about, &self.body, self.inner.clock.now()).await;
        if told.is_err() {
            self.holding.queue.give_back(std::iter::once(item));
        }
        told
    }
}
