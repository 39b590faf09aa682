//! What Stoker needs of a message broker. Two adapters (RabbitMQ, in-process) pass one
//! conformance suite. Payloads are opaque bytes here; routing is by key
//! ([`stoker_schemas::topology`]).

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use stoker_schemas::{PoolName, Time, letter::Death, spec::Priority};
use tokio::sync::{mpsc, watch};

use super::handle::Handle;

/// Media type of one event.
pub const CONTENT_EVENT: &str = "application/cloudevents+json";
/// Media type of a JSON array of events (history only: nobody works from a batch).
pub const CONTENT_BATCH: &str = "application/cloudevents-batch+json";

/// A message to publish.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Decides which queues get it.
    pub routing_key: String,
    /// The event's id: the same event published twice has the same.
    pub message_id: String,
    /// [`CONTENT_EVENT`] or [`CONTENT_BATCH`].
    pub content_type: &'static str,
    /// How long a delay queue holds it; only for keys that route to one.
    pub delay: Option<Duration>,
    /// The payload.
    pub body: Bytes,
}

/// A broker.
#[async_trait]
pub trait Broker: Send + Sync + 'static {
    /// Publishes, persistent and mandatory; returns once the broker has confirmed that every
    /// queue it routes to has it. `Err` means unknown or no: publish again, consumers deduplicate.
    async fn publish(&self, message: Outgoing) -> Result<(), BrokerError>;

    /// Starts receiving work. Survives reconnections: what was unacknowledged then arrives again
    /// with a higher `delivery_count`, and its old [`Ack`] answers [`BrokerError::Stale`].
    async fn subscribe(&self, source: Source) -> Result<Subscription, BrokerError>;

    /// Reads everything ever published, oldest first, from an offset on, then live. A history that
    /// was lost and made anew is read from its beginning: offsets go back then.
    async fn history(&self, from: Offset) -> Result<HistoryReader, BrokerError>;

    /// Makes a dead letter of a message that nobody can work on, with the reason; confirmed. It goes to the
    /// readers of [`Source::Dead`], or, with a broker that keeps its history itself, straight into that.
    async fn park(&self, parked: Parked) -> Result<(), BrokerError>;

    /// Connected, blocked or down, as it changes.
    fn status(&self) -> watch::Receiver<BrokerStatus>;

    /// Whether the history takes what is published, as it changes. While it does not, work goes on,
    /// and a message that only the history takes answers [`BrokerError::Unroutable`]. A broker that
    /// keeps its history itself need not say anything.
    fn history_status(&self) -> watch::Receiver<HistoryStatus> {
        watch::channel(HistoryStatus::Available).1
    }

    /// Whether a message that was confirmed may be gone all the same: purged, expired, or with its queue.
    fn may_lose(&self) -> bool {
        true
    }

    /// Messages waiting in a pool's lane.
    async fn depth(&self, pool: &PoolName, lane: Priority) -> Result<u64, BrokerError>;

    /// Dead letters that wait for a reader.
    async fn dead_depth(&self) -> Result<u64, BrokerError> {
        Ok(0)
    }

    /// Gives back what is unacknowledged and ends every task of this broker.
    async fn close(&self);
}

/// What to receive.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// Jobs of a pool and lane.
    Jobs(PoolName, Priority),
    /// Commands to this host (the one the broker was opened for).
    HostCommands,
    /// Dead letters: what was parked, and what the broker gave up.
    Dead,
}

/// A stream of deliveries with a credit.
pub struct Subscription {
    /// Deliveries, in order per queue.
    pub deliveries: mpsc::Receiver<Delivery>,
    /// How many deliveries may be unacknowledged at once; 0 pauses. Set it as capacity changes.
    pub credit: watch::Sender<u32>,
}

/// One message to work on; owned until acknowledged, given back if the owner dies.
pub struct Delivery {
    /// Where it was published to.
    pub routing_key: String,
    /// Earlier deliveries of this very message, from 0.
    pub delivery_count: u32,
    /// What else is known of the message.
    pub about: About,
    /// How often the message was put back for a while ([`Ack::defer`]) before, as far as the broker knows.
    pub deferrals: u32,
    /// The payload.
    pub body: Bytes,
    /// How to settle it.
    pub ack: Handle,
}

/// What a message carries besides its payload, and where it was.
#[derive(Debug, Clone, Default)]
pub struct About {
    /// The queue that it came from; of a dead letter, the one that it came to.
    pub queue: String,
    /// Its own id, where its publisher gave it one.
    pub message_id: Option<String>,
    /// Media type, as its publisher said.
    pub content_type: Option<String>,
    /// Of a dead letter: how it died.
    pub death: Option<Death>,
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery")
            .field("routing_key", &self.routing_key)
            .field("delivery_count", &self.delivery_count)
            .field("deferrals", &self.deferrals)
            .field("bytes", &self.body.len())
            .finish()
    }
}

/// An adapter's way to settle one delivery, at most once. Others hold it in a [`Handle`].
#[async_trait]
pub trait Ack: Send + Sync {
    /// Done: the broker forgets it.
    async fn ack(self: Box<Self>) -> Result<(), BrokerError>;
    /// Not now: back to the queue.
    async fn requeue(self: Box<Self>) -> Result<(), BrokerError>;
    /// Not for a while: the broker delivers it again to its pool and lane, as a message that is the same but for
    /// [`Delivery::deferrals`]. Readers of the history get nothing. `Ok`: the broker has it. A crash in between may
    /// leave it twice; its worker recognises that.
    ///
    /// # Errors
    /// [`NotDeferred`] with the handle, for another try: the delivery is still the caller's.
    async fn defer(self: Box<Self>, delay: Duration) -> Result<(), NotDeferred>;
    /// Never: the broker makes a dead letter of it, as it is.
    async fn dead_letter(self: Box<Self>) -> Result<(), BrokerError>;
}

/// The broker did not take a message back for a while.
#[derive(thiserror::Error)]
#[error("message not put back for a while: {error}")]
pub struct NotDeferred<A = Box<dyn Ack>> {
    /// Settles the delivery in another way, or the same way later.
    pub ack: A,
    /// Why.
    pub error: BrokerError,
}

impl<A> std::fmt::Debug for NotDeferred<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NotDeferred").field("error", &self.error).finish_non_exhaustive()
    }
}

/// A message that could not be worked on.
#[derive(Debug, Clone)]
pub struct Parked {
    /// Where it came from.
    pub routing_key: String,
    /// Why, for people.
    pub reason: String,
    /// When.
    pub at: Time,
    /// What else was known of it.
    pub about: About,
    /// The payload as it was.
    pub body: Bytes,
}

/// A position in the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offset {
    /// From the oldest message still there.
    First,
    /// From this one on, inclusive. The one before must have been read: a history without it is
    /// another one.
    At(u64),
    /// From the one after this one on. A history with another entry in its place is another one.
    After(Mark),
}

impl Offset {
    /// The position to read next; 0 from the beginning.
    pub const fn next(self) -> u64 {
        match self {
            Self::First => 0,
            Self::At(offset) => offset,
            Self::After(mark) => mark.offset + 1,
        }
    }
}

/// Which entry of the history was read last, and of which history: one that was lost and made again counts from its
/// beginning, so the position alone does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Mark {
    /// Its position.
    pub offset: u64,
    /// Of its payload.
    pub hash: u64,
}

/// One entry of the history.
#[derive(Debug, Clone)]
pub struct HistoryEntry {
    /// Its position.
    pub offset: u64,
    /// [`CONTENT_EVENT`] or [`CONTENT_BATCH`].
    pub content_type: String,
    /// Where it was published to.
    pub routing_key: String,
    /// The payload.
    pub body: Bytes,
}

impl HistoryEntry {
    /// To read on after it later.
    pub fn mark(&self) -> Mark {
        let hash = *blake3::hash(&self.body).as_bytes();
        // The first eight of 32 bytes: there always are as many.
        let hash = hash.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        Mark { offset: self.offset, hash }
    }
}

/// History as it comes. Ends (`None`) only when the broker is closed.
pub type HistoryReader = mpsc::Receiver<HistoryEntry>;

/// The state of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerStatus {
    /// Usable.
    Connected,
    /// The broker stopped taking messages (memory or disk alarm); its own words.
    Blocked(String),
    /// Not connected; why.
    Down(String),
}

/// Whether the history takes what is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HistoryStatus {
    /// It does.
    Available,
    /// It does not; why.
    Away(String),
}

/// What can go wrong at the broker.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// No connection, and none came back in time.
    #[error("broker is not reachable: {0}; check the URL and that the broker runs, then try again")]
    Down(String),
    /// It answers, and trying again does not change the answer: its operator has to do something first.
    #[error("broker cannot be used: {0}")]
    Unusable(String),
    /// The broker refuses messages for now.
    #[error("broker is blocked: {0}; free memory or disk on the broker, then try again")]
    Blocked(String),
    /// No answer within the deadline; the message may or may not have arrived.
    #[error("broker did not confirm within {0:?}; publish again, duplicates are recognised")]
    Timeout(Duration),
    /// Nothing is bound to this key.
    #[error("no queue takes messages with key {0}; is the pool's name right and a worker declared it?")]
    Unroutable(String),
    /// The broker said no (queue full, too large).
    #[error("broker refused the message: {0}")]
    Refused(String),
    /// The delivery belongs to a connection that is gone; it will arrive again.
    #[error("delivery is stale: its connection is gone and it will be delivered again")]
    Stale,
    /// The broker was closed by us.
    #[error("broker is closed")]
    Closed,
    /// The local store behind the embedded broker failed.
    #[error("local event log failed: {0}")]
    Store(String),
}
