//! Consuming on one channel, from its opening to its end.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{
    Stream, StreamExt,
    stream::{self, SelectAll},
};
use lapin::{
    Channel,
    message::Delivery as Received,
    options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    config::CLOSE_DEADLINE,
    credit::{self, Share, Step},
    death,
    deferring::{Copy, Lane},
    fault::{Fault, answer},
    link::Live,
    message::HEADER_DEFERRALS,
    settle::{AmqpAck, Settle, Verdict, frames},
    topology::Declarer,
    watchdog::Watchdog,
};
use crate::ports::{broker::Delivery, handle::Handles};

/// Acknowledgements waiting for their frame; callers wait beyond.
const SETTLE_BUFFER: usize = 1024;
/// Counts earlier deliveries of a message from a quorum queue.
const HEADER_DELIVERY_COUNT: &str = "x-delivery-count";

/// Why a channel was left without a fault.
pub(super) enum End {
    /// The broker or the subscription was closed.
    Closed,
    /// Nothing is open on it and a fresh one is better.
    Renew,
}

/// A consumer's id and its delivery, or `None` at its end.
type Arrival = (u64, Option<lapin::Result<Received>>);

/// One consumer on the channel.
struct Consumer {
    id: u64,
    tag: ShortString,
    share: Share,
}

/// The state of one channel.
pub(super) struct Consuming {
    channel: Channel,
    queue: ShortString,
    /// It is the queue of dead letters: each says how it died.
    has_letters: bool,
    out: mpsc::Sender<Delivery>,
    /// Where its messages go back to; `None` where they cannot be put back for a while.
    lane: Option<Arc<Lane>>,
    arrivals: SelectAll<Pin<Box<dyn Stream<Item = Arrival> + Send>>>,
    consumers: Vec<Consumer>,
    next_consumer: u64,
    /// Received but not handed over; never more than the credit.
    waiting: VecDeque<Received>,
    /// Every open delivery, and the consumer it came by.
    unacked: BTreeMap<u64, u64>,
    settled: mpsc::Receiver<Settle>,
    /// Given to each delivery; `None` once the subscription was dropped.
    settle: Option<mpsc::Sender<Settle>>,
    handles: Handles,
}

impl Consuming {
    pub(super) fn new(
        channel: Channel,
        queue: &str,
        has_letters: bool,
        out: mpsc::Sender<Delivery>,
        handles: Handles,
        lane: Option<Arc<Lane>>,
    ) -> Self {
        let (settle, settled) = mpsc::channel(SETTLE_BUFFER);
        Self {
            channel,
            queue: queue.into(),
            has_letters,
            out,
            lane,
            arrivals: SelectAll::new(),
            consumers: Vec::new(),
            next_consumer: 0,
            waiting: VecDeque::new(),
            unacked: BTreeMap::new(),
            settled,
            settle: Some(settle),
            handles,
        }
    }

    pub(super) async fn run(
        &mut self,
        live: &Live,
        mut declarer: Declarer<'_>,
        mut watchdog: Watchdog,
        closing: &CancellationToken,
        credit: &mut watch::Receiver<u32>,
    ) -> Result<End, Fault> {
        let out = self.out.clone();
        let mut look = interval(watchdog.interval());
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let wanted = if self.settle.is_some() { *credit.borrow_and_update() } else { 0 };
            if self.adjust(wanted).await? {
                return Ok(if self.settle.is_some() { End::Renew } else { End::Closed });
            }
            self.hand_over();
            let subscribed = self.settle.is_some();
            tokio::select! {
                biased;
                () = closing.cancelled() => return Ok(End::Closed),
                () = live.lost.cancelled() => return Err(Fault::Lost),
                // Fails when the sender is gone: then the last credit stays.
                Ok(()) = credit.changed(), if subscribed => {}
                _ = look.tick() => self.look(&mut watchdog, &mut declarer).await?,
                word = self.settled.recv() => match word {
                    Some(word) => self.settle(word).await?,
                    // Dropped by the subscriber, and the last delivery with it.
                    None => return Ok(End::Closed),
                },
                Some(arrival) = self.arrivals.next() => {
                    live.mark_useful();
                    watchdog.fed();
                    self.arrived(arrival, wanted).await?;
                }
                Ok(_) = out.reserve(), if !self.waiting.is_empty() => {}
                () = out.closed(), if subscribed => self.abandoned().await?,
            }
        }
    }

    /// Ends the channel; what is open on it goes back to the queue.
    pub(super) async fn close(&mut self) {
        // Fails when it is closed already, hangs when the connection is dead; either is fine.
        let _ = timeout(CLOSE_DEADLINE, self.channel.close(200, "bye".into())).await;
    }

    /// Moves the consumers towards the wanted credit; `true` when the channel is to be renewed.
    async fn adjust(&mut self, wanted: u32) -> Result<bool, Fault> {
        loop {
            let shares: Vec<Share> = self.consumers.iter().map(|c| c.share).collect();
            match credit::step(wanted, &shares) {
                Step::Keep => break,
                Step::Renew => return Ok(true),
                Step::Cancel(index) => self.cancel(index).await?,
                Step::Add(prefetch) => self.consume(prefetch).await?,
            }
        }
        while self.unacked.len() > wanted as usize {
            let Some(surplus) = self.waiting.pop_back() else { break };
            self.reject(surplus.delivery_tag, true).await?;
        }
        Ok(false)
    }

    /// Does everything add up, and does what waits come?
    async fn look(&mut self, watchdog: &mut Watchdog, declarer: &mut Declarer<'_>) -> Result<(), Fault> {
        let accounted = self.waiting.len() + self.handles.alive();
        watchdog.compare(self.unacked.len(), accounted, Instant::now())?;
        let may_get = |share: &Share| share.active && share.unacked < share.prefetch;
        if self.settle.is_none() || !self.consumers.iter().any(|c| may_get(&c.share)) {
            watchdog.fed();
            return Ok(());
        }
        // A queue that is gone ends its consumers by itself.
        let waiting = declarer.depth(self.queue.as_str()).await?.unwrap_or(0);
        watchdog.waits(waiting, Instant::now())
    }

    async fn consume(&mut self, prefetch: u16) -> Result<(), Fault> {
        let id = self.next_consumer;
        self.next_consumer += 1;
        let tag = ShortString::from(id.to_string());
        answer("basic.qos", self.channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let started = self.channel.basic_consume(
            self.queue.clone(),
            tag.clone(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let deliveries = answer("basic.consume", started).await?;
        let ended = stream::once(std::future::ready((id, None)));
        self.arrivals.push(Box::pin(deliveries.map(move |d| (id, Some(d))).chain(ended)));
        let share = Share { prefetch: prefetch.into(), unacked: 0, active: true };
        self.consumers.push(Consumer { id, tag, share });
        Ok(())
    }

    /// Deliveries that are on their way still arrive, through the same stream.
    async fn cancel(&mut self, index: usize) -> Result<(), Fault> {
        let consumer = &mut self.consumers[index];
        consumer.share.active = false;
        let tag = consumer.tag.clone();
        answer("basic.cancel", self.channel.basic_cancel(tag, BasicCancelOptions::default())).await?;
        self.forget_cancelled();
        Ok(())
    }

    /// A cancelled consumer without open deliveries is history, but while none is active it is
    /// also the only sign that this channel is not fresh.
    fn forget_cancelled(&mut self) {
        if self.consumers.iter().any(|c| c.share.active) {
            self.consumers.retain(|c| c.share.active || c.share.unacked > 0);
        }
    }

    async fn arrived(&mut self, arrival: Arrival, wanted: u32) -> Result<(), Fault> {
        let (id, Some(received)) = arrival else {
            let unasked = self.consumers.iter().any(|c| c.id == arrival.0 && c.share.active);
            return if unasked { Err(Fault::Cancelled) } else { Ok(()) };
        };
        let received = received?;
        self.unacked.insert(received.delivery_tag, id);
        if let Some(consumer) = self.consumers.iter_mut().find(|c| c.id == id) {
            consumer.share.unacked += 1;
        }
        // Only a consumer that was cancelled meanwhile delivers beyond the credit.
        if self.unacked.len() > wanted as usize {
            return self.reject(received.delivery_tag, true).await;
        }
        self.waiting.push_back(received);
        Ok(())
    }

    fn hand_over(&mut self) {
        let Some(settle) = &self.settle else { return };
        let queue = self.queue.as_str();
        while !self.waiting.is_empty() {
            let Ok(permit) = self.out.try_reserve() else { return };
            if let Some(received) = self.waiting.pop_front() {
                let lane = self.lane.clone();
                permit.send(delivery(received, queue, self.has_letters, settle.clone(), &self.handles, lane));
            }
        }
    }

    /// The subscriber dropped its receiver: nothing new, but what it still holds can be settled.
    async fn abandoned(&mut self) -> Result<(), Fault> {
        self.settle = None;
        while let Some(received) = self.waiting.pop_front() {
            self.reject(received.delivery_tag, true).await?;
        }
        Ok(())
    }

    /// Settles this delivery and whatever else was settled meanwhile, with few frames.
    async fn settle(&mut self, first: Settle) -> Result<(), Fault> {
        let mut batch = vec![first];
        while batch.len() < SETTLE_BUFFER
            && let Ok(more) = self.settled.try_recv()
        {
            batch.push(more);
        }
        // What is open no longer must not be settled again: the broker would end the channel.
        batch.retain(|word| self.unacked.contains_key(&word.tag));
        for word in batch.iter().filter(|w| w.verdict != Verdict::Done) {
            self.reject(word.tag, word.verdict == Verdict::Requeue).await?;
        }
        let mut done: Vec<u64> = batch.iter().filter(|w| w.verdict == Verdict::Done).map(|w| w.tag).collect();
        done.sort_unstable();
        for frame in frames(&self.unacked, &done) {
            let options = BasicAckOptions { multiple: frame.multiple };
            answer("basic.ack", self.channel.basic_ack(frame.tag, options)).await?;
        }
        for tag in done {
            self.closed(tag);
        }
        for word in batch {
            // A caller that stopped listening has its delivery settled all the same.
            let _ = word.reply.send(Ok(()));
        }
        Ok(())
    }

    /// Back to the queue, or (without `requeue`) to where the queue dead-letters.
    async fn reject(&mut self, tag: u64, requeue: bool) -> Result<(), Fault> {
        let options = BasicNackOptions { multiple: false, requeue };
        answer("basic.nack", self.channel.basic_nack(tag, options)).await?;
        self.closed(tag);
        Ok(())
    }

    fn closed(&mut self, tag: u64) {
        let Some(id) = self.unacked.remove(&tag) else { return };
        if let Some(consumer) = self.consumers.iter_mut().find(|c| c.id == id) {
            consumer.share.unacked = consumer.share.unacked.saturating_sub(1);
            if !consumer.share.active {
                self.forget_cancelled();
            }
        }
    }
}

fn delivery(
    received: Received,
    queue: &str,
    is_letter: bool,
    owner: mpsc::Sender<Settle>,
    handles: &Handles,
    lane: Option<Arc<Lane>>,
) -> Delivery {
    let headers = received.properties.headers().as_ref();
    let header = |name| headers.and_then(|h| h.inner().get(name)).and_then(number).and_then(|n| u32::try_from(n).ok());
    let delivery_count = header(HEADER_DELIVERY_COUNT).unwrap_or_else(|| u32::from(received.redelivered));
    let deferrals = header(HEADER_DEFERRALS).unwrap_or(0);
    let routing_key = received.routing_key.to_string();
    let about = death::about(&received, queue, is_letter);
    let message_id = received.properties.message_id().clone();
    let body = Bytes::from(received.data);
    let again = lane.map(|lane| (lane, Copy { message_id, body: body.clone(), deferrals }));
    let ack = handles.issue(Box::new(AmqpAck { tag: received.delivery_tag, owner, again }));
    let routing_key = about.death.as_ref().map_or(routing_key, |death| death.routing_key.clone());
    Delivery { routing_key, delivery_count, deferrals, about, body, ack }
}

/// RabbitMQ picks the width of a number by its value.
pub(super) fn number(value: &AMQPValue) -> Option<u64> {
    let number = match value {
        AMQPValue::ShortShortInt(n) => i64::from(*n),
        AMQPValue::ShortShortUInt(n) => i64::from(*n),
        AMQPValue::ShortInt(n) => i64::from(*n),
        AMQPValue::ShortUInt(n) => i64::from(*n),
        AMQPValue::LongInt(n) => i64::from(*n),
        AMQPValue::LongUInt(n) => i64::from(*n),
        AMQPValue::LongLongInt(n) => *n,
        _ => return None,
    };
    u64::try_from(number).ok()
}
