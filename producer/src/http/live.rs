//! Events as they come: server-sent events for watching, NDJSON pages for exporting. Both read the
//! rows by number; what is broadcast only wakes them, so a slow reader misses nothing.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::sse::{Event as Sse, KeepAlive};
use axum::response::{IntoResponse, Response, Sse as SseResponse};
use futures_util::{Stream, stream};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, broadcast};
use tokio_util::sync::CancellationToken;

use super::event_filter::{EventFilter, Wanted, kinds_schema};
use super::extract::Params;
use super::{Api, Problem};
use crate::readmodel::{Change, ReadModel, ReadModelError, Stored};

/// Events read at once for a live stream.
const READ_AHEAD: usize = 256;
/// Events of one page of the log.
const MAX_LOG_PAGE: usize = 1_000;
/// A sign of life on quiet streams, so that both ends notice a cut connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Query of the live stream.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    /// Number to begin with; without it, only what is new (or, for one job, all of it).
    from: Option<u64>,
    /// Only about this job.
    job: Option<String>,
    /// Only of these kinds, with commas between: `attempt.ready,attempt.failed`.
    #[schemars(schema_with = "kinds_schema")]
    kind: Option<String>,
    /// Only told by this host, or about it.
    host: Option<String>,
    /// Only about jobs with this label: `key` or `key=value`.
    label: Option<String>,
    /// Only about jobs of this pool.
    pool: Option<String>,
}

/// `GET /v1/events`
pub async fn events(
    State(api): State<Api>,
    Params(query): Params<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let permit = api.take_stream()?;
    let wanted = Wanted {
        job: query.job.as_deref(),
        kind: query.kind.as_deref(),
        host: query.host.as_deref(),
        label: query.label.as_deref(),
        pool: query.pool.as_deref(),
    };
    let filter = EventFilter::of(&api, &wanted)?;
    let resumed = headers.get("last-event-id").and_then(|v| v.to_str().ok()?.parse::<u64>().ok()).map(|n| n + 1);
    let follower = Follower::new(&api, resumed.or(query.from), filter, permit)?;
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Ok(SseResponse::new(follower.stream()).keep_alive(keep_alive).into_response())
}

struct Follower {
    model: ReadModel,
    news: broadcast::Receiver<Change>,
    stopping: CancellationToken,
    filter: EventFilter,
    ready: VecDeque<Stored>,
    next: u64,
    /// Held as long as the stream lives.
    _permit: OwnedSemaphorePermit,
}

impl Follower {
    fn new(
        api: &Api,
        from: Option<u64>,
        filter: EventFilter,
        permit: OwnedSemaphorePermit,
    ) -> Result<Self, ReadModelError> {
        // First listen, then look: nothing comes between.
        let news = api.model.changes();
        let head = api.model.next_seq();
        let mut ready = VecDeque::new();
        let mut next = from.unwrap_or(head);
        if let Some(id) = filter.job {
            let from = from.unwrap_or(0);
            for event in api.model.stored_events(id)? {
                if (from..head).contains(&event.seq) && filter.holds(&api.model, &event)? {
                    ready.push_back(event);
                }
            }
            next = head;
        }
        let (model, stopping) = (api.model.clone(), api.stopping.clone());
        Ok(Self { model, news, stopping, filter, ready, next, _permit: permit })
    }

    fn stream(self) -> impl Stream<Item = Result<Sse, Infallible>> {
        stream::unfold(self, |mut follower| async move {
            let stored = follower.next().await?;
            // JSON has no raw line breaks: the event is one line of data.
            let text = String::from_utf8_lossy(&stored.json).into_owned();
            Some((Ok(Sse::default().id(stored.seq.to_string()).data(text)), follower))
        })
    }

    /// The next event; `None` ends the stream, and the client comes back with the last number.
    async fn next(&mut self) -> Option<Stored> {
        loop {
            if let Some(stored) = self.ready.pop_front() {
                return Some(stored);
            }
            let read = self.read_on().inspect_err(|cause| tracing::error!(%cause, "live stream ends")).ok()?;
            if read {
                // Of a long past, little may match: others get their turn, and pings theirs.
                tokio::task::yield_now().await;
                if self.stopping.is_cancelled() {
                    return None;
                }
                continue;
            }
            tokio::select! {
                () = self.stopping.cancelled() => return None,
                news = self.news.recv() => if matches!(news, Err(broadcast::error::RecvError::Closed)) {
                    return None;
                },
            }
        }
    }

    /// Takes the next piece of what has arrived; `false` when there is none. As much as a client
    /// that does not read can make us hold.
    fn read_on(&mut self) -> Result<bool, ReadModelError> {
        let read = self.model.arrived(self.next, READ_AHEAD)?;
        let Some(last) = read.last() else { return Ok(false) };
        self.next = last.seq + 1;
        for event in read {
            if self.filter.holds(&self.model, &event)? {
                self.ready.push_back(event);
            }
        }
        Ok(true)
    }
}

/// Query of the log.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogQuery {
    /// Number to begin with; without it, 0.
    #[serde(default)]
    from: u64,
    /// Instead of `from`: this many from the end.
    last: Option<u64>,
    /// At most so many; 1000 without it, and never more.
    limit: Option<usize>,
    /// Only about this job.
    job: Option<String>,
    /// Only of these kinds, with commas between: `attempt.ready,attempt.failed`.
    #[schemars(schema_with = "kinds_schema")]
    kind: Option<String>,
    /// Only told by this host, or about it.
    host: Option<String>,
    /// Only about jobs with this label: `key` or `key=value`.
    label: Option<String>,
    /// Only about jobs of this pool.
    pool: Option<String>,
}

/// `GET /v1/log`: CloudEvents, one a line; `stoker-next` says where to read on. A filter leaves events
/// of the page out; it does not make the page look further.
pub async fn log(State(api): State<Api>, Params(query): Params<LogQuery>) -> Result<Response, Problem> {
    let wanted = Wanted {
        job: query.job.as_deref(),
        kind: query.kind.as_deref(),
        host: query.host.as_deref(),
        label: query.label.as_deref(),
        pool: query.pool.as_deref(),
    };
    let filter = EventFilter::of(&api, &wanted)?;
    let from = query.last.map_or(query.from, |n| api.model.next_seq().saturating_sub(n));
    let events = api.model.arrived(from, query.limit.unwrap_or(MAX_LOG_PAGE).clamp(1, MAX_LOG_PAGE))?;
    let next = events.last().map_or(from, |e| e.seq + 1);
    let mut body = Vec::new();
    for event in events {
        if filter.holds(&api.model, &event)? {
            body.extend_from_slice(&event.json);
            body.push(b'\n');
        }
    }
    let headers =
        [(header::CONTENT_TYPE.as_str(), "application/x-ndjson".to_owned()), ("stoker-next", next.to_string())];
    Ok((headers, body).into_response())
}
