//! History entries -> one atomic batch: the events, the summaries and indexes that follow from
//! them, the counters and the offset. Told twice or in another order, the rows come out the same.

mod letters;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sled::Batch;
use stoker_schemas::id::LetterId;
use stoker_schemas::state::duplicates;
use stoker_schemas::{Event, EventData, JobId, JobState, Time, limits};
use stoker_worker::ports::broker::{CONTENT_BATCH, HistoryEntry};

use letters::TouchedLetter;

use super::awaited::{AwaitedJob, Lanes};
use super::cache::Cache;
use super::hosts::HostState;
use super::packed;
use super::pools::PoolState;
use super::series::{KEPT_MINUTES, Minute, minute_of};
use super::store::{Meta, Store, Stored, corrupt};
use super::summary::JobSummary;
use super::{Change, ReadModelError, keys};

/// Entries kept that could not be decoded; the oldest go first. Enough to see a pattern.
const MAX_UNDECODABLE: u64 = 1_000;
/// Events kept of one job. Fifty attempts make some hundreds; beyond, somebody floods one id.
const MAX_EVENTS_PER_JOB: u32 = 10_000;
/// Beginning kept of what could not be decoded, bytes.
const KEPT_BYTES: usize = limits::MAX_TEXT_BYTES;

/// Old minutes removed with one batch: more than ever begin anew, few enough not to be felt.
const FORGOTTEN_AT_ONCE: usize = 16;

/// A history entry (or one event of a batch) that is not an event we know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Undecodable {
    /// Its position in the history.
    pub offset: u64,
    /// Where it was published to.
    pub routing_key: String,
    /// Why it is not an event.
    pub reason: String,
    /// Its beginning.
    pub body: String,
}

/// What of one job changed in a batch.
#[derive(Default)]
struct Touched {
    fresh: Vec<Event>,
    /// An event was replaced by an earlier telling of it: adding up must start anew.
    replaced: bool,
    count: u32,
    /// Numbers of its events in this batch, the lowest and the highest.
    numbers: Option<(u64, u64)>,
    /// Number of the first message for hosts among them.
    message: Option<u64>,
}

/// What a written batch brought.
pub(super) struct Written {
    pub meta: Meta,
    pub changes: Vec<Change>,
    /// A job got a VM too many.
    pub crowded: bool,
    /// A job waits for a message that was given up.
    pub unsettled: bool,
    /// The latest time that an event of it tells.
    pub latest: Option<Time>,
}

/// A batch in the making.
pub(super) struct Ingest<'a> {
    store: &'a Store,
    cache: &'a mut Cache,
    meta: Meta,
    batch: Batch,
    events: BTreeMap<Vec<u8>, Stored>,
    jobs: BTreeMap<JobId, Touched>,
    hosts: BTreeMap<String, HostState>,
    pools: BTreeMap<String, PoolState>,
    letters: BTreeMap<LetterId, TouchedLetter>,
    settled_letters: BTreeSet<LetterId>,
    changes: Vec<Change>,
    /// Number of the first new event, and the keys of all of them.
    first: u64,
    arrived: Vec<Vec<u8>>,
    minutes: BTreeMap<u64, Minute>,
    lanes: Lanes,
    crowded: bool,
    unsettled: bool,
    latest: Option<Time>,
}

impl<'a> Ingest<'a> {
    pub fn new(store: &'a Store, cache: &'a mut Cache, meta: Meta) -> Self {
        Self {
            store,
            cache,
            first: meta.next_seq,
            arrived: Vec::new(),
            meta,
            batch: Batch::default(),
            events: BTreeMap::new(),
            jobs: BTreeMap::new(),
            hosts: BTreeMap::new(),
            pools: BTreeMap::new(),
            letters: BTreeMap::new(),
            settled_letters: BTreeSet::new(),
            changes: Vec::new(),
            minutes: BTreeMap::new(),
            lanes: Lanes::default(),
            crowded: false,
            unsettled: false,
            latest: None,
        }
    }

    /// Takes entries, which follow each other in the history.
    pub fn entries(&mut self, entries: &[HistoryEntry], received: Time) -> Result<(), ReadModelError> {
        entries.iter().try_for_each(|entry| self.entry(entry, received))?;
        if let Some(last) = entries.last() {
            self.meta.next_offset = Some(last.offset + 1);
            self.meta.last_read = Some(last.mark());
        }
        Ok(())
    }

    /// Takes one entry; `received` stands in for the time of events without one.
    fn entry(&mut self, entry: &HistoryEntry, received: Time) -> Result<(), ReadModelError> {
        if entry.content_type != CONTENT_BATCH {
            return self.bytes(entry, 0, &entry.body, received);
        }
        match serde_json::from_slice::<Vec<&RawValue>>(&entry.body) {
            Ok(items) => {
                for (index, item) in (0u32..).zip(items) {
                    self.bytes(entry, index, item.get().as_bytes(), received)?;
                }
                Ok(())
            }
            Err(e) => self.park(entry, 0, &entry.body, format!("not a JSON array of events: {e}")),
        }
    }

    fn bytes(&mut self, entry: &HistoryEntry, index: u32, body: &[u8], received: Time) -> Result<(), ReadModelError> {
        // Kept in today's version and with its time, so that reading it again needs neither the
        // old versions nor a clock.
        let decoded = Event::decode(body, received).and_then(|event| Ok((event.encode()?, event)));
        match decoded {
            Ok((json, event)) => self.event(entry, index, event, json),
            Err(e) => self.park(entry, index, body, e.to_string()),
        }
    }

    fn event(&mut self, entry: &HistoryEntry, index: u32, event: Event, json: Vec<u8>) -> Result<(), ReadModelError> {
        self.latest = self.latest.max(Some(event.time));
        let key = keys::event(&event);
        let known = match self.events.get(&key) {
            Some(known) => Some(known.clone()),
            None => self.store.event(&key)?,
        };
        // The same fact told differently: one telling counts by a fixed order, wherever it comes in time.
        let rank = |event: &Event| (event.data.precedence(), event.time);
        let replaced = match &known {
            None => false,
            Some(known) if (rank(&known.event()?), &known.json) <= (rank(&event), &json) => return Ok(()),
            Some(_) => true,
        };
        if known.is_none() && event.job().is_some_and(|job| self.count(job) >= MAX_EVENTS_PER_JOB) {
            let reason = format!("the job has {MAX_EVENTS_PER_JOB} events already; this one is not kept");
            return self.park(entry, index, &json, reason);
        }
        let fresh = known.is_none();
        let seq = known.map_or(self.meta.next_seq, |known| known.seq);
        let stored = Stored { seq, job: event.job(), json };
        self.batch.insert(key.as_slice(), stored.to_row());
        if seq == self.meta.next_seq {
            self.meta.next_seq += 1;
            self.arrived.push(key.clone());
        }
        self.events.insert(key, stored);
        self.changes.push(Change { seq, job: event.job(), kind: event.data.kind() });
        match (event.job(), event.letter()) {
            (Some(job), _) => self.touch(job, event, seq, replaced),
            (None, Some(letter)) => self.letter(letter, &event, fresh)?,
            (None, None) if event.data.is_about_host() => self.host(&event, seq)?,
            (None, None) => self.pool(&event, seq)?,
        }
        Ok(())
    }

    fn count(&self, job: JobId) -> u32 {
        let before = self.store.summary(job).ok().flatten().map_or(0, |s| s.events);
        before + self.jobs.get(&job).map_or(0, |t| t.count)
    }

    fn touch(&mut self, job: JobId, event: Event, seq: u64, replaced: bool) {
        let touched = self.jobs.entry(job).or_default();
        let (low, high) = touched.numbers.unwrap_or((seq, seq));
        touched.numbers = Some((low.min(seq), high.max(seq)));
        if matches!(event.data, EventData::JobEnqueued(_) | EventData::JobRetryScheduled(_)) {
            touched.message.get_or_insert(seq);
        }
        touched.replaced |= replaced;
        touched.count += u32::from(!replaced);
        touched.fresh.push(event);
    }

    fn host(&mut self, event: &Event, seq: u64) -> Result<(), ReadModelError> {
        let name = &event.subject;
        if !self.hosts.contains_key(name) {
            let known = self.store.host(name)?.unwrap_or_default();
            self.hosts.insert(name.clone(), known);
        }
        if let Some(host) = self.hosts.get_mut(name) {
            host.apply(event, seq);
        }
        Ok(())
    }

    fn pool(&mut self, event: &Event, seq: u64) -> Result<(), ReadModelError> {
        let name = &event.subject;
        if !self.pools.contains_key(name) {
            let known = self.store.pool(name)?.unwrap_or_default();
            self.pools.insert(name.clone(), known);
        }
        if let Some(pool) = self.pools.get_mut(name) {
            pool.apply(event, seq);
        }
        Ok(())
    }

    fn park(&mut self, entry: &HistoryEntry, index: u32, body: &[u8], reason: String) -> Result<(), ReadModelError> {
        let key = keys::undecodable(entry.offset, index);
        if self.store.has(&key)? {
            return Ok(());
        }
        let shown = String::from_utf8_lossy(&body[..body.len().min(KEPT_BYTES)]);
        let row = Undecodable {
            offset: entry.offset,
            routing_key: limits::clip(&entry.routing_key, 255),
            reason: limits::clip(&reason, KEPT_BYTES),
            body: limits::clip(&shown, KEPT_BYTES),
        };
        tracing::warn!(offset = entry.offset, reason = %row.reason, "history entry is not an event");
        self.batch.insert(key, serde_json::to_vec(&row).map_err(corrupt)?);
        self.meta.undecodable += 1;
        self.meta.undecodable_kept += 1;
        Ok(())
    }

    fn trim_undecodable(&mut self) -> Result<(), ReadModelError> {
        let surplus = self.meta.undecodable_kept.saturating_sub(MAX_UNDECODABLE);
        for key in self.store.oldest_undecodable(usize::try_from(surplus).unwrap_or(usize::MAX))? {
            self.batch.remove(key);
            self.meta.undecodable_kept -= 1;
        }
        Ok(())
    }

    /// Adds up what was touched and writes everything at once.
    pub fn commit(mut self) -> Result<Written, ReadModelError> {
        for (id, touched) in std::mem::take(&mut self.jobs) {
            self.settle(id, touched)?;
        }
        for (name, host) in &self.hosts {
            self.batch.insert(keys::host(name), serde_json::to_vec(host).map_err(corrupt)?);
        }
        for (name, pool) in &self.pools {
            self.batch.insert(keys::pool(name), serde_json::to_vec(pool).map_err(corrupt)?);
        }
        self.settle_letters()?;
        for (pool, lane, seq) in self.lanes.moved() {
            self.batch.insert(keys::lane(pool, lane), serde_json::to_vec(&seq).map_err(corrupt)?);
        }
        self.write_minutes()?;
        self.trim_undecodable()?;
        self.trim_letters()?;
        if !self.arrived.is_empty() {
            self.batch.insert(keys::seq(self.first), keys::joined_keys(&self.arrived));
        }
        self.batch.insert(keys::META, serde_json::to_vec(&self.meta).map_err(corrupt)?);
        self.store.write(self.batch)?;
        let (crowded, unsettled) = (self.crowded, self.unsettled);
        Ok(Written { meta: self.meta, changes: self.changes, crowded, unsettled, latest: self.latest })
    }

    fn settle(&mut self, id: JobId, touched: Touched) -> Result<(), ReadModelError> {
        let before = self.store.summary(id)?;
        let cached = self.cache.take(id).filter(|_| !touched.replaced);
        let (state, times) = match (cached, &before) {
            (Some(mut state), Some(before)) => {
                touched.fresh.iter().for_each(|event| state.apply(event));
                let told = touched.fresh.iter().map(|event| event.time);
                let times = told.fold((before.created, before.changed), |(a, b), t| (a.min(t), b.max(t)));
                (state, times)
            }
            _ => self.replay(id)?,
        };
        let events = before.as_ref().map_or(0, |b| b.events) + touched.count;
        if !touched.replaced {
            touched.fresh.iter().try_for_each(|event| self.tally(event, &state))?;
        }
        let after = JobSummary::of(&state, times, events);
        self.index(before.as_ref(), &after)?;
        self.mark_crowded(&state)?;
        self.touch_letter_of(id)?;
        self.mark_awaited(&state, &touched)?;
        self.cache.put(state);
        Ok(())
    }

    fn tally(&mut self, event: &Event, state: &JobState) -> Result<(), ReadModelError> {
        let minute = minute_of(event.time);
        let known = match self.minutes.entry(minute) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(self.store.minute(minute)?.unwrap_or_default()),
        };
        known.add(event, state);
        self.meta.totals.add(event, state);
        Ok(())
    }

    fn write_minutes(&mut self) -> Result<(), ReadModelError> {
        let Some((newest, _)) = self.minutes.last_key_value() else { return Ok(()) };
        for key in self.store.minutes_before(newest.saturating_sub(KEPT_MINUTES), FORGOTTEN_AT_ONCE)? {
            self.batch.remove(key);
        }
        for (minute, sum) in &self.minutes {
            self.batch.insert(keys::minute(*minute), serde_json::to_vec(sum).map_err(corrupt)?);
        }
        Ok(())
    }

    /// A row as long as a VM is to go and was not told: with the events in one batch, so that no
    /// crash loses it.
    fn mark_crowded(&mut self, state: &JobState) -> Result<(), ReadModelError> {
        let key = keys::crowded(state.id);
        let (was, is) = (self.store.has(&key)?, !duplicates(state).is_empty());
        if is && !was {
            self.batch.insert(key, &[]);
        } else if was && !is {
            self.batch.remove(key);
        }
        self.crowded |= is;
        Ok(())
    }

    /// A row as long as something is to come for the job.
    fn mark_awaited(&mut self, state: &JobState, touched: &Touched) -> Result<(), ReadModelError> {
        let before = self.store.awaited(state.id)?;
        let numbers = touched.numbers.unwrap_or((self.first, self.first));
        let after = AwaitedJob::of(state, before.as_ref(), numbers);
        // Where its message stood in the lane.
        let message =
            before.as_ref().map_or(touched.message, |before| before.is_queued().then_some(before.message_seq));
        // What a user or a control plane has ended may still have its message.
        let attempt = before.as_ref().map_or(1, |before| before.awaited.attempt);
        let has_begun = state.attempts.keys().any(|epoch| epoch.attempt == attempt);
        let is_taken = has_begun && !after.as_ref().is_some_and(AwaitedJob::is_queued);
        if let (true, Some(message), Some(spec)) = (is_taken, message, state.spec()) {
            self.lanes.passed(self.store, (spec.pool.clone(), spec.priority), message)?;
        }
        let place = |job: &AwaitedJob| keys::awaited_since(job.is_urgent(), job.seq, job.id);
        let (was, is) = (before.as_ref().map(place), after.as_ref().map(place));
        if was != is {
            was.into_iter().for_each(|key| self.batch.remove(key));
            is.into_iter().for_each(|key| self.batch.insert(key, &[]));
        }
        match after {
            Some(after) => self.batch.insert(keys::awaited(state.id), serde_json::to_vec(&after).map_err(corrupt)?),
            None if before.is_some() => self.batch.remove(keys::awaited(state.id)),
            None => {}
        }
        Ok(())
    }

    /// Adds a job up from its events: those of this batch over those in the tree. With the times of
    /// the first and the last.
    fn replay(&self, id: JobId) -> Result<(JobState, (Time, Time)), ReadModelError> {
        let mut state = JobState::new(id);
        let mut times: Option<(Time, Time)> = None;
        let mut add = |event: Event| {
            let (first, last) = times.unwrap_or((event.time, event.time));
            times = Some((first.min(event.time), last.max(event.time)));
            state.apply(&event);
        };
        let prefix = keys::events_of(id);
        let ours = self.events.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
        let mut overlaid = BTreeSet::new();
        for (key, stored) in ours {
            add(stored.event()?);
            overlaid.insert(key.as_slice());
        }
        for row in self.store.events_of(id)? {
            let (key, stored) = row?;
            if !overlaid.contains(key.as_slice()) {
                add(stored.event()?);
            }
        }
        Ok((state, times.unwrap_or((Time::UNIX_EPOCH, Time::UNIX_EPOCH))))
    }

    fn index(&mut self, before: Option<&JobSummary>, after: &JobSummary) -> Result<(), ReadModelError> {
        let rows = |s: &JobSummary| {
            let tail = keys::index_tail(s.created, s.id);
            let mut rows = vec![[keys::BY_TIME, &tail].concat(), [keys::by_phase(s.phase), tail.clone()].concat()];
            rows.extend(s.not_before.map(|due| keys::by_due(due, s.id)));
            rows.extend(s.facets().into_iter().map(|facet| [keys::by_facet(facet), tail.clone()].concat()));
            rows
        };
        let stale = before.map(rows).unwrap_or_default();
        let kept = rows(after);
        for row in stale.iter().filter(|row| !kept.contains(row)) {
            self.batch.remove(row.as_slice());
        }
        for row in kept.iter().filter(|row| !stale.contains(row)) {
            self.batch.insert(row.as_slice(), &[]);
        }
        let row = serde_json::to_vec(after).map_err(corrupt)?;
        self.batch.insert(keys::job(after.id), packed::pack(&row));
        self.meta.counters.moved(before, after);
        Ok(())
    }
}
