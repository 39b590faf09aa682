//! State + command -> events, or a typed refusal. The only place where rules become facts.

use crate::command::{Begin, Command, Context, Rejection};
use crate::event::{
    AttemptAdopted, AttemptFailed, AttemptProgressed, AttemptStarted, DeadReason, EventData, GoneWhy, JOB_LEVEL,
    JobCancelled, JobDead, JobDeferred, JobEnqueued, JobRetryScheduled, Request, VmGone,
};
use crate::id::Epoch;
use crate::retry::{self, Verdict};
use crate::spec::JobSpec;
use crate::state::{Attempt, JobState, Phase};
use crate::time::Time;

/// A fact to be written, with the epoch it belongs to.
pub type Fact = (Epoch, EventData);

/// What follows from a command, all of it or nothing. `Ok(vec![])` means: nothing new.
pub fn decide(state: &JobState, command: Command, context: Context) -> Result<Vec<Fact>, Rejection> {
    match command {
        Command::Enqueue { spec, by } => enqueue(state, spec, by),
        Command::Begin(begin) => start(state, begin),
        Command::Defer { attempt, delay_ms, reason, spec, enqueued_at } => {
            Ok(vec![(JOB_LEVEL, EventData::JobDeferred(JobDeferred { attempt, delay_ms, reason, spec, enqueued_at }))])
        }
        Command::Expire { spec, attempt } => expire(state, spec, attempt),
        Command::Progress { epoch, marks } => {
            open(state, epoch)?;
            Ok(vec![(epoch, EventData::AttemptProgressed(AttemptProgressed { marks }))])
        }
        Command::Ready { epoch, proof } => {
            open(state, epoch)?;
            Ok(vec![(epoch, EventData::AttemptReady(proof))])
        }
        Command::Fail { epoch, diagnosis, marks } => {
            open(state, epoch)?;
            Ok(vec![(epoch, EventData::AttemptFailed(AttemptFailed { diagnosis, marks }))])
        }
        Command::Adopt { epoch, pid } => {
            with_vm(state, epoch)?;
            Ok(vec![(epoch, EventData::AttemptAdopted(AttemptAdopted { pid }))])
        }
        Command::Gone { epoch, why, detail } => gone(state, epoch, why, detail, context),
        Command::Cancel(request) => cancel(state, request),
        Command::SettleCancel { attempt } => settle_cancel(state, attempt),
        Command::Stop(request) => stop(state, request),
        Command::Retry { by, spec } => retry_by_hand(state, by, spec, context),
    }
}

fn enqueue(state: &JobState, spec: JobSpec, by: String) -> Result<Vec<Fact>, Rejection> {
    match &state.enqueued {
        None => Ok(vec![(JOB_LEVEL, EventData::JobEnqueued(JobEnqueued { spec, by }))]),
        Some(known) if known.value.spec == spec => Err(Rejection::AlreadyEnqueued),
        Some(_) => Err(Rejection::KeyReused),
    }
}

fn start(state: &JobState, begin: Begin) -> Result<Vec<Fact>, Rejection> {
    let Begin { epoch, host, vm, driver, address, spec, enqueued_at } = begin;
    if state.attempts.get(&epoch).is_some_and(|a| a.started.is_some()) {
        return Err(Rejection::AttemptExists(epoch));
    }
    if let Some((running, _)) = state.attempts.iter().find(|(_, a)| a.has_vm()) {
        return Err(Rejection::AttemptRunning(*running));
    }
    if state.pending_cancel().is_some() {
        return Err(Rejection::CancelPending);
    }
    let phase = state.phase();
    // Closed for this attempt number: a late delivery of something that has ended.
    if phase.is_closed() && epoch.attempt <= state.last_attempt().max(1) {
        return Err(Rejection::WrongPhase { command: "begin", phase, needs: "queued or retrying" });
    }
    let started = AttemptStarted { host, vm, driver, address, spec, enqueued_at };
    Ok(vec![(epoch, EventData::AttemptStarted(started))])
}

fn expire(state: &JobState, spec: JobSpec, attempt: u32) -> Result<Vec<Fact>, Rejection> {
    let phase = state.phase();
    if !matches!(phase, Phase::Queued | Phase::Retrying) {
        return Err(Rejection::WrongPhase { command: "expire", phase, needs: "queued or retrying" });
    }
    let dead = JobDead { attempt, reason: DeadReason::Expired, diagnosis: None, spec };
    Ok(vec![(Epoch::first(attempt), EventData::JobDead(dead))])
}

fn with_vm(state: &JobState, epoch: Epoch) -> Result<&Attempt, Rejection> {
    let attempt = state.attempts.get(&epoch).filter(|a| a.started.is_some());
    let attempt = attempt.ok_or(Rejection::UnknownAttempt(epoch))?;
    if attempt.has_vm() { Ok(attempt) } else { Err(Rejection::AttemptEnded(epoch)) }
}

fn open(state: &JobState, epoch: Epoch) -> Result<(), Rejection> {
    let attempt = with_vm(state, epoch)?;
    if attempt.is_booting() { Ok(()) } else { Err(Rejection::AttemptEnded(epoch)) }
}

fn gone(
    state: &JobState,
    epoch: Epoch,
    why: GoneWhy,
    detail: String,
    context: Context,
) -> Result<Vec<Fact>, Rejection> {
    let attempt = with_vm(state, epoch)?;
    let mut facts = vec![(epoch, EventData::VmGone(VmGone { why, detail }))];
    if let Some(cancel) = state.pending_cancel() {
        let by = cancel.value.by.clone();
        facts.push((Epoch::first(epoch.attempt), EventData::JobCancelled(JobCancelled { attempt: epoch.attempt, by })));
    } else if let (Some(failed), Some(started)) = (&attempt.failed, &attempt.started) {
        let diagnosis = &failed.value.diagnosis;
        let spec = state.spec().unwrap_or(&started.value.spec).clone();
        let verdict = retry::after_failure(&spec.retry, epoch.attempt, diagnosis.cause, context.jitter);
        let next = Epoch::first(epoch.attempt + 1);
        facts.push(match verdict {
            Verdict::Again(wait) => {
                let scheduled = JobRetryScheduled {
                    attempt: next.attempt,
                    not_before: context.now.plus(wait),
                    delay_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                    cause: Some(diagnosis.cause),
                    by: None,
                    spec,
                    enqueued_at: started.value.enqueued_at,
                };
                (next, EventData::JobRetryScheduled(scheduled))
            }
            Verdict::NotRetryable => dead(epoch, DeadReason::NotRetryable, failed.value.clone(), spec),
            Verdict::Exhausted { .. } => dead(epoch, DeadReason::AttemptsExhausted, failed.value.clone(), spec),
        });
    }
    Ok(facts)
}

fn dead(epoch: Epoch, reason: DeadReason, failed: AttemptFailed, spec: JobSpec) -> Fact {
    let diagnosis = Some(failed.diagnosis);
    let dead = JobDead { attempt: epoch.attempt, reason, diagnosis, spec };
    (Epoch::first(epoch.attempt), EventData::JobDead(dead))
}

fn cancel(state: &JobState, request: Request) -> Result<Vec<Fact>, Rejection> {
    if state.pending_cancel().is_some() {
        return Ok(Vec::new());
    }
    let phase = state.phase();
    if phase.is_closed() {
        return Err(Rejection::WrongPhase { command: "cancel", phase, needs: "queued, booting, retrying or ready" });
    }
    Ok(vec![(JOB_LEVEL, EventData::CancelRequested(request))])
}

fn settle_cancel(state: &JobState, attempt: u32) -> Result<Vec<Fact>, Rejection> {
    if let Some((epoch, _)) = state.attempts.iter().find(|(_, a)| a.has_vm()) {
        return Err(Rejection::VmStillThere(*epoch));
    }
    let Some(request) = state.pending_cancel() else {
        let needs = "being cancelled";
        return Err(Rejection::WrongPhase { command: "settle-cancel", phase: state.phase(), needs });
    };
    let by = request.value.by.clone();
    Ok(vec![(Epoch::first(attempt), EventData::JobCancelled(JobCancelled { attempt, by }))])
}

fn stop(state: &JobState, request: Request) -> Result<Vec<Fact>, Rejection> {
    let phase = state.phase();
    if phase != Phase::Ready {
        return Err(Rejection::WrongPhase { command: "stop", phase, needs: "ready (cancel ends the others)" });
    }
    let already = state.attempts.keys().any(|epoch| state.pending_stop(*epoch).is_some());
    Ok(if already { Vec::new() } else { vec![(JOB_LEVEL, EventData::StopRequested(request))] })
}

fn retry_by_hand(
    state: &JobState,
    by: String,
    spec: Option<JobSpec>,
    context: Context,
) -> Result<Vec<Fact>, Rejection> {
    let phase = state.phase();
    if !(phase.is_closed() || phase == Phase::Retrying) {
        return Err(Rejection::WrongPhase { command: "retry", phase, needs: "dead, cancelled, stopped or retrying" });
    }
    let spec = spec.or_else(|| state.spec().cloned()).ok_or(Rejection::UnknownJob)?;
    // Also when one is scheduled already: the new number overtakes it, and the old one, when it
    // arrives, is recognised as overtaken.
    let attempt = state.last_attempt().max(settled_attempt(state)) + 1;
    let enqueued_at: Time = state.enqueued_at().unwrap_or(context.now);
    let scheduled = JobRetryScheduled {
        attempt,
        not_before: context.now,
        delay_ms: 0,
        cause: None,
        by: Some(by),
        spec,
        enqueued_at,
    };
    Ok(vec![(Epoch::first(attempt), EventData::JobRetryScheduled(scheduled))])
}

/// The attempt number that a final event names; it may be higher than any attempt made.
fn settled_attempt(state: &JobState) -> u32 {
    let dead = state.dead.keys().next_back().copied().unwrap_or(0);
    dead.max(state.cancelled.keys().next_back().copied().unwrap_or(0))
}

#[cfg(test)]
mod tests;
