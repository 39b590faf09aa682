//! Queues that refuse what a host publishes: the latest word on each, whatever order they came in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stoker_schemas::event::HostPublishingRefused;
use stoker_schemas::{Event, EventData, Time};

/// Queues remembered of one host; it publishes to fewer.
const MAX_QUEUES: usize = 64;

/// What a host said of the queues it publishes to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refusals(BTreeMap<String, (Time, Option<HostPublishingRefused>)>);

/// A queue that refuses what a host publishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct RefusalView {
    /// The queue.
    pub queue: String,
    /// Why, in the broker's words.
    pub reason: String,
    /// Messages that the host kept for it when it last said so.
    pub messages: u64,
    /// Time of the oldest of them.
    pub oldest: Time,
}

impl Refusals {
    pub(super) fn apply(&mut self, event: &Event) {
        let (queue, word) = match &event.data {
            EventData::HostPublishingRefused(e) => (&e.queue, Some(e.clone())),
            EventData::HostPublishingResumed(e) => (&e.queue, None),
            _ => return,
        };
        if self.0.len() >= MAX_QUEUES && !self.0.contains_key(queue) {
            return;
        }
        let word = (event.time, word);
        let known = self.0.entry(queue.clone()).or_insert_with(|| word.clone());
        if word > *known {
            *known = word;
        }
    }

    /// Those that hold. A worker that begins says again what still does.
    pub(super) fn views(&self, started: Option<Time>) -> Vec<RefusalView> {
        let told = self.0.values().filter(|(at, _)| started.is_none_or(|started| *at >= started));
        told.filter_map(|(_, word)| word.as_ref()).map(RefusalView::of).collect()
    }
}

impl RefusalView {
    fn of(refused: &HostPublishingRefused) -> Self {
        let HostPublishingRefused { queue, reason, messages, oldest } = refused.clone();
        Self { queue, reason, messages, oldest }
    }
}
