//! Tells an open page that there is something new: at most twice a second and without the news
//! itself, so that a dashboard costs the same whether one job boots or a thousand.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event as Sse, KeepAlive};
use axum::response::{IntoResponse, Response, Sse as SseResponse};
use futures_util::{Stream, stream};
use serde::Deserialize;
use stoker_schemas::JobId;
use tokio::sync::{OwnedSemaphorePermit, broadcast};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::http::{Api, Params, Problem};
use crate::readmodel::Change;

/// Least time between two ticks.
const BETWEEN: Duration = Duration::from_millis(500);
/// A sign of life on quiet streams.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Query of the ticks.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LiveQuery {
    /// Only news of this job.
    job: Option<JobId>,
}

/// `GET /live`
pub async fn ticks(State(api): State<Api>, Params(query): Params<LiveQuery>) -> Result<Response, Problem> {
    let ticker = Ticker {
        news: api.model().changes(),
        stopping: api.stopping().clone(),
        job: query.job,
        next: Instant::now(),
        _permit: api.take_stream()?,
    };
    Ok(SseResponse::new(ticker.stream()).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

struct Ticker {
    news: broadcast::Receiver<Change>,
    stopping: CancellationToken,
    job: Option<JobId>,
    next: Instant,
    /// Held as long as the stream lives.
    _permit: OwnedSemaphorePermit,
}

impl Ticker {
    fn stream(self) -> impl Stream<Item = Result<Sse, Infallible>> {
        stream::unfold(self, |mut ticker| async move {
            let stopping = ticker.stopping.clone();
            let seq = tokio::select! {
                () = stopping.cancelled() => return None,
                seq = ticker.tick() => seq?,
            };
            Some((Ok(Sse::default().data(seq.to_string())), ticker))
        })
    }

    /// Waits for news, then until a tick may be sent, and takes all that came meanwhile with it.
    async fn tick(&mut self) -> Option<u64> {
        let mut seq = loop {
            match self.news.recv().await {
                Ok(change) if self.concerns(&change) => break change.seq,
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(_)) => break 0,
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        };
        sleep_until(self.next).await;
        self.next = Instant::now() + BETWEEN;
        loop {
            match self.news.try_recv() {
                Ok(change) => seq = seq.max(change.seq),
                Err(broadcast::error::TryRecvError::Lagged(_)) => {}
                Err(_) => return Some(seq),
            }
        }
    }

    fn concerns(&self, change: &Change) -> bool {
        self.job.is_none() || change.job == self.job
    }
}
