//! The broker of a single host, inside its process. The event log is its only store: publishing
//! appends to it, a follower routes whatever the log says, and at start the queues are filled
//! again from the log's index of open jobs. Queues hold positions, not messages, so a long
//! backlog costs a few bytes a job here (the log's own cache grows apart from that).
//!
//! ```text
//!  publish --append--> [event log] --follower--> lanes, delays, commands --> subscriptions
//!  supervisor --append-----^   \--> history readers
//! ```
//!
//! A dead letter is an event as well, in a stream of its own: it fills no queue, and no start reads it.

pub(crate) mod follower;
mod queues;
mod subscription;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use stoker_schemas::event::{Event, EventData};
use stoker_schemas::letter::{Death, GivenUpBy, Letter, dead_lettered};
use stoker_schemas::spec::Priority;
use stoker_schemas::{JobId, PoolName, Time};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::clock::Clock;
use crate::damaged::Damaged;
use crate::log::{Append, EventLog, Expected, IndexChange, LogError, OpenStream, Recorded, Scanned};
use crate::ports::broker::{
    About, Broker, BrokerError, BrokerStatus, CONTENT_BATCH, CONTENT_EVENT, HistoryEntry, HistoryReader, Mark, Offset,
    Outgoing, Parked, Source, Subscription,
};
use crate::supervisor::{HOST_STREAM, tags};
use queues::{Item, Queues};

/// Who tells of dead letters.
const SOURCE: &str = "/producers/broker";
/// Entries read from the log at a time.
const PAGE: usize = 256;

/// The in-process broker. Cheap to clone.
#[derive(Clone)]
pub struct EmbeddedBroker {
    inner: Arc<Inner>,
}

struct Inner {
    log: EventLog,
    clock: Clock,
    queues: Queues,
    status: watch::Sender<BrokerStatus>,
    closed: CancellationToken,
}

impl EmbeddedBroker {
    /// Fills the queues from the log and starts to follow it.
    pub fn open(log: EventLog, clock: Clock) -> Result<Self, BrokerError> {
        let (status, _) = watch::channel(BrokerStatus::Connected);
        let inner = Inner { log, clock, queues: Queues::default(), status, closed: CancellationToken::new() };
        let head = *inner.log.head().borrow();
        let damaged = inner.refill().map_err(store)?;
        let broker = Self { inner: Arc::new(inner) };
        for (stream, error) in damaged {
            tokio::spawn(broker.inner.clone().tell_damaged(stream, error));
        }
        follower::start(broker.inner.clone(), head);
        Ok(broker)
    }
}

impl Inner {
    /// What waited when the process ended, waits again. Jobs of which that cannot be read come back.
    fn refill(&self) -> Result<Vec<(Uuid, LogError)>, LogError> {
        let mut damaged = Vec::new();
        for tag in [tags::QUEUED, tags::RETRYING] {
            for stream in self.log.open_streams(Some(tag)) {
                let (stream, refilled) = match stream {
                    Ok(open) => (Some(open.stream), self.refill_job(tag, open)),
                    Err(LogError::Corrupt { position, stream, what }) => {
                        (stream, Err(LogError::Corrupt { position, stream, what }))
                    }
                    Err(error) => return Err(error),
                };
                match refilled {
                    Err(error) if error.is_damage() => {
                        tracing::error!(?stream, %error, "a job that waited cannot be read");
                        damaged.extend(stream.map(|stream| (stream, error)));
                    }
                    refilled => refilled?,
                }
            }
        }
        Ok(damaged)
    }

    fn refill_job(&self, tag: u8, open: OpenStream) -> Result<(), LogError> {
        if tag == tags::QUEUED {
            return self.refill_from(open.first_position);
        }
        let records = self.log.read_stream(open.stream)?;
        let work = records.iter().rev().find(|r| follower::is_work(&r.payload));
        work.map_or(Ok(()), |record| self.refill_from(record.position))
    }

    /// Writes that a job can wait no longer; nothing of it is read at the next start.
    async fn tell_damaged(self: Arc<Self>, stream: Uuid, error: LogError) {
        let damaged = Damaged::new(&self.log, JobId(stream), error, self.clock.now());
        let event = damaged.letter(SOURCE, self.clock.now());
        let told = match event.encode() {
            Ok(body) => self.log.append(vec![append_of(&event, body.into())]).await,
            Err(error) => return tracing::error!(%stream, %error, "a damaged job cannot be told of"),
        };
        let closed = Append { stream, expected: Expected::Any, events: Vec::new(), index: IndexChange::Remove };
        let told = match told {
            Ok(_) if damaged.can_be_closed() => self.log.append(vec![closed]).await,
            Ok(told) => Ok(told),
            Err(error) => Err(error),
        };
        if let Err(error) = told {
            tracing::error!(%stream, %error, "a damaged job is not closed, it is told of again at the next start");
        }
    }

    fn refill_from(&self, position: u64) -> Result<(), LogError> {
        for record in self.log.scan(position, 1)? {
            match Event::decode(&record.payload, self.clock.now()) {
                Ok(event) => self.route(&event, record.position),
                Err(error) => tracing::error!(position, %error, "event in the log cannot be read, job not refilled"),
            }
        }
        Ok(())
    }

    /// Puts an event where its readers wait for it.
    fn route(&self, event: &Event, position: u64) {
        let item = Item { position, deliveries: 0, deferrals: 0 };
        match &event.data {
            EventData::JobEnqueued(e) => self.queues.push(&lane(&e.spec.pool, e.spec.priority), item),
            EventData::JobRetryScheduled(e) => {
                self.queues.push_later(
                    &lane(&e.spec.pool, e.spec.priority),
                    item,
                    self.wait_until(event.time, e.not_before),
                );
            }
            EventData::CancelRequested(_)
            | EventData::StopRequested(_)
            | EventData::SnoozeRequested(_)
            | EventData::AttemptSuperseded(_)
            | EventData::HostDrainRequested(_)
            | EventData::PoolConfigured(_) => {
                self.queues.push(&Source::HostCommands, item);
            }
            _ => {}
        }
    }

    /// Writes that a message died.
    async fn tell_dead(
        &self,
        by: GivenUpBy,
        routing_key: &str,
        about: &About,
        body: &[u8],
        at: Time,
    ) -> Result<(), BrokerError> {
        let (queue, routing_key) = (about.queue.clone(), routing_key.to_owned());
        let death = Death { by, queue, exchange: String::new(), routing_key, count: 1, at: Some(at) };
        let (message_id, content_type) = (about.message_id.as_deref(), about.content_type.as_deref());
        let letter = Letter { death: &death, message_id, content_type, body };
        let event = dead_lettered(letter, SOURCE, self.clock.now());
        let body = event.encode().map_err(|e| BrokerError::Refused(e.to_string()))?;
        self.log.append(vec![append_of(&event, body.into())]).await.map(drop).map_err(store)
    }

    fn check_open(&self) -> Result<(), BrokerError> {
        if self.closed.is_cancelled() { Err(BrokerError::Closed) } else { Ok(()) }
    }

    /// No longer than it was to wait when that was said: this machine's clock may have been set back since.
    fn wait_until(&self, said: Time, due: Time) -> tokio::time::Instant {
        tokio::time::Instant::now() + due.since(self.clock.now()).min(due.since(said))
    }
}

fn lane(pool: &PoolName, priority: Priority) -> Source {
    Source::Jobs(pool.clone(), priority)
}

fn store(error: LogError) -> BrokerError {
    BrokerError::Store(error.to_string())
}

/// How an event published from outside (not by the supervisor) enters the log.
fn append_of(event: &Event, body: Bytes) -> Append {
    // What is told of a host is read at each start; dead letters are not.
    let stream = event.job().map(|job| job.0).or_else(|| event.letter().map(|letter| letter.0)).unwrap_or(HOST_STREAM);
    let micros = |time: Time| u64::try_from(time.unix_micros()).unwrap_or(0);
    let (expected, index) = match &event.data {
        // The first event of its job: the same key again finds the stream taken.
        EventData::JobEnqueued(_) => (Expected::Version(0), IndexChange::Set(tags::QUEUED, micros(event.time))),
        EventData::JobRetryScheduled(e) => (Expected::Any, IndexChange::Set(tags::RETRYING, micros(e.not_before))),
        // Nothing waits for a host any more.
        EventData::JobDead(_) | EventData::JobCancelled(_) => (Expected::Any, IndexChange::Remove),
        _ => (Expected::Any, IndexChange::Keep),
    };
    Append { stream, expected, events: vec![body], index }
}

#[async_trait]
impl Broker for EmbeddedBroker {
    async fn publish(&self, message: Outgoing) -> Result<(), BrokerError> {
        self.inner.check_open()?;
        if message.content_type == CONTENT_BATCH {
            return Err(BrokerError::Refused("batches are for brokers between hosts".to_owned()));
        }
        let event =
            Event::decode(&message.body, self.inner.clock.now()).map_err(|e| BrokerError::Refused(e.to_string()))?;
        let append = append_of(&event, message.body);
        let stream = append.stream;
        match self.inner.log.append(vec![append]).await {
            Ok(_) => Ok(()),
            Err(LogError::WrongVersion { .. }) => self.same_as_known(stream, &event),
            Err(error) => Err(store(error)),
        }
    }

    async fn subscribe(&self, source: Source) -> Result<Subscription, BrokerError> {
        self.inner.check_open()?;
        Ok(subscription::start(self.inner.clone(), source))
    }

    async fn history(&self, from: Offset) -> Result<HistoryReader, BrokerError> {
        self.inner.check_open()?;
        let (send, receive) = mpsc::channel(PAGE);
        let from = match from {
            Offset::After(mark) if self.is_another(mark)? => 1,
            from => from.next().max(1),
        };
        let inner = self.inner.clone();
        tokio::spawn(async move {
            if let Err(error) = read_history(&inner, from, &send).await {
                tracing::error!(%error, "history reading ended");
            }
        });
        Ok(receive)
    }

    async fn park(&self, parked: Parked) -> Result<(), BrokerError> {
        self.inner.check_open()?;
        let Parked { routing_key, reason, at, about, body } = parked;
        self.inner.tell_dead(GivenUpBy::Worker(reason), &routing_key, &about, &body, at).await
    }

    fn status(&self) -> watch::Receiver<BrokerStatus> {
        self.inner.status.subscribe()
    }

    /// What its queues are filled from stands in the log.
    fn may_lose(&self) -> bool {
        false
    }

    async fn depth(&self, pool: &PoolName, priority: Priority) -> Result<u64, BrokerError> {
        Ok(self.inner.queues.depth(&lane(pool, priority)))
    }

    async fn close(&self) {
        self.inner.closed.cancel();
    }
}

impl EmbeddedBroker {
    /// Does the log not hold the entry that was read last? Then it was removed meanwhile, and begun again.
    fn is_another(&self, mark: Mark) -> Result<bool, BrokerError> {
        let Scanned { records, damaged, .. } = self.inner.log.scan_past(mark.offset, 1).map_err(store)?;
        let record = records.into_iter().find(|record| record.position == mark.offset);
        // A damaged one says nothing; a log that was begun again has sound ones.
        Ok(damaged.is_empty() && record.is_none_or(|record| entry(record).mark() != mark))
    }

    /// The same job again is fine, another one under the same key is not.
    fn same_as_known(&self, stream: Uuid, event: &Event) -> Result<(), BrokerError> {
        let records = self.inner.log.read_stream(stream).map_err(store)?;
        let known = records.first().and_then(|r| Event::decode(&r.payload, self.inner.clock.now()).ok());
        match (known.map(|k| k.data), &event.data) {
            (Some(EventData::JobEnqueued(known)), EventData::JobEnqueued(new)) if known.spec == new.spec => Ok(()),
            _ => Err(BrokerError::Refused(stoker_schemas::command::Rejection::KeyReused.to_string())),
        }
    }
}

async fn read_history(inner: &Inner, mut next: u64, send: &mpsc::Sender<HistoryEntry>) -> Result<(), LogError> {
    let mut head = inner.log.head();
    loop {
        let scanned = inner.log.scan_past(next, PAGE)?;
        let read_all = scanned.next == next;
        next = scanned.next;
        for record in scanned.records {
            if send.send(entry(record)).await.is_err() {
                return Ok(());
            }
        }
        if read_all {
            tokio::select! {
                biased;
                () = inner.closed.cancelled() => return Ok(()),
                () = send.closed() => return Ok(()),
                changed = head.wait_for(|head| *head >= next) => if changed.is_err() { return Ok(()) },
            }
        }
    }
}

fn entry(record: Recorded) -> HistoryEntry {
    HistoryEntry {
        offset: record.position,
        content_type: CONTENT_EVENT.to_owned(),
        routing_key: follower::kind_of(&record.payload).unwrap_or_default(),
        body: record.payload,
    }
}
