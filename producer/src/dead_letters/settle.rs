//! Jobs whose message was given up: no host gets it any more, so nothing would ever follow. They are called
//! dead, with the reason, so that they are seen and can be tried again.
//!
//! Which these are stands in the read model's rows, written with the events it follows from. A row goes when the
//! history shows that the job ended or went on. Whether a job may be called dead is `decide`'s to say.

use std::collections::BTreeMap;
use std::time::Duration;

use stoker_schemas::command::{Command, Rejection};
use stoker_schemas::decide::decide;
use stoker_schemas::letter::{Work, work};
use stoker_schemas::{Event, JobId, JobState};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{context, is_about_all};
use crate::readmodel::{ReadModel, ReadModelError, WholeLetter};
use crate::submit::{PublishError, Submitter, publish_event};

/// A job must wait for its message for this long. The hosts' events come in any order: that of a host that has
/// the job may be read after the message's death.
const SETTLE: Duration = Duration::from_secs(2);
/// Wait before telling again what could not be told.
const RETRY: Duration = Duration::from_secs(10);
/// Jobs looked at in one pass. More at once have lost a whole queue; theirs is the next turn.
const MAX_JOBS: usize = 4_096;

/// Settles what is to be settled until it is told to stop.
pub async fn run(model: ReadModel, submitter: &Submitter, stop: &CancellationToken) {
    let mut news = model.unsettled_news();
    // Before, the rows may say what was overtaken long ago.
    tokio::select! {
            biased;
        () = stop.cancelled() => return,
        ended = async { model.caught_up().wait_for(|is| *is).await.is_err() } => if ended { return },
    }
    let mut settler = Settler { model, submitter, known: BTreeMap::new() };
    loop {
        news.borrow_and_update();
        let passed = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            passed = settler.pass() => passed,
        };
        let due = passed.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot look for jobs that lost their message, trying again");
            Some(Instant::now() + RETRY)
        });
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
    /// To be looked at, at this time.
    Due(Instant),
    /// The broker has what follows, or nothing follows before the job changes.
    Done,
}

struct Settler<'a> {
    model: ReadModel,
    submitter: &'a Submitter,
    /// Those of the last pass, with how many events of the job were known; what it did not meet is forgotten.
    known: BTreeMap<(JobId, u32), Stage>,
}

impl Settler<'_> {
    /// Settles what is due. When the next one will be.
    async fn pass(&mut self) -> Result<Option<Instant>, ReadModelError> {
        let before = std::mem::take(&mut self.known);
        let mut is_down = false;
        for id in self.model.unsettled(MAX_JOBS)? {
            let events = self.model.summary(id)?.map_or(0, |job| job.events);
            let key = (id, events);
            let mut stage = before.get(&key).copied().unwrap_or(Stage::Due(Instant::now() + SETTLE));
            if matches!(stage, Stage::Due(due) if due <= Instant::now()) {
                // The broker is not asked for each of them whether it is still away.
                let settled = if is_down { Ok(false) } else { self.settle(id).await? };
                is_down |= matches!(&settled, Err(PublishError::Broker(error)) if is_about_all(error));
                stage = if settled.is_ok_and(|done| done) { Stage::Done } else { Stage::Due(Instant::now() + RETRY) };
            }
            self.known.insert(key, stage);
        }
        let due = self.known.values().filter_map(|stage| match stage {
            Stage::Due(due) => Some(*due),
            Stage::Done => None,
        });
        Ok(due.min())
    }

    /// Calls the job dead, if it may be. `true` when nothing is left to do before it changes.
    async fn settle(&self, id: JobId) -> Result<Result<bool, PublishError>, ReadModelError> {
        let Some(letter) = self.model.letter_of(id)? else { return Ok(Ok(true)) };
        let known = self.model.job(id)?;
        let Some((state, command)) = give_up(id, known, &letter) else {
            tracing::warn!(job = %id, letter = %letter.summary.id, "job lost its message, and its spec is not known");
            return Ok(Ok(true));
        };
        Ok(self.tell(&state, command).await)
    }

    async fn tell(&self, state: &JobState, command: Command) -> Result<bool, PublishError> {
        let context = context(self.submitter);
        let facts = match decide(state, command, context) {
            Ok(facts) => facts,
            // Its host says what comes of it.
            Err(Rejection::AttemptRunning(_)) => return Ok(true),
            Err(rejection) => {
                tracing::debug!(job = %state.id, %rejection, "job is not given up");
                return Ok(true);
            }
        };
        for (epoch, data) in facts {
            let kind = data.kind();
            let event = Event::about_job(state.id, epoch, self.submitter.source(), context.now, data);
            publish_event(self.submitter.broker().as_ref(), &event).await.inspect_err(|error| {
                tracing::warn!(job = %state.id, %error, "job lost its message and is not settled, trying again");
            })?;
            tracing::warn!(job = %state.id, kind, "job lost its message");
        }
        Ok(true)
    }
}

/// The job as far as anybody knows it, and what is to be decided about it; `None` where its spec is not known.
pub(super) fn give_up(id: JobId, known: Option<JobState>, letter: &WholeLetter) -> Option<(JobState, Command)> {
    let mut state = known.unwrap_or_else(|| JobState::new(id));
    let attempt = letter.summary.work.as_ref()?.attempt;
    let detail = letter.summary.detail.clone();
    let spec = match letter.body.bytes().and_then(|body| work(&body, letter.summary.died_at).ok()) {
        Some(Work { event, spec, .. }) => {
            state.apply(&event);
            spec
        }
        None => state.spec()?.clone(),
    };
    Some((state, Command::GiveUp { spec, attempt, detail }))
}
