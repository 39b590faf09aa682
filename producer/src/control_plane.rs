//! The control plane: rows added up from the history, API and pages over them, the removal of VMs too many, jobs that
//! nothing is heard of, and dead letters; hosts that come later hear of pools. `stoker serve` is this and nothing else;
//! `stoker up` adds a worker.
//!
//! It owns nothing that cannot be had again: its rows are refilled from the history, so several may
//! run side by side, and one that is started while the broker is away shows what it knew before.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use stoker_worker::ports::broker::Broker;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::console::ConsoleSource;
use crate::dead_letters;
use crate::hooks::HooksConfig;
use crate::http::{self, Access, Api, ServeError};
use crate::pools;
use crate::readmodel::{ReadModel, ReadModelError};
use crate::reconcile::{self, Patience};
use crate::submit::Submitter;
use crate::supersede;
use crate::webhooks::{self, StoreError, Webhooks};
use crate::work::{self, Work};

/// Folder of the rows, below the data folder.
const ROWS: &str = "control";

/// Where API and pages are, and for whom.
#[derive(Clone)]
pub struct Front {
    /// Where they listen.
    pub listen: SocketAddr,
    /// Who may come in.
    pub access: Access,
    /// Webhooks, where they are set up.
    pub hooks: Option<HooksConfig>,
    /// How long nothing may be heard of a job.
    pub patience: Patience,
    /// How long nothing may start while jobs wait and hosts have room.
    pub stalled_after: Duration,
}

impl Front {
    /// Takes the address; early, so that nothing is begun in vain.
    pub async fn bind(&self) -> Result<TcpListener, ServeError> {
        http::bind(self.listen, &self.access).await
    }
}

/// What a control plane is made of.
pub struct Parts {
    /// Its name in events: `/producers/<name>`.
    pub name: &'static str,
    /// What the front bound.
    pub listener: TcpListener,
    /// For whom it is.
    pub front: Front,
    /// Where its rows are kept.
    pub data: PathBuf,
    /// Where it reads and publishes.
    pub broker: Arc<dyn Broker>,
    /// Consoles within reach.
    pub consoles: Arc<dyn ConsoleSource>,
}

/// Why a control plane does not run (any more).
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The API.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The read model.
    #[error(transparent)]
    Model(#[from] ReadModelError),
    /// The log of webhooks.
    #[error(transparent)]
    Webhooks(#[from] StoreError),
    /// A task of it ended by a fault of ours.
    #[error("the control plane's task failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// A running control plane.
pub struct ControlPlane {
    /// Its rows.
    pub model: ReadModel,
    /// Publishes for it.
    pub submitter: Submitter,
    stop: CancellationToken,
    follow: JoinHandle<Result<(), ReadModelError>>,
    serve: JoinHandle<Result<(), ServeError>>,
    supersede: JoinHandle<()>,
    pools: JoinHandle<()>,
    dead_letters: JoinHandle<()>,
    reconcile: JoinHandle<()>,
    work: JoinHandle<()>,
    callbacks: Option<JoinHandle<()>>,
}

impl ControlPlane {
    /// Opens the rows, and starts reading, serving and removing.
    pub fn start(parts: Parts) -> Result<Self, ControlError> {
        let Parts {
            name,
            listener,
            front: Front { access, hooks, patience, stalled_after, .. },
            data,
            broker,
            consoles,
        } = parts;
        let clock = clock::system();
        let model = ReadModel::open(&data.join(ROWS), clock.clone())?;
        let submitter = Submitter::new(broker.clone(), name, clock.clone());
        let stop = CancellationToken::new();
        let (work_told, work_now) = watch::channel(Work::default());
        let mut api = Api::new(model.clone(), submitter.clone(), consoles).with_access(access).with_work(work_now);
        let mut callbacks = None;
        if let Some(hooks) = hooks {
            let webhooks = Webhooks::open(&data.join(webhooks::FOLDER), hooks)?;
            if let Some(outgoing) = webhooks.callbacks.clone() {
                callbacks = Some(outgoing.start(model.clone(), clock, stop.clone())?);
            }
            api = api.with_webhooks(webhooks);
        }
        let follow = tokio::spawn({
            let (model, stop) = (model.clone(), stop.clone());
            async move { model.follow(broker, stop).await }
        });
        let serve = tokio::spawn(http::serve(listener, api, stop.clone()));
        let supersede = tokio::spawn(supersede::run(model.clone(), submitter.clone(), stop.clone()));
        let pools = tokio::spawn(pools::run(model.clone(), submitter.clone(), stop.clone()));
        let dead_letters = tokio::spawn(dead_letters::run(model.clone(), submitter.clone(), stop.clone()));
        let reconcile = tokio::spawn(reconcile::run(model.clone(), submitter.clone(), patience, stop.clone()));
        let work = work::run(model.clone(), submitter.clone(), stalled_after, work_told, stop.clone());
        let work = tokio::spawn(work);
        Ok(Self { model, submitter, stop, follow, serve, supersede, pools, dead_letters, reconcile, work, callbacks })
    }

    /// Waits until it can no longer do its work: only an error ends it by itself.
    pub async fn failed(&mut self) -> ControlError {
        let ended = tokio::select! {
            ended = &mut self.follow => ended.map(|read| read.map_err(ControlError::from)),
            ended = &mut self.serve => ended.map(|served| served.map_err(ControlError::from)),
        };
        match ended {
            Ok(Err(error)) => error,
            Err(error) => error.into(),
            Ok(Ok(())) => ServeError::Serve(std::io::Error::other("without an error")).into(),
        }
    }

    /// Ends it: what is under way is answered, live streams are cut, the rows are flushed.
    pub async fn end(self) {
        self.stop.cancel();
        if let Some(callbacks) = self.callbacks
            && callbacks.await.is_err()
        {
            tracing::warn!("the task of callbacks had failed");
        }
        let tasks = [self.serve.await.is_ok(), self.follow.await.is_ok(), self.dead_letters.await.is_ok()];
        let looking_after = [
            self.supersede.await.is_ok(),
            self.pools.await.is_ok(),
            self.reconcile.await.is_ok(),
            self.work.await.is_ok(),
        ];
        for ended in tasks.into_iter().chain(looking_after) {
            if !ended {
                tracing::warn!("a task of the control plane had failed");
            }
        }
    }
}

/// Whether an address is for others than this machine; what is sent there can be read on the way.
pub fn warn_if_in_the_clear(address: SocketAddr) {
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "tokens and consoles travel in the clear: put a proxy with TLS before this address");
    }
}
