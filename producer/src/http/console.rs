//! A VM's console over HTTP: a piece of it by position, the end of it, a range as HTTP has them, or
//! all that comes until the VM is gone.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, stream};
use serde::Deserialize;
use stoker_schemas::{JobId, JobState, VmId};
use stoker_worker::console::MAX_SLICE_BYTES;
use tokio::sync::OwnedSemaphorePermit;

use super::extract::{Params, Path};
use super::{Api, Problem};
use crate::console::{ConsoleChunk, last_words, vm_of};

/// A piece when nobody says how long.
const DEFAULT_PIECE: usize = 64 << 10;
/// The longest piece: what a console's keeper gives at once.
const MAX_PIECE: usize = MAX_SLICE_BYTES;
/// A console is a file, which has no news to wait for: it is looked at again this often.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

const TEXT: &str = "text/plain; charset=utf-8";

/// Query of a console.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsoleQuery {
    /// Of this attempt; without it, of the latest that had a VM.
    attempt: Option<u32>,
    /// Position of the first byte; without it, 0.
    from: Option<u64>,
    /// At most so many bytes; 64 KiB without it, never more than 1 MiB.
    limit: Option<usize>,
    /// Instead of `from`: the last so many bytes, never more than 1 MiB.
    tail: Option<usize>,
    /// Go on, as text without an end, until the VM is gone.
    follow: Option<bool>,
}

impl ConsoleQuery {
    fn check(&self) -> Result<(), Problem> {
        if self.tail.is_some() && (self.from.is_some() || self.limit.is_some()) {
            let detail = "tail: says where the piece begins and how long it is, so from and limit do not go with it";
            return Err(Problem::bad_request(detail, "leave one of them out"));
        }
        if self.follows() && self.limit.is_some() {
            let detail = "limit: a console that is followed has no end";
            return Err(Problem::bad_request(detail, "leave limit or follow out"));
        }
        Ok(())
    }

    fn follows(&self) -> bool {
        self.follow.unwrap_or(false)
    }

    /// Says itself which part is wanted, so that a `Range` beside it is not what was meant.
    fn names_a_part(&self) -> bool {
        self.follows() || self.from.is_some() || self.limit.is_some() || self.tail.is_some()
    }
}

/// `GET /v1/jobs/{id}/console`: bytes as the guest wrote them; `stoker-next` says where to read on.
pub async fn console(
    State(api): State<Api>,
    Path(id): Path<String>,
    Params(query): Params<ConsoleQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    query.check()?;
    let state = api.state(&id)?;
    let vm = vm_of(&state, query.attempt)
        .ok_or_else(|| Problem::not_found("the job has no such attempt with a VM", "stoker show lists the attempts"))?;
    if let Some(range) = Range::of(&headers).filter(|_| !query.names_a_part()) {
        return partial(&api, vm, range).await;
    }
    let limit = query.limit.unwrap_or(DEFAULT_PIECE).clamp(1, MAX_PIECE);
    if query.follows() {
        return follow(&api, state.id, vm, &query).await;
    }
    let chunk = match query.tail {
        Some(max) => api.consoles.tail(vm, max.min(MAX_PIECE)).await,
        None => api.consoles.read(vm, query.from.unwrap_or(0), limit).await,
    };
    Ok(piece(chunk.ok_or_else(not_kept)?))
}

/// The end of a job's latest console as text, for pages and reports.
pub async fn console_tail(api: &Api, state: &JobState) -> Option<String> {
    last_words(api.consoles.as_ref(), state, DEFAULT_PIECE).await
}

fn not_kept() -> Problem {
    Problem::not_found("no console of this attempt is kept here", "it is kept on the host that ran it")
}

fn piece(chunk: ConsoleChunk) -> Response {
    let headers = [
        (header::CONTENT_TYPE.as_str(), TEXT.to_owned()),
        (header::ACCEPT_RANGES.as_str(), "bytes".to_owned()),
        ("stoker-from", chunk.from.to_string()),
        ("stoker-next", chunk.next.to_string()),
    ];
    (headers, chunk.bytes).into_response()
}

/// One range of bytes, as RFC 9110 writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Range {
    /// From a position to another one, inclusive, or to the end.
    From(u64, Option<u64>),
    /// The last so many.
    Last(u64),
}

impl Range {
    /// What a request asks for. Several ranges, other units and what cannot be read are ignored, as
    /// the standard has it; so is a condition, because nothing here has a validator to compare.
    fn of(headers: &HeaderMap) -> Option<Self> {
        if headers.contains_key(header::IF_RANGE) {
            return None;
        }
        let (first, last) = headers.get(header::RANGE)?.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
        let number = |text: &str| text.trim().parse::<u64>().ok();
        match (first.trim(), last.trim()) {
            ("", last) => Some(Self::Last(number(last)?)),
            (first, "") => Some(Self::From(number(first)?, None)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::From(first, Some(last)))
            }
        }
    }
}

/// Answers a range: as much of it as one piece may have, which the standard allows.
async fn partial(api: &Api, vm: VmId, range: Range) -> Result<Response, Problem> {
    let length = api.consoles.tail(vm, 0).await.ok_or_else(not_kept)?.next;
    let (from, max) = match range {
        Range::From(first, last) => (first, last.map_or(u64::MAX, |last| (last - first).saturating_add(1))),
        Range::Last(n) => (length.saturating_sub(n), n),
    };
    if from >= length || max == 0 {
        let detail = format!("the console has {length} bytes (so far)");
        let problem = Problem::no_such_range(detail).into_response();
        return Ok(([(header::CONTENT_RANGE, format!("bytes */{length}"))], problem).into_response());
    }
    let max = usize::try_from(max).unwrap_or(MAX_PIECE).min(MAX_PIECE);
    let chunk = api.consoles.read(vm, from, max).await.ok_or_else(not_kept)?;
    let range = format!("bytes {}-{}/{}", chunk.from, chunk.next.saturating_sub(1), length.max(chunk.next));
    Ok((StatusCode::PARTIAL_CONTENT, [(header::CONTENT_RANGE, range)], piece(chunk)).into_response())
}

/// Streams a console as it is written.
async fn follow(api: &Api, job: JobId, vm: VmId, query: &ConsoleQuery) -> Result<Response, Problem> {
    let permit = api.take_stream()?;
    let from = match query.tail {
        Some(max) => api.consoles.tail(vm, max.min(MAX_PIECE)).await.ok_or_else(not_kept)?.from,
        None => query.from.unwrap_or(0),
    };
    let first = api.consoles.read(vm, from, MAX_PIECE).await.ok_or_else(not_kept)?;
    let follower = Follower { api: api.clone(), job, vm, next: from, first: Some(first), gone: false, _permit: permit };
    Ok(([(header::CONTENT_TYPE, TEXT)], Body::from_stream(follower.stream())).into_response())
}

struct Follower {
    api: Api,
    job: JobId,
    vm: VmId,
    next: u64,
    /// Read before the answer began, so that a console which is not here could be told.
    first: Option<ConsoleChunk>,
    gone: bool,
    /// Held as long as the stream lives.
    _permit: OwnedSemaphorePermit,
}

impl Follower {
    fn stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> {
        stream::unfold(self, |mut follower| async move {
            let bytes = follower.more().await?;
            Some((Ok(bytes), follower))
        })
    }

    /// The next bytes. Nothing is read ahead of a client: a slow one only holds its own place.
    async fn more(&mut self) -> Option<Bytes> {
        loop {
            let chunk = match self.first.take() {
                Some(first) => first,
                None => self.api.consoles.read(self.vm, self.next, MAX_PIECE).await?,
            };
            if !chunk.bytes.is_empty() {
                self.next = chunk.next;
                return Some(chunk.bytes);
            }
            if self.gone {
                return None;
            }
            // Once it is gone it writes no more: one look after that sees the last of it.
            self.gone = self.is_gone();
            if self.gone {
                continue;
            }
            tokio::select! {
                () = self.api.stopping.cancelled() => return None,
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }

    fn is_gone(&self) -> bool {
        let state = self.api.model.job(self.job);
        let state = state.inspect_err(|cause| tracing::error!(%cause, "a console that is followed ends"));
        let Ok(Some(state)) = state else { return true };
        let mut attempts = state.tries().map(|(_, attempt)| attempt);
        attempts.any(|a| a.gone.is_some() && a.started.as_ref().is_some_and(|started| started.value.vm == self.vm))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_has_them() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, text.parse().unwrap());
            Range::of(&headers)
        };
        assert_eq!(of("bytes=0-9"), Some(Range::From(0, Some(9))));
        assert_eq!(of("bytes=7-"), Some(Range::From(7, None)));
        assert_eq!(of("bytes=-5"), Some(Range::Last(5)));
        assert_eq!(of("bytes=0-18446744073709551615"), Some(Range::From(0, Some(u64::MAX))));
        for ignored in ["bytes=9-0", "bytes=-", "bytes=0-1,3-4", "lines=0-1", "bytes=x-", "bytes=1", "bytes=-1-2"] {
            assert_eq!(of(ignored), None, "{ignored}");
        }
    }
}
