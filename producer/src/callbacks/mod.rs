//! Webhooks out: a job's `callback_url` hears when it is ready, an attempt failed, it is dead or
//! stopped. Each callback is a row, written with the place in the order of events up to which rows
//! were made; a restart goes on from there, and what was under way is sent again under its own id.
//!
//! The way through: `collect` makes rows of events; `deliver` sends what is due ([`send`]),
//! where it may go ([`target`]), when it is time ([`schedule`]).

mod collect;
mod config;
mod deliver;
pub mod payload;
pub mod schedule;
pub mod send;
pub mod store;
pub mod target;

use std::sync::Arc;

use stoker_schemas::Time;
use tokio::sync::Notify;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use config::CallbackConfig;
pub use store::{Call, CallState};

use crate::clock::Clock;
use crate::readmodel::{ReadModel, ReadModelError};
use crate::webhooks::StoreError;
use send::Sender;
use store::CallStore;

/// Wait before the store is asked again after it failed.
const RETRY: std::time::Duration = std::time::Duration::from_secs(10);

/// What can go wrong with callbacks as a whole.
#[derive(Debug, thiserror::Error)]
pub enum CallbackError {
    /// Our rows.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The events.
    #[error(transparent)]
    Model(#[from] ReadModelError),
    /// A step panicked.
    #[error("a step of callbacks failed: {0}")]
    Step(String),
}

/// Callbacks. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct Callbacks {
    store: CallStore,
    sender: Arc<Sender>,
    news: Arc<Notify>,
}

impl Callbacks {
    /// With rows in a tree of this store.
    pub fn open(db: &sled::Db, config: CallbackConfig) -> Result<Self, StoreError> {
        let sender = Arc::new(Sender::new(Arc::new(config)));
        Ok(Self { store: CallStore::open(db)?, sender, news: Arc::new(Notify::new()) })
    }

    /// The newest with a number below `before`.
    pub fn list(&self, before: u64, limit: usize) -> Result<Vec<Call>, StoreError> {
        self.store.list(before, limit)
    }

    /// How many wait.
    pub fn waiting(&self) -> u64 {
        self.store.waiting()
    }

    /// Runs until told to stop. To be called before the history is followed: a read model that
    /// begins anew is told from one that has gone on.
    pub fn start(self, model: ReadModel, clock: Clock, stop: CancellationToken) -> Result<JoinHandle<()>, StoreError> {
        self.align(&model)?;
        Ok(tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.keep_collecting(model, &clock) => {}
                () = self.keep_delivering(&clock) => {}
            }
        }))
    }

    /// Makes rows of what has happened since the last time.
    pub async fn collect(&self, model: &ReadModel, now: Time) -> Result<(), CallbackError> {
        let (store, model) = (self.store.clone(), model.clone());
        // Reads and writes of milliseconds: not on a thread that serves requests.
        let done = tokio::task::spawn_blocking(move || collect::collect(&store, &model, now)).await;
        let made = done.unwrap_or_else(|e| Err(CallbackError::Step(e.to_string())))?;
        if made > 0 {
            self.news.notify_one();
        }
        Ok(())
    }

    async fn keep_collecting(&self, model: ReadModel, clock: &Clock) {
        let mut changes = model.changes();
        loop {
            if let Err(error) = self.collect(&model, clock()).await {
                tracing::warn!(%error, "callbacks cannot be written down, trying again");
                tokio::time::sleep(RETRY).await;
                continue;
            }
            if matches!(changes.recv().await, Err(RecvError::Closed)) {
                return;
            }
            // One look at the rows is enough for all that has come by now.
            changes = changes.resubscribe();
        }
    }

    async fn keep_delivering(&self, clock: &Clock) {
        loop {
            let next = match self.deliver_due(clock).await {
                Ok(next) => next,
                Err(error) => {
                    tracing::warn!(%error, "callbacks cannot be sent, trying again");
                    Some(clock().plus(RETRY))
                }
            };
            let wait = async {
                match next {
                    Some(at) => tokio::time::sleep(at.since(clock())).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => {}
                () = self.news.notified() => {}
            }
        }
    }
}
