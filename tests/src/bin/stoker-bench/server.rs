//! `stoker serve` in this process, over any broker.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, StatusCode};
use serde_json::Value;
use stoker_producer::control_plane::Front;
use stoker_producer::http::Access;
use stoker_producer::reconcile::Patience;
use stoker_producer::serve::{self, Serve};
use stoker_worker::ports::broker::Broker;
use stoker_worker::supervisor::Shutdown;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::{DEADLINE, Fallible};

/// Between two looks at a server that is not ready yet: a small part of what is measured.
const LOOK: Duration = Duration::from_millis(5);
/// As by default.
const STALLED_AFTER: Duration = Duration::from_secs(stoker_producer::work::DEFAULT_STALLED_AFTER_S);

/// A running control plane.
pub struct Server {
    base: String,
    http: Client,
    ask: watch::Sender<Shutdown>,
    running: JoinHandle<Result<(), serve::ServeEnd>>,
}

impl Server {
    /// Starts one with its rows below `data`; it serves once this returns. It closes the broker at its end.
    pub async fn start(broker: Arc<dyn Broker>, data: &Path) -> Fallible<Self> {
        let listen = "127.0.0.1:0".parse()?;
        let serve = Serve {
            broker,
            broker_name: "the run's broker".to_owned(),
            data: data.to_owned(),
            front: Front {
                listen,
                access: Access::Open,
                hooks: None,
                patience: Patience::default(),
                stalled_after: STALLED_AFTER,
            },
        };
        let (ask, asked) = watch::channel(Shutdown::No);
        let (out, address) = oneshot::channel();
        let running = tokio::spawn(async move { serve::run(serve, asked, &mut Greeting::new(out)).await });
        let base = timeout(DEADLINE, address).await??;
        let http = Client::builder().no_proxy().timeout(DEADLINE).build()?;
        Ok(Self { base, http, ask, running })
    }

    /// What it answers to a GET.
    pub async fn get(&self, path: &str) -> Fallible<bytes::Bytes> {
        let answer = self.http.get(format!("{}{path}", self.base)).send().await?.error_for_status()?;
        Ok(answer.bytes().await?)
    }

    /// Enqueues a job; its id.
    pub async fn enqueue(&self, job: &Value) -> Fallible<String> {
        let answer = self.http.post(format!("{}/v1/jobs", self.base)).json(job).send().await?.error_for_status()?;
        let answer: Value = answer.json().await?;
        Ok(answer["jobs"][0]["id"].as_str().ok_or("a job without an id")?.to_owned())
    }

    /// Waits until it says that it has caught up.
    pub async fn ready(&self) -> Fallible<()> {
        let ready = async {
            while self.http.get(format!("{}/ready", self.base)).send().await?.status() != StatusCode::OK {
                tokio::time::sleep(LOOK).await;
            }
            Ok(())
        };
        timeout(DEADLINE, ready).await?
    }

    /// Waits until it knows a job.
    pub async fn has_job(&self, id: &str) -> Fallible<()> {
        let known = async {
            while self.http.get(format!("{}/v1/jobs/{id}", self.base)).send().await?.status() != StatusCode::OK {
                tokio::time::sleep(LOOK).await;
            }
            Ok(())
        };
        timeout(DEADLINE, known).await?
    }

    /// Waits until it has so many jobs.
    pub async fn knows(&self, jobs: u64, within: Duration) -> Fallible<()> {
        let known = async {
            while self.misses(jobs).await? > 0 {
                tokio::time::sleep(LOOK).await;
            }
            Ok(())
        };
        timeout(within, known).await?
    }

    /// Jobs that it does not have of so many.
    pub async fn misses(&self, jobs: u64) -> Fallible<u64> {
        let counts: Value = self.http.get(format!("{}/v1/counts", self.base)).send().await?.json().await?;
        let phases = counts["phases"].as_object().ok_or("no phases in /v1/counts")?;
        let known: u64 = phases.values().filter_map(Value::as_u64).sum();
        Ok(jobs.saturating_sub(known))
    }

    /// Ids of jobs in some phases.
    pub async fn some_ids(&self) -> Fallible<Vec<String>> {
        let mut ids = Vec::new();
        for phase in ["ready", "dead", "queued"] {
            let page: Value =
                self.http.get(format!("{}/v1/jobs?phase={phase}&limit=50", self.base)).send().await?.json().await?;
            let jobs = page["jobs"].as_array().ok_or("no jobs in /v1/jobs")?;
            ids.extend(jobs.iter().filter_map(|job| job["id"].as_str()).map(str::to_owned));
        }
        Ok(ids)
    }

    /// Ends it in order.
    pub async fn end(self) -> Fallible<()> {
        self.ask.send_replace(Shutdown::Drain);
        Ok(timeout(DEADLINE, self.running).await???)
    }
}

/// Takes the address out of what a server says first.
struct Greeting {
    said: String,
    told: Option<oneshot::Sender<String>>,
}

impl Greeting {
    const fn new(told: oneshot::Sender<String>) -> Self {
        Self { said: String::new(), told: Some(told) }
    }
}

impl Write for Greeting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.said.push_str(&String::from_utf8_lossy(bytes));
        if let Some((_, rest)) = self.said.split_once("http://")
            && let Some((address, _)) = rest.split_once('/')
            && let Some(told) = self.told.take()
        {
            let _ = told.send(format!("http://{address}"));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
