//! One process' connection to the model, as the port that workers and control planes use.

use std::time::Duration;

use async_trait::async_trait;
use stoker_schemas::PoolName;
use stoker_schemas::spec::Priority;
use stoker_worker::ports::broker::{
    Broker, BrokerError, BrokerStatus, HistoryReader, HistoryStatus, Offset, Outgoing, Parked, Source, Subscription,
};
use stoker_worker::ports::handle::Handles;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Model;
use super::queue::Message;
use super::route::{host_queue, lane_queue};
use super::state::{Action, Answer, Consumer, DEAD, Link, Pending, State, message_of, parked_message};
use super::stream::Reader;

/// A publish that is not confirmed by then answers an error, as with the RabbitMQ adapter.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(5);
/// Bodies beyond this are refused, as by the RabbitMQ adapter, which takes 8 MiB.
pub const MAX_BODY_BYTES: usize = 512 * 1024;
/// Deliveries on their way to a subscriber.
const DELIVERIES: usize = 16;
/// History entries on their way to a reader.
const ENTRIES: usize = 256;

/// A connection, for one process.
#[derive(Clone)]
pub struct SimBroker {
    model: Model,
    link: u64,
    host: Option<String>,
}

impl SimBroker {
    /// Connects a process; `host` is the one whose commands it may receive.
    pub fn connect(model: &Model, name: &str, host: Option<&str>) -> Self {
        let mut state = model.lock();
        let link = state.fresh_id();
        let status = if state.alarm { BrokerStatus::Blocked("memory".to_owned()) } else { BrokerStatus::Connected };
        let history = state.history_status();
        let opened = Link {
            name: name.to_owned(),
            up: true,
            generation: 1,
            window: std::collections::BTreeMap::new(),
            last_due_ms: 0,
            closing: CancellationToken::new(),
            status: watch::Sender::new(status),
            history: watch::Sender::new(history),
        };
        state.links.insert(link, opened);
        Self { model: model.clone(), link, host: host.map(str::to_owned) }
    }

    /// The connection's number.
    pub fn link(&self) -> u64 {
        self.link
    }

    /// Over a connection that is there.
    pub(super) fn over(model: Model, link: u64) -> Self {
        Self { model, link, host: None }
    }

    pub(super) async fn submit(&self, message: impl FnOnce(&mut State) -> Message, parked: bool) -> Answer {
        let (reply, answer) = oneshot::channel();
        {
            let mut state = self.model.lock();
            let id = state.fresh_id();
            let message = message(&mut state);
            if message.body.len() > MAX_BODY_BYTES {
                return Err(BrokerError::Refused("the message is too large".to_owned()));
            }
            let link = state.links.get_mut(&self.link).ok_or(BrokerError::Closed)?;
            link.window.insert(id, Pending { message, parked, reply });
            let (up, generation) = (link.up, link.generation);
            if up {
                state.send(self.link, Action::Publish { link: self.link, generation, id });
            }
        }
        match timeout(PUBLISH_DEADLINE, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(BrokerError::Closed),
            Err(_) => Err(self.overdue()),
        }
    }

    /// Why nothing was confirmed in time.
    fn overdue(&self) -> BrokerError {
        let state = self.model.lock();
        let Some(link) = state.links.get(&self.link) else { return BrokerError::Closed };
        let status = link.status.borrow().clone();
        match status {
            BrokerStatus::Connected => BrokerError::Timeout(PUBLISH_DEADLINE),
            BrokerStatus::Blocked(why) => BrokerError::Blocked(why),
            BrokerStatus::Down(why) => BrokerError::Down(why),
        }
    }

    fn queue_of(&self, source: &Source) -> Result<String, BrokerError> {
        match source {
            Source::Jobs(pool, lane) => Ok(lane_queue(pool.as_str(), lane.as_str())),
            Source::HostCommands => {
                self.host.as_deref().map(host_queue).ok_or_else(|| BrokerError::Refused("no host was named".to_owned()))
            }
            Source::Dead => Ok(DEAD.to_owned()),
        }
    }
}

#[async_trait]
impl Broker for SimBroker {
    async fn publish(&self, message: Outgoing) -> Result<(), BrokerError> {
        self.submit(|_| message_of(message), false).await
    }

    async fn subscribe(&self, source: Source) -> Result<Subscription, BrokerError> {
        let queue = self.queue_of(&source)?;
        let (to, deliveries) = mpsc::channel(DELIVERIES);
        let (credit, wanted) = watch::channel(0);
        let mut state = self.model.lock();
        let closing = state.links.get(&self.link).ok_or(BrokerError::Closed)?.closing.clone();
        let handles = Handles::new(source.clone(), &to, closing);
        if matches!(source, Source::Jobs(..)) {
            state.declare_work(&queue);
        }
        let id = state.fresh_id();
        state.consumers.insert(id, Consumer { link: self.link, queue, to, credit: wanted, handles });
        Ok(Subscription { deliveries, credit })
    }

    async fn history(&self, from: Offset) -> Result<HistoryReader, BrokerError> {
        let (to, entries) = mpsc::channel(ENTRIES);
        let mut state = self.model.lock();
        if !state.links.contains_key(&self.link) {
            return Err(BrokerError::Closed);
        }
        let (next, generation) = (state.history.begin(from), state.history.generation);
        let id = state.fresh_id();
        state.readers.insert(id, Reader { link: self.link, next, generation, to });
        Ok(entries)
    }

    async fn park(&self, parked: Parked) -> Result<(), BrokerError> {
        let message = |state: &mut State| parked_message(parked.routing_key, parked.body, state.next_id);
        self.submit(message, true).await
    }

    fn status(&self) -> watch::Receiver<BrokerStatus> {
        let state = self.model.lock();
        let closed = || watch::channel(BrokerStatus::Down("closed".to_owned())).1;
        state.links.get(&self.link).map_or_else(closed, |link| link.status.subscribe())
    }

    fn history_status(&self) -> watch::Receiver<HistoryStatus> {
        let state = self.model.lock();
        let closed = || watch::channel(HistoryStatus::Available).1;
        state.links.get(&self.link).map_or_else(closed, |link| link.history.subscribe())
    }

    async fn depth(&self, pool: &PoolName, lane: Priority) -> Result<u64, BrokerError> {
        let state = self.model.lock();
        let queue = state.queues.get(&lane_queue(pool.as_str(), lane.as_str()));
        Ok(queue.map_or(0, |queue| queue.ready.len() as u64))
    }

    async fn close(&self) {
        self.model.lock().forget(self.link);
    }
}
