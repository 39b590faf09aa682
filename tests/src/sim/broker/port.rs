//! One process' connection to the model, as the port that workers and control planes use.

use async_trait::async_trait;
use stoker_schemas::PoolName;
use stoker_schemas::spec::Priority;
use stoker_worker::ports::broker::{
    Broker, BrokerError, BrokerStatus, HistoryReader, HistoryStatus, Offset, Outgoing, Parked, Source, Subscription,
};
use stoker_worker::ports::handle::Handles;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Model;
use super::publish::submit;
use super::route::{host_queue, lane_queue};
use super::state::{Consumer, DEAD, Exchange, Link, message_of, parked_message};
use super::stream::Reader;

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
        submit(&self.model, self.link, message_of(message), Exchange::Events).await
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
        let message = parked_message(parked, self.model.lock().fresh_id());
        submit(&self.model, self.link, message, Exchange::Dead).await
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
