//! Reads the history stream, and goes on where it was after a new connection.
//!
//! A stream that was lost and made anew counts its entries from 0 again, and RabbitMQ would let a
//! reader of entry 1000 wait in silence until there are as many. So reading resumes one entry
//! earlier, with one that must be there: if it does not come, or is not the one read before, this is
//! another history, and everything in it is news.

use std::sync::Arc;

use futures_util::StreamExt;
use lapin::{
    Channel, Consumer,
    message::Delivery as Received,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    config::{ANSWER_DEADLINE, AmqpConfig, CLOSE_DEADLINE, STABLE_AFTER},
    fault::{Fault, answer},
    link::{Link, Live},
};
use crate::{
    backoff_policy::{Backoff, RECONNECT},
    ports::broker::{HistoryEntry, Offset},
};

/// Entries the broker sends ahead of our acknowledgements; a stream needs a limit.
const PREFETCH: u16 = 512;
/// Entries per acknowledgement: few frames, and the broker never runs out of credit before one.
const ACK_EVERY: u16 = PREFETCH / 4;
/// Position of an entry, and where to start reading.
const STREAM_OFFSET: &str = "x-stream-offset";

/// Keeps reading across connections.
pub(super) struct Reader {
    pub config: Arc<AmqpConfig>,
    pub link: Link,
    pub closing: CancellationToken,
    /// What comes next.
    pub from: Offset,
    /// Id of the entry before it, if this reader has read it.
    pub last: Option<ShortString>,
    pub out: mpsc::Sender<HistoryEntry>,
}

impl Reader {
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(RECONNECT);
        while let Some(live) = self.link.live().await {
            let since = Instant::now();
            match self.session(&live).await {
                Ok(()) => return,
                Err(Fault::AnotherHistory) => {
                    tracing::warn!(was_at = ?self.from, "history was lost and made anew; reading it from its beginning");
                    (self.from, self.last) = (Offset::First, None);
                }
                Err(fault) => {
                    tracing::warn!(%fault, from = ?self.from, "history reader lost; resuming");
                    live.blame(&fault);
                    if since.elapsed() >= STABLE_AFTER {
                        backoff.reset();
                    }
                    live.pause(backoff.next_delay()).await;
                }
            }
        }
    }

    /// Reads until the channel fails; `Ok` means nobody reads any longer.
    async fn session(&mut self, live: &Live) -> Result<(), Fault> {
        let channel = live.channel().await?;
        let entries = self.consume(&channel).await?;
        let end = self.forward(live, &channel, entries).await;
        // Fails when it is closed already, hangs when the connection is dead; either is fine.
        let _ = timeout(CLOSE_DEADLINE, channel.close(200, "bye".into())).await;
        end
    }

    async fn consume(&self, channel: &Channel) -> Result<Consumer, Fault> {
        answer("basic.qos", channel.basic_qos(PREFETCH, BasicQosOptions::default())).await?;
        let start = match self.from {
            Offset::First => AMQPValue::LongString("first".into()),
            Offset::At(_) | Offset::After(_) => {
                AMQPValue::LongLongInt(i64::try_from(self.from.next().saturating_sub(1)).unwrap_or(i64::MAX))
            }
        };
        let mut arguments = FieldTable::default();
        arguments.insert(STREAM_OFFSET.into(), start);
        let stream = self.config.names.history_stream();
        let started = channel.basic_consume(stream.into(), "history".into(), BasicConsumeOptions::default(), arguments);
        answer("basic.consume", started).await
    }

    async fn forward(&mut self, live: &Live, channel: &Channel, mut entries: Consumer) -> Result<(), Fault> {
        let mut unacked = 0;
        let next = self.from.next();
        let mut checked = next == 0;
        loop {
            let received = tokio::select! {
                biased;
                () = self.closing.cancelled() => return Ok(()),
                () = live.lost.cancelled() => return Err(Fault::Lost),
                () = self.out.closed() => return Ok(()),
                received = entries.next() => received.ok_or(Fault::Cancelled)??,
                () = sleep(ANSWER_DEADLINE), if !checked => return Err(Fault::AnotherHistory),
            };
            live.mark_useful();
            let tag = received.delivery_tag;
            let id = received.properties.message_id().clone();
            let entry = entry(received)?;
            if !checked && entry.offset + 1 == next && self.is_another(&entry, &id) {
                return Err(Fault::AnotherHistory);
            }
            // Retention may have taken the entry before; the broker may also start a little earlier
            // than asked, at the border of a chunk.
            checked |= entry.offset + 1 >= next;
            if self.from.next() <= entry.offset {
                let next = Offset::At(entry.offset + 1);
                let sent = tokio::select! {
                    biased;
                    () = self.closing.cancelled() => return Ok(()),
                    () = live.lost.cancelled() => return Err(Fault::Lost),
                    sent = self.out.send(entry) => sent,
                };
                if sent.is_err() {
                    return Ok(());
                }
                (self.from, self.last) = (next, id);
            }
            unacked += 1;
            if unacked >= ACK_EVERY {
                let all = BasicAckOptions { multiple: true };
                answer("basic.ack", channel.basic_ack(tag, all)).await?;
                unacked = 0;
            }
        }
    }

    /// Is this, in the place of the entry that was read last, not that one?
    fn is_another(&self, entry: &HistoryEntry, id: &Option<ShortString>) -> bool {
        match self.from {
            Offset::After(mark) => entry.mark() != mark,
            Offset::First | Offset::At(_) => self.last.is_some() && self.last != *id,
        }
    }
}

fn entry(received: Received) -> Result<HistoryEntry, Fault> {
    let headers = received.properties.headers().as_ref();
    let offset = match headers.and_then(|h| h.inner().get(STREAM_OFFSET)) {
        Some(AMQPValue::LongLongInt(offset)) => u64::try_from(*offset).map_err(|_| Fault::NoOffset)?,
        _ => return Err(Fault::NoOffset),
    };
    let content_type = received.properties.content_type().as_ref().map(ToString::to_string);
    Ok(HistoryEntry {
        offset,
        content_type: content_type.unwrap_or_default(),
        routing_key: received.routing_key.to_string(),
        body: received.data.into(),
    })
}
