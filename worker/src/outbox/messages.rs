//! Events of the log as messages.
//!
//! Events that only readers of history want travel in batches; those that route to a queue
//! (retries, deferrals) travel alone, because a queue holds messages, not batches.

use bytes::Bytes;
use stoker_schemas::event::Event;
use stoker_schemas::seeded::{self, Bug};
use stoker_schemas::{JobId, Time, topology};

use crate::clock::Clock;
use crate::log::Recorded;
use crate::ports::broker::{CONTENT_BATCH, CONTENT_EVENT, Outgoing};

/// Events in one batch; with MAX_EVENT_BYTES each this stays below RabbitMQ's message limits.
const MAX_BATCH: usize = 64;
/// Bytes in one batch.
const MAX_BATCH_BYTES: usize = 256 * 1024;
/// Routing key of a batch: bound to the history only.
const BATCH_KEY: &str = "history.batch";

/// What the messages are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// Work where there is some, and history.
    All,
    /// History alone, also of what was work: that was done or is under way.
    History,
}

/// What is known of a message that a queue takes, without the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ticket {
    pub position: u64,
    pub job: Option<JobId>,
    pub routing_key: String,
    /// The queue, under the default prefix.
    pub queue: String,
    /// When its event happened.
    pub time: Time,
}

impl Ticket {
    pub(super) fn new(position: u64, event: &Event) -> Self {
        let (routing_key, _) = topology::route(event);
        Self { position, job: event.job(), routing_key, queue: topology::queue_for(event), time: event.time }
    }
}

/// A message, and its ticket if anybody but readers of the history gets it.
#[derive(Debug)]
pub(super) struct Planned {
    pub message: Outgoing,
    pub ticket: Option<Ticket>,
}

/// What becomes of a page of the log.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// To publish.
    pub messages: Vec<Planned>,
    /// To be set aside untried; the history is told among the messages.
    pub behind: Vec<Ticket>,
}

/// Our own events as messages; foreign ones (commands we keep) were published by others. `waits` says of a message
/// that it cannot be published yet.
pub(super) fn plan(
    records: &[Recorded],
    source: &str,
    clock: Clock,
    whom: For,
    waits: impl Fn(&Ticket) -> bool,
) -> Plan {
    let mut plan = Plan::default();
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
        if whom == For::All && !topology::is_history_only(&event) {
            let ticket = Ticket::new(record.position, &event);
            if !waits(&ticket) {
                plan.messages.extend(batch.take());
                plan.messages.push(Planned { message: single(&event, record.payload.clone()), ticket: Some(ticket) });
                continue;
            }
            plan.behind.push(ticket);
        }
        if batch.is_full(record.payload.len()) {
            plan.messages.extend(batch.take());
        }
        batch.add(&event, &record.payload);
    }
    plan.messages.extend(batch.take());
    plan
}

fn single(event: &Event, body: Bytes) -> Outgoing {
    let (routing_key, delay) = topology::route(event);
    let delay = delay.filter(|_| !seeded::is_on(Bug::DelayIgnored));
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

    fn take(&mut self) -> Option<Planned> {
        if self.count == 0 {
            return None;
        }
        let Self { first_id, mut body, .. } = std::mem::take(self);
        body.push(b']');
        let message = Outgoing {
            routing_key: BATCH_KEY.to_owned(),
            message_id: first_id,
            content_type: CONTENT_BATCH,
            delay: None,
            body: Bytes::from(body),
        };
        Some(Planned { message, ticket: None })
    }
}
