//! A broker that only remembers: what is published is history at once.

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use stoker_schemas::{PoolName, spec::Priority};
use stoker_worker::ports::broker::{
    Broker, BrokerError, BrokerStatus, HistoryEntry, HistoryReader, HistoryStatus, Offset, Outgoing, Parked, Source,
    Subscription,
};
use tokio::sync::{mpsc, watch};

pub struct FakeBroker {
    history: watch::Sender<Vec<HistoryEntry>>,
    pub status: watch::Sender<BrokerStatus>,
    pub history_status: watch::Sender<HistoryStatus>,
    /// Publishes that still succeed; then each fails as if its confirm never came.
    pub confirms: Mutex<Option<usize>>,
    /// A key that no queue takes messages with.
    pub no_queue: Mutex<Option<String>>,
    /// Messages that wait in each lane.
    pub depth: Mutex<u64>,
    /// What it confirmed may be gone.
    pub may_lose: bool,
}

impl Default for FakeBroker {
    fn default() -> Self {
        Self {
            history: watch::channel(Vec::new()).0,
            status: watch::channel(BrokerStatus::Connected).0,
            history_status: watch::channel(HistoryStatus::Available).0,
            confirms: Mutex::new(None),
            no_queue: Mutex::new(None),
            depth: Mutex::new(0),
            may_lose: true,
        }
    }
}

impl FakeBroker {
    /// Puts an entry into the history as it is.
    pub fn put(&self, routing_key: &str, content_type: &str, body: impl Into<Vec<u8>>) {
        self.history.send_modify(|history| {
            let offset = history.len() as u64;
            let (routing_key, content_type) = (routing_key.to_owned(), content_type.to_owned());
            history.push(HistoryEntry { offset, content_type, routing_key, body: body.into().into() });
        });
    }

    /// Everything published so far.
    pub fn published(&self) -> Vec<HistoryEntry> {
        self.history.borrow().clone()
    }

    /// Everything published, once it is so.
    pub async fn until(&self, holds: impl Fn(&[HistoryEntry]) -> bool) -> Vec<HistoryEntry> {
        let mut history = self.history.subscribe();
        let known = history.wait_for(|entries| holds(entries)).await.unwrap();
        known.clone()
    }

    /// Kinds and keys of what was published, for assertions.
    pub fn keys(&self) -> Vec<String> {
        self.published().into_iter().map(|e| e.routing_key).collect()
    }
}

#[async_trait]
impl Broker for FakeBroker {
    async fn publish(&self, message: Outgoing) -> Result<(), BrokerError> {
        match &*self.status.borrow() {
            BrokerStatus::Connected => {}
            BrokerStatus::Blocked(why) => return Err(BrokerError::Blocked(why.clone())),
            BrokerStatus::Down(why) => return Err(BrokerError::Down(why.clone())),
        }
        if self.no_queue.lock().unwrap().as_ref() == Some(&message.routing_key) {
            return Err(BrokerError::Unroutable(message.routing_key));
        }
        if let Some(left) = self.confirms.lock().unwrap().as_mut() {
            *left = left.checked_sub(1).ok_or(BrokerError::Timeout(Duration::from_secs(5)))?;
        }
        self.put(&message.routing_key, message.content_type, message.body);
        Ok(())
    }

    async fn subscribe(&self, _: Source) -> Result<Subscription, BrokerError> {
        Err(BrokerError::Closed)
    }

    async fn history(&self, from: Offset) -> Result<HistoryReader, BrokerError> {
        let (sender, reader) = mpsc::channel(64);
        let mut history = self.history.subscribe();
        let mut next = from.next() as usize;
        tokio::spawn(async move {
            loop {
                let fresh: Vec<_> = history.borrow_and_update().iter().skip(next).cloned().collect();
                next += fresh.len();
                for entry in fresh {
                    if sender.send(entry).await.is_err() {
                        return;
                    }
                }
                if history.changed().await.is_err() {
                    return;
                }
            }
        });
        Ok(reader)
    }

    async fn park(&self, _: Parked) -> Result<(), BrokerError> {
        Ok(())
    }

    fn status(&self) -> watch::Receiver<BrokerStatus> {
        self.status.subscribe()
    }

    fn history_status(&self) -> watch::Receiver<HistoryStatus> {
        self.history_status.subscribe()
    }

    async fn depth(&self, _: &PoolName, _: Priority) -> Result<u64, BrokerError> {
        Ok(*self.depth.lock().unwrap())
    }

    fn may_lose(&self) -> bool {
        self.may_lose
    }

    async fn close(&self) {}
}
