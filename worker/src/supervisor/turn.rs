//! One turn: the facts that inputs led to, and what may be done once they are on disk.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use stoker_schemas::event::{Event, EventData, GoneWhy, JOB_LEVEL};
use stoker_schemas::next::{Next, next};
use stoker_schemas::seeded::{self, Bug};
use stoker_schemas::{JobId, JobState, Phase, VmId};
use tokio::sync::watch;
use tokio::time::timeout;
use uuid::Uuid;

use super::settling::Owed;
use super::waiting::Waiting;
use super::{Supervisor, SupervisorError};
use crate::attempt::{Mode, Order, Plan, Running, Whose};
use crate::log::{Append, Expected, IndexChange, MAX_CALL_BYTES, MAX_CALL_EVENTS};
use crate::outbox::Progress;
use crate::ports::handle::Handle;

/// Streams in the log's index of what is open, by tag.
pub mod tags {
    /// Has something on this host.
    pub const ACTIVE: u8 = 1;
    /// Waits for a host (embedded broker).
    pub const QUEUED: u8 = 2;
    /// Waits for its next attempt (embedded broker).
    pub const RETRYING: u8 = 3;
    // 4 was a dead job, which is not open: a start reads nothing of it. Not to be given out again.
    /// A VM that waits for a job (the stream is the VM's).
    pub const WARM: u8 = 5;
}

/// How long the end of a worker may be put off for deliveries that are about to be acknowledged.
const LAST_SETTLED: Duration = Duration::from_secs(2);

/// Stream of events about the host itself.
pub const HOST_STREAM: Uuid = Uuid::nil();

/// Cuts appends into calls that the log takes; one append (one job's facts) is never cut.
fn calls(appends: Vec<Append>) -> Vec<Vec<Append>> {
    let mut calls: Vec<Vec<Append>> = Vec::new();
    let (mut events, mut bytes) = (0, 0);
    for append in appends {
        let size: usize = append.events.iter().map(Bytes::len).sum();
        let fits = events + append.events.len() <= MAX_CALL_EVENTS && bytes + size <= MAX_CALL_BYTES;
        match calls.last_mut() {
            Some(call) if fits => call.push(append),
            _ => {
                (events, bytes) = (0, 0);
                calls.push(vec![append]);
            }
        }
        events += calls.last().and_then(|c| c.last()).map_or(0, |a| a.events.len());
        bytes += size;
    }
    calls
}

/// What a turn has gathered.
#[derive(Default)]
pub(super) struct Turn {
    /// By stream, in order of first mention.
    appends: Vec<Append>,
    at: HashMap<Uuid, usize>,
    host_facts: Vec<EventData>,
    /// Warm VMs to start once their first fact is on disk.
    warm: Vec<VmId>,
    /// Jobs to look at with `next` once the facts are on disk.
    touched: Vec<JobId>,
    /// Messages that the broker is to keep for so long.
    pub(super) put_back: Vec<(Waiting, Duration)>,
    /// To acknowledge now (they were confirmed earlier).
    pub(super) settle: Vec<Handle>,
    /// To acknowledge once what their jobs wrote in this turn is published.
    settle_after: Vec<Owed>,
}

impl Turn {
    pub(super) fn host_fact(&mut self, data: EventData) {
        self.host_facts.push(data);
    }

    pub(super) fn start_warm(&mut self, vm: VmId) {
        self.warm.push(vm);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.appends.is_empty() && self.host_facts.is_empty()
    }

    /// To acknowledge once what was written of this job (`None`: of none in particular) is published.
    pub(super) fn settle_after(&mut self, job: impl Into<Option<JobId>>, handle: Handle) {
        self.settle_after.push(Owed { job: job.into(), handle });
    }

    pub(super) fn touch(&mut self, job: JobId) {
        if self.touched.last() != Some(&job) {
            self.touched.push(job);
        }
    }

    /// What is to be written about a stream.
    pub(super) fn written(&self, stream: Uuid) -> &[Bytes] {
        self.at.get(&stream).map_or(&[], |at| &self.appends[*at].events)
    }

    /// Nothing of this job is open here any longer, and nothing is written of it.
    pub(super) fn close(&mut self, job: JobId) {
        let index = IndexChange::Remove;
        self.appends.push(Append { stream: job.0, expected: Expected::Any, events: Vec::new(), index });
    }

    fn write(&mut self, stream: Uuid, payload: Bytes, index: IndexChange) {
        let Self { appends, at, .. } = self;
        let slot = *at.entry(stream).or_insert_with(|| {
            // Facts commute and this task is their only decider: no version to expect.
            appends.push(Append { stream, expected: Expected::Any, events: Vec::new(), index: IndexChange::Keep });
            appends.len() - 1
        });
        appends[slot].events.push(payload);
        // The last change counts. What changes nothing (another's request, say) leaves the one before it.
        if index != IndexChange::Keep || seeded::is_on(Bug::IndexForgotten) {
            appends[slot].index = index;
        }
    }
}

impl Supervisor {
    /// Writes one event into the turn.
    pub(super) fn write(&self, turn: &mut Turn, event: &Event, index: IndexChange) -> Result<(), SupervisorError> {
        let payload = event.encode().map_err(|e| SupervisorError::Encode(e.to_string()))?;
        // What happens to a warm VM stands in a stream of its own: the host's is read at each start.
        let stream = match event.data.warm_vm() {
            Some(vm) => vm.0,
            None => event.job().map(|job| job.0).or(event.letter().map(|letter| letter.0)).unwrap_or(HOST_STREAM),
        };
        turn.write(stream, Bytes::from(payload), index);
        Ok(())
    }

    /// What the log's index must say of a job in this state.
    pub(super) fn index_of(&self, state: &JobState) -> IndexChange {
        let sort = |time: stoker_schemas::Time| u64::try_from(time.unix_micros()).unwrap_or(0);
        if state.attempts.values().any(|a| a.has_vm()) {
            return IndexChange::Set(tags::ACTIVE, 0);
        }
        if !self.settings.shares_log {
            return IndexChange::Remove;
        }
        match state.phase() {
            Phase::Queued => IndexChange::Set(tags::QUEUED, state.enqueued_at().map_or(0, sort)),
            Phase::Retrying | Phase::Failing | Phase::Booting | Phase::Ready => {
                let due = state.retries.values().next_back().map(|r| sort(r.value.not_before));
                IndexChange::Set(tags::RETRYING, due.unwrap_or(0))
            }
            Phase::Dead | Phase::Cancelled | Phase::Stopped => IndexChange::Remove,
        }
    }

    /// Puts the turn's facts on disk, then does what follows from them.
    pub(super) async fn commit(&mut self, mut turn: Turn) -> Result<(), SupervisorError> {
        let written = self.write_host_facts(&mut turn);
        if seeded::is_on(Bug::AckBeforeFlush) {
            let settle = std::mem::take(&mut turn.settle_after).into_iter().map(|owed| owed.handle).collect();
            self.settle(Turn { settle, ..Turn::default() });
        }
        let appends = calls(std::mem::take(&mut turn.appends));
        self.in_hand = Some(turn);
        written?;
        for call in appends {
            self.log.append(call).await?;
        }
        let Some(mut turn) = self.in_hand.take() else { return Ok(()) };
        for vm in std::mem::take(&mut turn.warm) {
            self.start_warm(vm);
        }
        for job in std::mem::take(&mut turn.touched) {
            if let Some(handle) = self.follow_up(job) {
                turn.settle_after(job, handle);
            }
        }
        self.put_all_back(std::mem::take(&mut turn.put_back));
        self.settle(turn);
        self.update_credit();
        Ok(())
    }

    fn write_host_facts(&mut self, turn: &mut Turn) -> Result<(), SupervisorError> {
        for data in std::mem::take(&mut turn.host_facts) {
            // This machine's clock may have been set back between two lives: what comes later is later all the same.
            self.last_host_fact = self.rig.clock.now().max(self.last_host_fact);
            let event = Event {
                source: self.source.clone(),
                subject: self.settings.host.to_string(),
                time: self.last_host_fact,
                epoch: JOB_LEVEL,
                traceparent: None,
                data,
            };
            let index = match &event.data {
                EventData::WarmStarted(_) => IndexChange::Set(tags::WARM, 0),
                EventData::WarmTaken(_) | EventData::WarmGone(_) => IndexChange::Remove,
                _ => IndexChange::Keep,
            };
            self.write(turn, &event, index)?;
        }
        Ok(())
    }

    /// Starts or orders the attempt as the state demands. A delivery that a job which has ended still holds is handed
    /// back.
    fn follow_up(&mut self, id: JobId) -> Option<Handle> {
        let job = self.jobs.get_mut(&id)?;
        let live = &mut job.live;
        let wanted = next(&job.state, live.epoch);
        if wanted == Next::Settled {
            if !seeded::is_on(Bug::RoomKept) {
                self.books.release(live.need);
            }
            if seeded::is_on(Bug::RoomFreedTwice) {
                self.books.release(live.need);
            }
            self.up -= u32::from(live.is_up);
            if let Some(address) = live.address.filter(|_| !seeded::is_on(Bug::AddressKept)) {
                self.addresses.release(address);
            }
            let handle = self.jobs.remove(&id).and_then(|job| job.ack).map(|held| held.ack);
            return handle.filter(|_| !seeded::is_on(Bug::AttachedToEnded));
        }
        if live.running.is_none() {
            let started = job.state.attempts.get(&live.epoch).and_then(|a| a.started.as_ref())?;
            let plan = Plan {
                whose: Whose::Job(id, live.epoch),
                vm: started.value.vm,
                spec: started.value.spec.clone(),
                address: started.value.address,
                started_at: started.at,
            };
            live.running = Some(match live.warm.take() {
                Some(mut warm) => {
                    warm.hand_over(plan);
                    warm
                }
                None => Running::start(self.rig.clone(), plan, Mode::Fresh, self.reports.clone()),
            });
        }
        let deaf = seeded::is_on(Bug::CancelNotObeyed) && wanted == Next::Remove(GoneWhy::Cancelled);
        if let (Next::Remove(why), Some(running), false) = (wanted, &live.running, deaf) {
            running.order(Order::Remove(why));
        }
        None
    }

    fn settle(&mut self, turn: Turn) {
        let Turn { mut settle, settle_after, .. } = turn;
        let head = self.log.durable();
        if self.settings.shares_log || seeded::is_on(Bug::AckBeforePublish) {
            settle.extend(settle_after.into_iter().map(|owed| owed.handle));
        } else {
            settle.extend(self.settling.add(head, settle_after));
        }
        if !settle.is_empty() {
            tokio::spawn(acknowledge(settle));
        }
    }

    /// Acknowledges what has ended, as far as it is published within a moment: what is not comes to another host, which
    /// would boot it again.
    pub(super) async fn settle_last(&mut self, published: &mut watch::Receiver<Progress>) {
        let settling = async {
            loop {
                let progress = published.borrow_and_update().clone();
                // In a task: what the broker does not answer in time must not be dropped here.
                let _ = tokio::spawn(acknowledge(self.settling.advance(progress))).await;
                if !self.settling.waits_for_outbox() || published.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = timeout(LAST_SETTLED, settling).await;
    }
}

async fn acknowledge(handles: Vec<Handle>) {
    for handle in handles {
        // A stale delivery comes again and is recognised by its attempt.
        if let Err(error) = handle.ack().await {
            tracing::debug!(%error, "delivery not acknowledged");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_in_the_turn_in_which_its_job_begins_leaves_it_in_the_index() {
        let (mut turn, stream, event) = (Turn::default(), Uuid::from_u128(7), Bytes::from_static(b"{}"));
        for (index, expected) in [
            (IndexChange::Set(tags::ACTIVE, 0), IndexChange::Set(tags::ACTIVE, 0)),
            (IndexChange::Keep, IndexChange::Set(tags::ACTIVE, 0)),
            (IndexChange::Remove, IndexChange::Remove),
            (IndexChange::Keep, IndexChange::Remove),
        ] {
            turn.write(stream, event.clone(), index);
            assert_eq!(turn.appends[0].index, expected);
        }
    }
}
