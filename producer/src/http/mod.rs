//! The HTTP API, and the dashboard over the same rows. Without tokens on loopback only: whoever reaches it
//! may do everything, so it is not offered to a network, nor to web pages of other origins ([`access`]).

#![expect(clippy::result_large_err, reason = "a problem ends a request; it is not on a hot path")]

pub mod access;
pub(crate) mod bulk;
mod console;
pub(crate) mod control;
mod dead;
mod deliveries;
mod event_filter;
mod export;
mod extract;
pub(crate) mod guard;
mod jobs;
pub(crate) mod letters;
pub(crate) mod list;
mod live;
pub(crate) mod many;
mod metrics;
pub mod openapi;
mod ops;
pub(crate) mod pools;
mod problem;
mod snooze;
mod stats;
mod wait;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::serve::ListenerExt;
use stoker_schemas::{JobId, JobState, Time};
use stoker_worker::ports::broker::BrokerStatus;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};
pub use tokio_util::sync::CancellationToken;

pub use access::Access;
pub use bulk::Skipped;
pub(crate) use console::console_tail;
pub use control::{ControlAnswer, ControlRequest};
pub use dead::{DeadPage, RedriveAnswer, RedriveRequest};
pub(crate) use extract::{Params, asker};
pub use jobs::{Submitted, SubmittedJob};
pub use letters::LetterAnswer;
pub(crate) use list::ListQuery;
pub use many::{BulkCount, BulkRequest, BulkStarted, BulkView};
pub use ops::{BrokerHealth, Health, HistoryHealth, WorkHealth};
pub use pools::{LimitRequest, PoolAnswer};
pub use problem::Problem;
pub use snooze::SnoozeRequest;

use crate::console::ConsoleSource;
use crate::dashboard;
use crate::readmodel::{Found, ReadModel};
use crate::submit::Submitter;
use crate::webhooks::Webhooks;
use crate::work::Work;

/// Largest request body: a thousand jobs of some KiB.
pub const MAX_BODY_BYTES: usize = 8 << 20;
/// Largest form of a page: a spec, or as many ticked rows as a page has.
pub const MAX_FORM_BYTES: usize = 1 << 20;
/// Live streams at once; each holds a connection and a place in a buffer.
const MAX_STREAMS: usize = 256;
/// How long a client may take nothing of what is sent to it. Whoever is cut comes back to where he
/// was (`Last-Event-ID`, `from`); whoever is not holds a place, and a stopping server, for ever.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an answer waits for the rows to show what it did. The work is safe either way.
const SEEN_WITHIN: Duration = Duration::from_secs(2);

/// What the API serves from.
#[derive(Clone)]
pub struct Api {
    model: ReadModel,
    submitter: Submitter,
    consoles: Arc<dyn ConsoleSource>,
    streams: Arc<Semaphore>,
    patience: Duration,
    access: Access,
    webhooks: Option<Webhooks>,
    work: watch::Receiver<Work>,
    many: many::Many,
    /// Held while a pool's setting is read and told anew.
    configuring: Arc<Mutex<()>>,
    /// Live streams end when this does; else they would hold a stopping server open.
    stopping: CancellationToken,
}

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be had.
    #[error("cannot listen on {address}: {cause}; is another stoker running, or choose another port")]
    Bind {
        /// Which address.
        address: SocketAddr,
        /// The system's words.
        cause: std::io::Error,
    },
    /// The address is for others than this machine, and nothing says who may come in.
    #[error(
        "{0} is not a loopback address, and without tokens whoever reaches it may do everything; make one with \
         `stoker token new --name me --role admin >> tokens.toml`, then add --tokens tokens.toml"
    )]
    NotLoopback(SocketAddr),
    /// Serving ended.
    #[error("serving ended: {0}")]
    Serve(std::io::Error),
}

impl Api {
    /// An API over these rows, publishing through this submitter.
    pub fn new(model: ReadModel, submitter: Submitter, consoles: Arc<dyn ConsoleSource>) -> Self {
        Self {
            model,
            submitter,
            consoles,
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            patience: PATIENCE,
            access: Access::Open,
            webhooks: None,
            // Unknown until a watcher runs.
            work: watch::channel(Work::default()).1,
            many: many::Many::default(),
            configuring: Arc::default(),
            stopping: CancellationToken::new(),
        }
    }

    /// The same, for those who may come in.
    pub fn with_access(self, access: Access) -> Self {
        Self { access, ..self }
    }

    /// The same, for so many live streams and with so much patience with those who do not read.
    pub fn with_streams(self, streams: usize, patience: Duration) -> Self {
        Self { streams: Arc::new(Semaphore::new(streams)), patience, ..self }
    }

    /// The same, with webhooks in and callbacks out.
    pub fn with_webhooks(self, webhooks: Webhooks) -> Self {
        Self { webhooks: Some(webhooks), ..self }
    }

    /// The same, saying how the work is.
    pub fn with_work(self, work: watch::Receiver<Work>) -> Self {
        Self { work, ..self }
    }

    /// How the work is.
    pub(crate) fn work(&self) -> Work {
        self.work.borrow().clone()
    }

    /// Webhooks, if there are settings for them.
    pub(crate) fn webhooks(&self) -> Option<&Webhooks> {
        self.webhooks.as_ref()
    }

    /// Publishes for us.
    pub(crate) fn submitter(&self) -> &Submitter {
        &self.submitter
    }

    /// Who may come in.
    pub(crate) fn access(&self) -> &Access {
        &self.access
    }

    /// The rows.
    pub(crate) fn model(&self) -> &ReadModel {
        &self.model
    }

    /// The clock.
    pub(crate) fn now(&self) -> Time {
        self.submitter.now()
    }

    /// Ends when the server does.
    pub(crate) fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// A place among the live streams.
    pub(crate) fn take_stream(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.streams.clone().try_acquire_owned().map_err(|_| Problem::too_many_streams())
    }

    /// Why the broker takes nothing now, if it does not.
    pub(crate) fn broker_trouble(&self) -> Option<String> {
        match &*self.submitter.broker().status().borrow() {
            BrokerStatus::Connected => None,
            BrokerStatus::Blocked(why) | BrokerStatus::Down(why) => Some(why.clone()),
        }
    }

    /// The job that a path names, by its id or the beginning of it.
    pub(crate) fn resolve(&self, text: &str) -> Result<JobId, Problem> {
        match self.model.find(text)? {
            Found::One(id) => Ok(id),
            Found::Nothing => Err(Problem::no_such_job(text)),
            Found::Several(ids) => Err(Problem::ambiguous(text, &ids)),
        }
    }

    /// Its state, too.
    pub(crate) fn state(&self, text: &str) -> Result<JobState, Problem> {
        let id = self.resolve(text)?;
        self.model.job(id)?.ok_or_else(|| Problem::no_such_job(text))
    }
}

/// All routes.
pub fn router(api: Api) -> Router {
    Router::new()
        .merge(dashboard::routes())
        .merge(openapi::routes())
        .fallback(dashboard::missing)
        .method_not_allowed_fallback(guard::wrong_method)
        .layer(from_fn_with_state(api.clone(), access::admit))
        // Past all that: a delivery comes from elsewhere, under whatever name it was sent to, and
        // proves itself with its signature.
        .merge(openapi::free_routes())
        .with_state(api)
}

/// Takes an address: this machine's own, or any when only those with tokens may come in.
pub async fn bind(address: SocketAddr, access: &Access) -> Result<TcpListener, ServeError> {
    if !address.ip().is_loopback() && !access.is_closed() {
        return Err(ServeError::NotLoopback(address));
    }
    TcpListener::bind(address).await.map_err(|cause| ServeError::Bind { address, cause })
}

/// Serves until told to stop.
pub async fn serve(listener: TcpListener, api: Api, stop: CancellationToken) -> Result<(), ServeError> {
    let stopping = api.stopping.clone();
    let stopped = async move {
        stop.cancelled().await;
        stopping.cancel();
    };
    let patience = u32::try_from(api.patience.as_millis()).unwrap_or(u32::MAX);
    let listener = listener.tap_io(move |connection| {
        // Bytes that the other end leaves unread count, too; without it, TCP waits without end.
        if let Err(cause) = rustix::net::sockopt::set_tcp_user_timeout(&*connection, patience) {
            tracing::warn!(%cause, "a connection has no limit of patience");
        }
    });
    let service = router(api).into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).with_graceful_shutdown(stopped).await.map_err(ServeError::Serve)
}
