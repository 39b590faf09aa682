//! From events to callbacks to be made.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;
use stoker_schemas::event::TYPE_PREFIX;
use stoker_schemas::{Event, EventData, JobSpec, Time};

use super::payload::{Payload, is_notable};
use super::store::{Call, CallState, CallStore, LastTry, MAX_WAITING};
use super::{CallbackError, Callbacks};
use crate::readmodel::{ReadModel, Stored};
use crate::webhooks::StoreError;

/// Events looked at in one write.
const BATCH: usize = 512;
/// Older events are not news: they come when a history is read again from its beginning.
const MAX_AGE: Duration = Duration::from_secs(24 * 3_600);

/// Only what tells the kind; most events are of no interest here.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
}

impl Callbacks {
    /// Where to read on: at the end when this is new, at the beginning when the rows were refilled.
    pub(super) fn align(&self, model: &ReadModel) -> Result<(), StoreError> {
        let end = model.next_seq();
        match self.store.cursor() {
            None => self.store.add(Vec::new(), end),
            Some(cursor) if cursor > end => self.store.add(Vec::new(), 0),
            Some(_) => Ok(()),
        }
    }
}

/// Makes rows of the events that nobody has looked at yet. How many.
pub(super) fn collect(store: &CallStore, model: &ReadModel, now: Time) -> Result<usize, CallbackError> {
    let mut made = 0;
    loop {
        let cursor = store.cursor().unwrap_or(0);
        let events = model.arrived(cursor, BATCH)?;
        let Some(last) = events.last() else { return Ok(made) };
        let mut batch = Batch { store, model, now, calls: Vec::new(), ids: BTreeSet::new() };
        for stored in &events {
            batch.look_at(stored)?;
        }
        made += batch.calls.len();
        store.add(batch.calls, last.seq + 1)?;
    }
}

struct Batch<'a> {
    store: &'a CallStore,
    model: &'a ReadModel,
    now: Time,
    calls: Vec<Call>,
    ids: BTreeSet<String>,
}

impl Batch<'_> {
    fn look_at(&mut self, stored: &Stored) -> Result<(), CallbackError> {
        let kind = kind_of(stored)?;
        if is_notable(&kind) {
            let Some(job) = stored.job else { return Ok(()) };
            // Without its spec yet: its later arrival makes up for it, below.
            let Some(state) = self.model.job(job)? else { return Ok(()) };
            let url = state.spec().and_then(|spec| spec.callback_url.clone());
            return url.map_or(Ok(()), |url| self.add(&stored.event()?, &url));
        }
        if !matches!(kind.as_str(), "job.enqueued" | "attempt.started") {
            return Ok(());
        }
        // Events come in any order: what came before its job's spec is told now.
        let event = stored.event()?;
        let (Some(url), Some(job)) = (spec_of(&event).and_then(|spec| spec.callback_url.clone()), stored.job) else {
            return Ok(());
        };
        for earlier in self.model.stored_events(job)?.iter().filter(|earlier| earlier.seq < stored.seq) {
            if is_notable(&kind_of(earlier)?) {
                self.add(&earlier.event()?, &url)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, event: &Event, url: &str) -> Result<(), CallbackError> {
        if self.now.since(event.time) > MAX_AGE {
            return Ok(());
        }
        let Some(payload) = Payload::of(event) else { return Ok(()) };
        let id = payload.message_id();
        if self.ids.contains(&id) || self.store.has(&id)? {
            return Ok(());
        }
        let body = serde_json::to_string(&payload).map_err(StoreError::damaged)?;
        let job = payload.data.id;
        let is_disabled =
            self.store.of_job(job)?.iter().any(|call| call.state == CallState::Disabled && call.url == url);
        let is_full = self.store.waiting() + self.calls.len() as u64 >= MAX_WAITING;
        let (state, why) = match (is_disabled, is_full) {
            (true, _) => (CallState::Disabled, Some("the receiver has answered 410: it wants no more of this job")),
            (_, true) => (CallState::GivenUp, Some("as many callbacks wait as are kept")),
            _ => (CallState::Waiting, None),
        };
        let last = why.map(|why| LastTry { at: self.now, status: None, words: why.to_owned() });
        self.ids.insert(id.clone());
        self.calls.push(Call {
            n: 0,
            id,
            kind: payload.kind.to_owned(),
            job,
            url: url.to_owned(),
            body,
            created: self.now,
            state,
            tries: 0,
            due: (state == CallState::Waiting).then_some(self.now),
            last,
        });
        Ok(())
    }
}

/// The kind without prefix and version (`io.stoker.job.dead.v1` -> `job.dead`).
fn kind_of(stored: &Stored) -> Result<String, StoreError> {
    let head: Head<'_> = serde_json::from_slice(&stored.json).map_err(StoreError::damaged)?;
    let kind = head.kind.strip_prefix(TYPE_PREFIX).unwrap_or(&head.kind);
    Ok(kind.rsplit_once(".v").map_or(kind, |(kind, _)| kind).to_owned())
}

fn spec_of(event: &Event) -> Option<&JobSpec> {
    match &event.data {
        EventData::JobEnqueued(data) => Some(&data.spec),
        EventData::AttemptStarted(data) => Some(&data.spec),
        _ => None,
    }
}
