//! Wishes for many jobs that are being carried out, and those that were lately. They end with the
//! server: what was done is done, and the wish can be made again for the rest.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use stoker_schemas::JobId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use crate::http::bulk::{AT_ONCE, Action, Skipped, one};
use crate::http::{Api, Problem};
use crate::readmodel::{Filter, MAX_PAGE};
use crate::submit::Asker;

/// Kept, so that who asked late sees how it ended; the oldest that ended goes first.
const KEPT: usize = 100;
/// Carried out at once: each has as many publishes under way as one request of a bulk.
const RUNNING: usize = 4;
/// Skipped jobs named; of all of them there is the number.
const NAMED: usize = 100;

/// Where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "BulkState")]
pub enum Stand {
    /// Being carried out.
    Running,
    /// Every job that matched was looked at.
    Done,
    /// Ended before that; `error` says why.
    Stopped,
}

/// One wish for many jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct BulkView {
    /// Its id.
    pub id: Uuid,
    /// Where it stands.
    pub state: Stand,
    /// Jobs that matched when it began.
    pub total: u64,
    /// Jobs that were done.
    pub done: u64,
    /// Jobs that were left as they are.
    pub left: u64,
    /// The first hundred of these, and why.
    pub skipped: Vec<Skipped>,
    /// Why it stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// All of them.
#[derive(Debug, Clone)]
pub struct Running {
    known: Arc<Mutex<VecDeque<BulkView>>>,
    places: Arc<Semaphore>,
}

impl Default for Running {
    fn default() -> Self {
        Self { known: Arc::default(), places: Arc::new(Semaphore::new(RUNNING)) }
    }
}

/// What is carried out.
pub struct Order {
    /// What is done to each.
    pub action: Action,
    /// To which.
    pub filter: Filter,
    /// How many they are.
    pub total: u64,
    /// Why.
    pub reason: String,
    /// Who asks.
    pub asker: Asker,
}

impl Running {
    fn known(&self) -> MutexGuard<'_, VecDeque<BulkView>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How one of them stands.
    pub fn view(&self, id: Uuid) -> Option<BulkView> {
        self.known().iter().find(|view| view.id == id).cloned()
    }

    /// A place to carry one out.
    pub fn place(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let busy = |_| Problem::busy(format!("{RUNNING} wishes for many jobs are being carried out already"));
        self.places.clone().try_acquire_owned().map_err(busy)
    }

    /// Begins to carry one out.
    pub fn start(&self, api: Api, order: Order, place: OwnedSemaphorePermit) -> Uuid {
        let id = Uuid::now_v7();
        let (total, skipped) = (order.total, Vec::new());
        let view = BulkView { id, state: Stand::Running, total, done: 0, left: 0, skipped, error: None };
        {
            let mut known = self.known();
            if known.len() >= KEPT
                && let Some(oldest) = known.iter().position(|view| view.state != Stand::Running)
            {
                known.remove(oldest);
            }
            known.push_back(view);
        }
        let running = self.clone();
        tokio::spawn(async move {
            let stopping = api.stopping().clone();
            let ended = tokio::select! {
                ended = running.carry_out(&api, id, &order) => ended,
                () = stopping.cancelled() => Err("the server ended; make the wish again for the rest".to_owned()),
            };
            running.change(id, |view| match ended {
                Ok(()) => view.state = Stand::Done,
                Err(why) => (view.state, view.error) = (Stand::Stopped, Some(why)),
            });
            drop(place);
        });
        id
    }

    fn change(&self, id: Uuid, change: impl FnOnce(&mut BulkView)) {
        if let Some(view) = self.known().iter_mut().find(|view| view.id == id) {
            change(view);
        }
    }

    /// Page by page from the newest: a job that moves meanwhile does not move the place to read on.
    async fn carry_out(&self, api: &Api, id: Uuid, order: &Order) -> Result<(), String> {
        let mut cursor = None;
        loop {
            let page = api.model.list(&order.filter, cursor.as_deref(), MAX_PAGE).map_err(|e| e.to_string())?;
            let ids: Vec<_> = page.jobs.iter().map(|job| job.id).collect();
            self.page(api, id, order, ids).await?;
            cursor = page.next;
            if cursor.is_none() {
                return Ok(());
            }
            // A page with nothing in it awaits nothing: others have their turn.
            tokio::task::yield_now().await;
        }
    }

    async fn page(&self, api: &Api, id: Uuid, order: &Order, jobs: Vec<JobId>) -> Result<(), String> {
        let Order { action, reason, asker, .. } = order;
        let act = async |job| (job, one(api, job, *action, reason, asker).await);
        let mut results = stream::iter(jobs).map(act).buffer_unordered(AT_ONCE);
        while let Some((job, result)) = results.next().await {
            match result {
                Ok(_) => self.change(id, |view| view.done += 1),
                // The broker went away: the others would only wait for it, too.
                Err(problem) if problem.retry_after_s.is_some() => return Err(problem.detail),
                Err(problem) => self.change(id, |view| {
                    view.left += 1;
                    if view.skipped.len() < NAMED {
                        view.skipped.push(Skipped { id: job.to_string(), reason: problem.detail });
                    }
                }),
            }
        }
        Ok(())
    }
}
