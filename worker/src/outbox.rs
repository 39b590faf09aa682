//! Publishes the log's own events, in order, from a cursor kept beside the log. What was published
//! but not yet noted is published again after a crash: readers recognise duplicates by id.
//!
//! Events that only readers of history want travel in batches; those that route to a queue
//! (retries, dead letters) travel alone, because a queue holds messages, not batches.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use stoker_schemas::event::{Event, EventData};
use stoker_schemas::topology;
use tokio::sync::watch;

use crate::backoff_policy::{Backoff, RECONNECT};
use crate::clock::Clock;
use crate::log::{EventLog, LogError, Recorded};
use crate::ports::broker::{Broker, BrokerError, CONTENT_BATCH, CONTENT_EVENT, Outgoing};

/// Name of the cursor.
pub const CURSOR: &str = "outbox";
/// Events read from the log at a time; also the most that are under way.
const PAGE: usize = 512;
/// Events in one batch; with MAX_EVENT_BYTES each this stays below RabbitMQ's message limits.
const MAX_BATCH: usize = 64;
/// Bytes in one batch.
const MAX_BATCH_BYTES: usize = 256 * 1024;
/// Routing key of a batch: bound to the history stream only.
const BATCH_KEY: &str = "history.batch";

/// Publishes for ever. `published` tells the position up to which the broker has everything.
pub async fn run(
    log: EventLog,
    broker: Arc<dyn Broker>,
    source: String,
    clock: Clock,
    published: watch::Sender<u64>,
) -> Result<(), LogError> {
    let mut next = log.cursor(CURSOR)? + 1;
    let _ = published.send(next - 1);
    let mut head = log.head();
    loop {
        if head.wait_for(|head| *head >= next).await.is_err() {
            return Ok(());
        }
        let records = log.scan(next, PAGE)?;
        let Some(last) = records.last().map(|r| r.position) else { continue };
        let mut sending: FuturesOrdered<_> =
            messages(&records, &source, clock).into_iter().map(|m| send(broker.as_ref(), m)).collect();
        while sending.next().await.is_some() {}
        next = last + 1;
        log.set_cursor(CURSOR, last)?;
        let _ = published.send(last);
    }
}

/// Our own events as messages; foreign ones (commands we keep) were published by others.
fn messages(records: &[Recorded], source: &str, clock: Clock) -> Vec<Outgoing> {
    let mut messages = Vec::new();
    let mut batch = Batch::default();
    for record in records {
        let event = match Event::decode(&record.payload, clock.now()) {
            Ok(event) if event.source == source => event,
            Ok(_) => continue,
            Err(error) => {
                // It is in the log for good; readers of history cannot use it either.
                tracing::error!(position = record.position, %error, "event in the log cannot be read, not published");
                continue;
            }
        };
        if is_history_only(&event.data) {
            if batch.is_full(record.payload.len()) {
                messages.extend(batch.take());
            }
            batch.add(&event, &record.payload);
        } else {
            messages.extend(batch.take());
            messages.push(single(&event, record.payload.clone()));
        }
    }
    messages.extend(batch.take());
    messages
}

fn is_history_only(data: &EventData) -> bool {
    !matches!(
        data,
        EventData::JobEnqueued(_)
            | EventData::JobRetryScheduled(_)
            | EventData::JobDeferred(_)
            | EventData::JobDead(_)
            | EventData::CancelRequested(_)
            | EventData::StopRequested(_)
            | EventData::AttemptSuperseded(_)
            | EventData::HostDrainRequested(_)
    )
}

fn single(event: &Event, body: Bytes) -> Outgoing {
    let (routing_key, delay) = topology::route(event);
    Outgoing { routing_key, message_id: event.id(), content_type: CONTENT_EVENT, delay, body }
}

/// Events on their way into one message.
#[derive(Default)]
struct Batch {
    first_id: String,
    count: usize,
    /// A JSON array without its end.
    body: Vec<u8>,
}

impl Batch {
    fn is_full(&self, more: usize) -> bool {
        self.count >= MAX_BATCH || self.body.len() + more > MAX_BATCH_BYTES
    }

    fn add(&mut self, event: &Event, payload: &[u8]) {
        if self.count == 0 {
            self.first_id = event.id();
            self.body.push(b'[');
        } else {
            self.body.push(b',');
        }
        self.body.extend_from_slice(payload);
        self.count += 1;
    }

    fn take(&mut self) -> Option<Outgoing> {
        if self.count == 0 {
            return None;
        }
        let Self { first_id, mut body, .. } = std::mem::take(self);
        body.push(b']');
        Some(Outgoing {
            routing_key: BATCH_KEY.to_owned(),
            message_id: first_id,
            content_type: CONTENT_BATCH,
            delay: None,
            body: Bytes::from(body),
        })
    }
}

/// Publishes one message, however long the broker is away. The log is bounded by its own means;
/// the outbox only ever holds one page.
async fn send(broker: &dyn Broker, message: Outgoing) {
    let mut waits = Backoff::new(RECONNECT);
    loop {
        match broker.publish(message.clone()).await {
            Ok(()) => return,
            Err(BrokerError::Refused(why)) => {
                tracing::error!(key = message.routing_key, why, "broker refuses an event for good, left out");
                return;
            }
            Err(error) => {
                let wait = waits.next_delay();
                tracing::warn!(%error, ?wait, "event not published, trying again");
                tokio::time::sleep(wait.max(Duration::from_millis(1))).await;
            }
        }
    }
}
