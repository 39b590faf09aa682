//! What the front's tests share: a broker in memory, a server in this process, and stories (the
//! events of a job's life at fixed times).

// Each test binary uses its own part of this.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::panic)]

pub mod broker;
pub mod client;
pub mod story;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use stoker_producer::clock;
use stoker_producer::console::{ConsoleChunk, ConsoleSource};
use stoker_producer::hooks::HooksConfig;
use stoker_producer::http::{self, Access, Api, CancellationToken};
use stoker_producer::readmodel::ReadModel;
use stoker_producer::submit::{Submitter, publish_event};
use stoker_producer::webhooks::Webhooks;
use stoker_producer::work::{self, Work};
use stoker_schemas::{Event, VmId};

use tokio::sync::watch;

pub use broker::FakeBroker;
#[allow(unused_imports)]
pub use story::Story;

/// Longest wait for something that must happen.
pub const SOON: Duration = Duration::from_secs(10);

/// Longer than a test takes.
const STALLED_AFTER: Duration = Duration::from_secs(3_600);

/// Consoles in memory.
#[derive(Default)]
pub struct Consoles(Mutex<HashMap<VmId, Vec<u8>>>);

impl Consoles {
    pub fn write(&self, vm: VmId, bytes: &[u8]) {
        self.0.lock().unwrap().entry(vm).or_default().extend_from_slice(bytes);
    }
}

#[async_trait]
impl ConsoleSource for Consoles {
    async fn read(&self, vm: VmId, from: u64, max: usize) -> Option<ConsoleChunk> {
        let consoles = self.0.lock().unwrap();
        let all = consoles.get(&vm)?;
        let start = usize::try_from(from).unwrap().min(all.len());
        let bytes = all[start..all.len().min(start + max)].to_vec();
        let next = (start + bytes.len()) as u64;
        Some(ConsoleChunk { from: start as u64, bytes: bytes.into(), next })
    }

    async fn tail(&self, vm: VmId, max: usize) -> Option<ConsoleChunk> {
        let length = self.0.lock().unwrap().get(&vm)?.len();
        self.read(vm, length.saturating_sub(max) as u64, max).await
    }
}

/// The whole front in this process, on a port of its own.
pub struct Server {
    pub address: SocketAddr,
    pub broker: Arc<FakeBroker>,
    pub model: ReadModel,
    pub consoles: Arc<Consoles>,
    pub webhooks: Option<Webhooks>,
    pub work: watch::Receiver<Work>,
    /// The router as it prints itself: it lists its paths in no other way.
    pub routes: String,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Server {
    pub async fn start() -> Self {
        Self::start_with(Access::Open).await
    }

    pub async fn start_with(access: Access) -> Self {
        Self::start_all(access, None).await
    }

    pub async fn start_with_hooks(hooks: HooksConfig) -> Self {
        Self::start_all(Access::Open, Some(hooks)).await
    }

    /// With few live streams and little patience with those who do not read.
    pub async fn start_narrow(streams: usize, patience: Duration) -> Self {
        Self::start_as(Access::Open, None, STALLED_AFTER, |api| api.with_streams(streams, patience)).await
    }

    /// Where the work counts as stalled so soon.
    pub async fn start_watching(stalled_after: Duration) -> Self {
        Self::start_as(Access::Open, None, stalled_after, |api| api).await
    }

    async fn start_all(access: Access, hooks: Option<HooksConfig>) -> Self {
        Self::start_as(access, hooks, STALLED_AFTER, |api| api).await
    }

    async fn start_as(
        access: Access,
        hooks: Option<HooksConfig>,
        stalled_after: Duration,
        change: impl FnOnce(Api) -> Api,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let broker = Arc::new(FakeBroker::default());
        let model = ReadModel::open(dir.path(), clock::system()).unwrap();
        let consoles = Arc::new(Consoles::default());
        let stop = CancellationToken::new();
        let submitter = Submitter::new(broker.clone(), "test", clock::system());
        let (told, work) = watch::channel(Work::default());
        let listener = http::bind("127.0.0.1:0".parse().unwrap(), &access).await.unwrap();
        let mut api = change(
            Api::new(model.clone(), submitter.clone(), consoles.clone()).with_access(access).with_work(work.clone()),
        );
        let webhooks = hooks.map(|hooks| Webhooks::open(&dir.path().join("webhooks"), hooks).unwrap());
        if let Some(webhooks) = &webhooks {
            api = api.with_webhooks(webhooks.clone());
        }
        let address = listener.local_addr().unwrap();
        let routes = format!("{:?}", http::router(api.clone()));
        let (follower, source, until) = (model.clone(), broker.clone(), stop.clone());
        tokio::spawn(async move { follower.follow(source, until).await });
        tokio::spawn(http::serve(listener, api, stop.clone()));
        tokio::spawn(work::run(model.clone(), submitter, stalled_after, told, stop.clone()));
        Self { address, broker, model, consoles, webhooks, work, routes, stop, _dir: dir }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Publishes events as hosts would, and waits until they are known.
    pub async fn tell(&self, events: &[Event]) {
        for event in events {
            publish_event(self.broker.as_ref(), event).await.unwrap();
        }
        for event in events {
            assert!(self.model.wait_for_event(event, SOON).await, "{} did not arrive", event.id());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
