//! How far publishing has come, for those who wait for it and for those who watch it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use stoker_schemas::event::Event;
use stoker_schemas::{JobId, Time};

use crate::clock::Clock;
use crate::log::{EventLog, LogError};

/// How far the outbox has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// The broker has every event up to this position, except those that are set aside.
    pub through: u64,
    /// Jobs with events that are set aside: the position of the first one.
    pub held: Arc<BTreeMap<JobId, u64>>,
    /// Queues that refuse messages, in order of their names.
    pub refusals: Vec<Refusal>,
    /// So much is set aside that nothing more is published until a queue takes some of it.
    pub stopped: bool,
}

/// A queue that refuses messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The queue, under the default prefix.
    pub queue: String,
    /// Why, as the broker said it last.
    pub reason: String,
    /// Messages that are set aside for it.
    pub messages: u64,
    /// Time of the oldest one's event.
    pub oldest: Time,
}

impl Progress {
    /// Nothing is set aside.
    pub fn up_to(through: u64) -> Self {
        Self { through, ..Self::default() }
    }

    /// Is everything published that this job (`None`: the host itself) wrote up to a position?
    pub fn covers(&self, job: Option<JobId>, position: u64) -> bool {
        let first_held = job.and_then(|job| self.held.get(&job));
        self.through >= position && first_held.is_none_or(|first| *first > position)
    }

    /// Messages that are set aside, for all queues together.
    pub fn refused(&self) -> u64 {
        self.refusals.iter().map(|refusal| refusal.messages).sum()
    }
}

/// What the log has that nobody was told yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lag {
    /// Events that were not published yet; those set aside are not among them.
    pub events: u64,
    /// Age of the oldest one.
    pub oldest: Option<Duration>,
}

impl Lag {
    /// Measures it now.
    ///
    /// # Errors
    /// As [`EventLog::scan`].
    pub fn measure(log: &EventLog, progress: &Progress, clock: Clock) -> Result<Self, LogError> {
        let events = log.durable().saturating_sub(progress.through);
        let now = clock.now();
        let oldest = log.scan(progress.through + 1, 1)?.first().and_then(|record| {
            let event = Event::decode(&record.payload, now).ok()?;
            Some(now.since(event.time))
        });
        Ok(Self { events, oldest })
    }
}
