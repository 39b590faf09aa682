//! Jobs for which something is to come, and how far each lane has come. Told by numbers of events, in
//! the order in which they arrived here: no clock is asked.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stoker_schemas::spec::Priority;
use stoker_schemas::state::{Awaited, AwaitedFrom};
use stoker_schemas::{JobId, JobState, PoolName};

use super::ReadModelError;
use super::store::Store;

/// A job for which something is to come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwaitedJob {
    /// Which.
    pub id: JobId,
    /// Number of its last event: nothing was heard of it since.
    pub seq: u64,
    /// Number of the first event after which something was to come.
    pub first_seq: u64,
    /// Number of the first event that says that this attempt waits: its message is not older. (A message that was
    /// published twice is heard of twice, and has its place by the first.)
    #[serde(default)]
    pub message_seq: u64,
    /// Its pool; none where no event with its spec is known.
    pub lane: Option<(PoolName, Priority)>,
    /// What is to come.
    #[serde(flatten)]
    pub awaited: Awaited,
}

impl AwaitedJob {
    /// The row of a job whose events of this batch have these numbers, the lowest and the highest.
    pub(super) fn of(state: &JobState, before: Option<&Self>, numbers: (u64, u64)) -> Option<Self> {
        let lane = state.spec().map(|spec| (spec.pool.clone(), spec.priority));
        let first_seq = before.map_or(numbers.0, |before| before.first_seq);
        let seq = before.map_or(numbers.1, |before| before.seq.max(numbers.1));
        let awaited = state.awaited()?;
        let known = before.filter(|before| before.is_queued() && before.awaited.attempt == awaited.attempt);
        let message_seq = known.map_or(numbers.0, |before| before.message_seq);
        Some(Self { id: state.id, seq, first_seq, message_seq, lane, awaited })
    }

    /// It is looked at before those that only wait: a request is to be carried out, or time runs out.
    pub(super) fn is_urgent(&self) -> bool {
        self.awaited.cancelling || self.awaited.ttl_s.is_some()
    }

    /// Its message is in a queue, as far as is known.
    pub fn is_queued(&self) -> bool {
        self.awaited.from != AwaitedFrom::Host
    }
}

/// How far lanes have come, as far as a batch moves them: the number of the event that published the latest
/// message in each that a host took.
#[derive(Debug, Default)]
pub(super) struct Lanes(BTreeMap<(PoolName, Priority), u64>);

impl Lanes {
    /// A host took a job whose message was published with this number.
    pub fn passed(&mut self, store: &Store, lane: (PoolName, Priority), seq: u64) -> Result<(), ReadModelError> {
        let known = match self.0.get(&lane) {
            Some(known) => *known,
            None => store.passed(&lane.0, lane.1)?,
        };
        self.0.insert(lane, known.max(seq));
        Ok(())
    }

    /// What is to be written.
    pub fn moved(&self) -> impl Iterator<Item = (&PoolName, Priority, u64)> {
        self.0.iter().map(|((pool, lane), seq)| (pool, *lane, *seq))
    }
}
