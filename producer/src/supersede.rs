//! Two VMs of one job (hosts apart, a message published twice): no host can see it, but a reader of
//! all their events can, and tells the host of the superfluous one with `attempt.superseded`.
//!
//! What is to be told stands in the read model's rows, written with the events it follows from. So
//! reading the history is never held up, a crash loses nothing, and no queue can run over. A row
//! goes when the history shows that it was told, or that the VM is gone. Several control planes may
//! tell the same: the event's id follows from what it says, and a host obeys it once.

use std::collections::BTreeMap;
use std::time::Duration;

use stoker_schemas::command::{Command, Context};
use stoker_schemas::decide::decide;
use stoker_schemas::retry::Jitter;
use stoker_schemas::seeded::{self, Bug};
use stoker_schemas::state::{Duplicate, duplicates};
use stoker_schemas::{Event, JobId, JobState};
use stoker_worker::ports::broker::BrokerError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::readmodel::{ReadModel, ReadModelError};
use crate::submit::{PublishError, Submitter, publish_event};

/// A VM must be one too many for this long. The hosts' events come in any order: the end of a first
/// try may be read after the start of a second, and then there is nothing to tell.
const SETTLE: Duration = Duration::from_secs(1);
/// Wait before telling again what could not be told: the broker or the host is away.
const RETRY: Duration = Duration::from_secs(10);
/// Jobs looked at in one pass. More at once are a fleet in ruins; theirs is the next turn.
const MAX_JOBS: usize = 4_096;

/// Tells what is to be told until it is told to stop.
pub async fn run(model: ReadModel, submitter: Submitter, stop: CancellationToken) {
    let mut news = model.crowded_news();
    let mut superseder = Superseder { model, submitter, known: BTreeMap::new() };
    loop {
        news.borrow_and_update();
        let passed = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            passed = superseder.pass() => passed,
        };
        let due = match passed {
            Ok(due) => due,
            Err(error) => {
                tracing::warn!(%error, "cannot look for VMs too many, trying again");
                Some(Instant::now() + RETRY)
            }
        };
        let wait = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = wait => {}
            changed = news.changed() => if changed.is_err() { return },
        }
    }
}

/// How far one of them is.
#[derive(Debug, Clone, Copy)]
enum Stage {
    /// To be told at this time, if it is still there.
    Due(Instant),
    /// The broker has it; the history will show it.
    Told,
}

struct Superseder {
    model: ReadModel,
    submitter: Submitter,
    /// Those of the last pass; what it did not meet is forgotten.
    known: BTreeMap<(JobId, Duplicate), Stage>,
}

impl Superseder {
    /// Tells what is due. When the next one will be.
    async fn pass(&mut self) -> Result<Option<Instant>, ReadModelError> {
        let before = std::mem::take(&mut self.known);
        let mut is_down = seeded::is_on(Bug::SupersedeNever);
        for id in self.model.crowded(MAX_JOBS)? {
            let Some(state) = self.model.job(id)? else { continue };
            for duplicate in duplicates(&state) {
                let key = (id, duplicate);
                let mut stage = before.get(&key).copied().unwrap_or(Stage::Due(Instant::now() + SETTLE));
                if matches!(stage, Stage::Due(due) if due <= Instant::now()) {
                    // The broker is not asked for each of them whether it is still away.
                    let told = if is_down { None } else { Some(self.tell(&state, &key.1).await) };
                    is_down |= matches!(&told, Some(Err(PublishError::Broker(error))) if is_about_all(error));
                    let is_told = matches!(told, Some(Ok(())));
                    stage = if is_told { Stage::Told } else { Stage::Due(Instant::now() + RETRY) };
                }
                self.known.insert(key, stage);
            }
        }
        let due = self.known.values().filter_map(|stage| match stage {
            Stage::Due(due) => Some(*due),
            Stage::Told => None,
        });
        Ok(due.min())
    }

    async fn tell(&self, state: &JobState, duplicate: &Duplicate) -> Result<(), PublishError> {
        let now = self.submitter.now();
        let context = Context { now, jitter: Jitter::from_random(0) };
        // Refused when it has ended by now: nothing to tell.
        let facts = decide(state, Command::from(duplicate.clone()), context).unwrap_or_default();
        for (epoch, data) in facts {
            let event = Event::about_job(state.id, epoch, self.submitter.source(), now, data);
            let published = publish_event(self.submitter.broker().as_ref(), &event).await;
            let Duplicate { host, vm, .. } = duplicate;
            match &published {
                Ok(()) => tracing::warn!(job = %state.id, %host, %vm, "a VM too many, its host is told to remove it"),
                Err(error) => {
                    tracing::warn!(job = %state.id, %host, %vm, %error, "a VM too many, its host is not told")
                }
            }
            published?;
        }
        Ok(())
    }
}

/// Whether the next publish would fail the same way.
pub(crate) fn is_about_all(error: &BrokerError) -> bool {
    !matches!(error, BrokerError::Unroutable(_) | BrokerError::Refused(_))
}
