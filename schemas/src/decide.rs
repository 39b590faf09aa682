//! State + command -> events, or a typed refusal. The only place where rules become facts.

use crate::command::{Begin, Command, Context, Rejection};
use crate::diagnosis::Diagnosis;
use crate::event::{
    AttemptAdopted, AttemptFailed, AttemptMessageSettled, AttemptProgressed, AttemptStarted, AttemptSuperseded,
    DeadReason, DeferredWhy, EventData, GoneWhy, JOB_LEVEL, JobCancelRequested, JobCancelled, JobDead, JobDeferred,
    JobEnqueued, JobRepublished, JobRetryScheduled, JobSnoozeRequested, JobStopRequested, Request, VmGone,
};
use crate::id::Epoch;
use crate::limits::MAX_SNOOZE_S;
use crate::retry::{self, Verdict};
use crate::seeded::{self, Bug};
use crate::spec::JobSpec;
use crate::state::{Attempt, JobState, Phase};
use crate::time::Time;

/// Another reason for a deferral is recorded after this part of the time that the job had waited: some
/// seventy events in a month at most, however often the reason changes.
const DEFERRED_NEWS_PART: u32 = 4;

/// A fact to be written, with the epoch it belongs to.
pub type Fact = (Epoch, EventData);

/// What follows from a command, all of it or nothing. `Ok(vec![])` means: nothing new.
pub fn decide(state: &JobState, command: Command, context: Context) -> Result<Vec<Fact>, Rejection> {
    match command {
        Command::Enqueue { spec, by } => enqueue(state, spec, by),
        Command::Begin(begin) => start(state, begin),
        Command::Defer { attempt, delay_ms, why, reason, spec, enqueued_at } => {
            may_start(state, "defer", attempt)?;
            let (asked_at, asked_attempt, why) = (state.asked_at, state.asked_attempt, Some(why));
            let deferred = JobDeferred { attempt, delay_ms, reason, why, spec, enqueued_at, asked_at, asked_attempt };
            let news = is_news(state, &deferred, context.now);
            Ok(news.then_some((JOB_LEVEL, EventData::JobDeferred(deferred))).into_iter().collect())
        }
        Command::Expire { spec, attempt } => expire(state, spec, attempt),
        Command::GiveUp { spec, attempt, detail } => give_up(state, spec, attempt, detail),
        Command::Progress { epoch, marks } => {
            open(state, epoch)?;
            let progressed = (epoch, EventData::AttemptProgressed(AttemptProgressed { marks: marks.clone() }));
            Ok(if marks.is_empty() { Vec::new() } else { vec![progressed] })
        }
        Command::Ready { epoch, proof } => {
            open(state, epoch)?;
            Ok(vec![(epoch, EventData::AttemptReady(proof))])
        }
        Command::Fail { epoch, diagnosis, marks } => {
            open(state, epoch)?;
            Ok(vec![(epoch, EventData::AttemptFailed(AttemptFailed { diagnosis, marks }))])
        }
        Command::SettleMessage { epoch, held_ms } => settle_message(state, epoch, held_ms),
        Command::Adopt { epoch, pid } => {
            with_vm(state, epoch)?;
            Ok(vec![(epoch, EventData::AttemptAdopted(AttemptAdopted { pid }))])
        }
        Command::Gone { epoch, why, detail } => gone(state, epoch, why, detail, context),
        Command::Lost { epoch, diagnosis, detail } => lost(state, epoch, diagnosis, detail),
        Command::Supersede { epoch, duplicate } => supersede(state, epoch, duplicate),
        Command::Abandon => abandon(state, context),
        Command::Cancel(request) => cancel(state, request),
        Command::SettleCancel { attempt } => settle_cancel(state, attempt),
        Command::Stop(request) => stop(state, request),
        Command::Snooze { until, request } => snooze(state, until, request, context.now),
        Command::Retry { by, spec } => retry_by_hand(state, by, spec, context),
    }
}

fn enqueue(state: &JobState, spec: JobSpec, by: String) -> Result<Vec<Fact>, Rejection> {
    match original_spec(state) {
        None => Ok(vec![(JOB_LEVEL, EventData::JobEnqueued(JobEnqueued { spec, by }))]),
        Some(known) if *known == spec => Err(Rejection::AlreadyEnqueued),
        Some(_) => Err(Rejection::KeyReused),
    }
}

/// The spec the job was enqueued with, also where only later events are known.
fn original_spec(state: &JobState) -> Option<&JobSpec> {
    let enqueued = state.enqueued.as_ref().map(|e| &e.value.spec);
    let started = || state.attempts.values().find_map(|a| a.started.as_ref()).map(|s| &s.value.spec);
    enqueued.or_else(started).or_else(|| state.spec())
}

/// Whether a message about this attempt still asks for something.
fn may_start(state: &JobState, command: &'static str, attempt: u32) -> Result<(), Rejection> {
    let running = state.attempts.iter().find(|(_, a)| a.has_vm());
    if let Some((running, _)) = running.filter(|_| !seeded::is_on(Bug::SecondVm)) {
        return Err(Rejection::AttemptRunning(*running));
    }
    let phase = state.phase();
    // Closed for this attempt number: a late delivery of something that has ended.
    let may_be_closed = seeded::is_on(Bug::DeadRunsAgain);
    if !may_be_closed && phase.is_closed() && attempt <= state.last_attempt().max(state.settled_attempt()).max(1) {
        return Err(Rejection::WrongPhase { command, phase, needs: "queued or retrying" });
    }
    // A later attempt was scheduled: this message was settled and its acknowledgement got lost, or
    // somebody asked for a new attempt meanwhile.
    if attempt < state.last_attempt() {
        return Err(Rejection::AttemptEnded(Epoch::first(attempt)));
    }
    if state.pending_cancel().is_some() { Err(Rejection::CancelPending) } else { Ok(()) }
}

/// Whether readers learn something from a deferral. A job may wait for weeks: the same reason is not recorded
/// twice, and one that alternates the less often the longer the job waits.
fn is_news(state: &JobState, deferred: &JobDeferred, now: Time) -> bool {
    let Some(last) = state.deferred.as_ref().filter(|last| last.value.attempt == deferred.attempt) else { return true };
    let same_kind = last.value.why == deferred.why;
    if deferred.why == Some(DeferredWhy::Snoozed) {
        // Its text says until when, which a user asked for; all other texts only count.
        return !same_kind || last.value.reason != deferred.reason;
    }
    let waited = last.at.since(deferred.enqueued_at);
    !same_kind && now.since(last.at) >= waited / DEFERRED_NEWS_PART
}

fn settle_message(state: &JobState, epoch: Epoch, held_ms: u64) -> Result<Vec<Fact>, Rejection> {
    let attempt = with_vm(state, epoch)?;
    let settled = (epoch, EventData::AttemptMessageSettled(AttemptMessageSettled { held_ms }));
    Ok(attempt.message_settled.is_none().then_some(settled).into_iter().collect())
}

fn start(state: &JobState, begin: Begin) -> Result<Vec<Fact>, Rejection> {
    let Begin { epoch, host, vm, driver, address, spec, enqueued_at } = begin;
    if state.attempts.get(&epoch).is_some_and(|a| a.started.is_some()) {
        return Err(Rejection::AttemptExists(epoch));
    }
    may_start(state, "begin", epoch.attempt)?;
    let JobState { asked_at, asked_attempt, .. } = *state;
    let started = AttemptStarted { host, vm, driver, address, spec, enqueued_at, asked_at, asked_attempt };
    Ok(vec![(epoch, EventData::AttemptStarted(started))])
}

fn expire(state: &JobState, spec: JobSpec, attempt: u32) -> Result<Vec<Fact>, Rejection> {
    may_start(state, "expire", attempt)?;
    let phase = state.phase();
    if !matches!(phase, Phase::Queued | Phase::Retrying) {
        return Err(Rejection::WrongPhase { command: "expire", phase, needs: "queued or retrying" });
    }
    let dead = JobDead { attempt, reason: DeadReason::Expired, diagnosis: None, detail: String::new(), spec };
    Ok(vec![(Epoch::first(attempt), EventData::JobDead(dead))])
}

/// Without its message a job that waits would wait for ever. One that has a VM needs none; what comes
/// of it is its host's to say.
fn give_up(state: &JobState, spec: JobSpec, attempt: u32, detail: String) -> Result<Vec<Fact>, Rejection> {
    if let Some((running, _)) = state.tries().find(|(_, a)| a.has_vm()) {
        return Err(Rejection::AttemptRunning(running));
    }
    if state.is_past(attempt) {
        return Err(Rejection::AttemptEnded(Epoch::first(attempt)));
    }
    let data = match state.pending_cancel() {
        Some(cancel) => EventData::JobCancelled(JobCancelled { attempt, by: cancel.value.by.clone() }),
        None => {
            let (reason, diagnosis) = (DeadReason::MessageLost, last_failure(state));
            EventData::JobDead(JobDead { attempt, reason, diagnosis, detail, spec })
        }
    };
    Ok(vec![(Epoch::first(attempt), data)])
}

/// Why its latest attempt failed, if one did.
fn last_failure(state: &JobState) -> Option<Diagnosis> {
    let failed = state.attempts.values().rev().find_map(|a| a.failed.as_ref());
    failed.map(|failed| failed.value.diagnosis.clone())
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
    let cancel = state.pending_cancel();
    if attempt.is_booting() && cancel.is_none() && !matches!(why, GoneWhy::Stopped | GoneWhy::Duplicate) {
        // Nothing would follow from it: the job would hang between failed and retried.
        let needs = "ready, or told why it failed first";
        return Err(Rejection::WrongPhase { command: "gone", phase: state.phase(), needs });
    }
    let mut facts = vec![(epoch, EventData::VmGone(VmGone { why, detail }))];
    if let Some(cancel) = cancel {
        let by = cancel.value.by.clone();
        facts.push((Epoch::first(epoch.attempt), EventData::JobCancelled(JobCancelled { attempt: epoch.attempt, by })));
    } else if attempt.superseded.is_none() {
        facts.extend(after_failure(attempt, epoch, context));
    }
    Ok(facts)
}

/// What follows a failed try: another attempt, or none.
fn after_failure(attempt: &Attempt, epoch: Epoch, context: Context) -> Option<Fact> {
    let diagnosis = attempt.failed.as_ref()?.value.diagnosis.clone();
    // The spec this very attempt was made with: other known ones may be older or newer.
    Some(again(&attempt.started.as_ref()?.value, epoch.attempt, diagnosis, context))
}

/// Another attempt after one that started so, or none.
fn again(started: &AttemptStarted, attempt: u32, diagnosis: Diagnosis, context: Context) -> Fact {
    let AttemptStarted { spec, enqueued_at, asked_at, asked_attempt, .. } = started.clone();
    let cause = diagnosis.cause;
    let dead = |reason, spec| {
        let dead = JobDead { attempt, reason, diagnosis: Some(diagnosis), detail: String::new(), spec };
        (Epoch::first(attempt), EventData::JobDead(dead))
    };
    match retry::after_failure(&spec.retry, attempt, cause, context.jitter) {
        Verdict::Again(wait) => {
            let next = Epoch::first(attempt.saturating_add(1));
            let scheduled = JobRetryScheduled {
                attempt: next.attempt,
                not_before: context.now.plus(wait),
                delay_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                cause: Some(cause),
                by: None,
                spec,
                enqueued_at,
                asked_at,
                asked_attempt,
            };
            (next, EventData::JobRetryScheduled(scheduled))
        }
        Verdict::NotRetryable => dead(DeadReason::NotRetryable, spec),
        Verdict::Exhausted { .. } => dead(DeadReason::AttemptsExhausted, spec),
    }
}

/// The host of the latest attempt is silent: the job goes on without it, as after an attempt that failed.
/// Should the host come back with its VM up, the job is ready all the same.
fn abandon(state: &JobState, context: Context) -> Result<Vec<Fact>, Rejection> {
    let phase = state.phase();
    let last = state.last_attempt();
    if let Some(cancel) = state.pending_cancel() {
        let by = cancel.value.by.clone();
        return Ok(vec![(Epoch::first(last), EventData::JobCancelled(JobCancelled { attempt: last, by }))]);
    }
    let tries = || state.tries().filter(|(epoch, _)| epoch.attempt == last);
    let started = tries().find_map(|(_, a)| a.started.as_ref());
    let (Phase::Booting | Phase::Failing, Some(started)) = (phase, started) else {
        return Err(Rejection::WrongPhase { command: "abandon", phase, needs: "booting or failing" });
    };
    let known = tries().find_map(|(_, a)| a.failed.as_ref()).map(|failed| failed.value.diagnosis.clone());
    let diagnosis = known.unwrap_or_else(|| Diagnosis::host_silent(&started.value.host));
    Ok(vec![again(&started.value, last, diagnosis, context)])
}

fn lost(state: &JobState, epoch: Epoch, diagnosis: Diagnosis, detail: String) -> Result<Vec<Fact>, Rejection> {
    let attempt = with_vm(state, epoch)?;
    if attempt.is_up() {
        // A VM that was up has no message any more: it goes with Gone, as exited.
        let needs = "booting or failing";
        return Err(Rejection::WrongPhase { command: "lost", phase: state.phase(), needs });
    }
    let failed = EventData::AttemptFailed(AttemptFailed { diagnosis, marks: Vec::new() });
    let gone = EventData::VmGone(VmGone { why: GoneWhy::Failed, detail });
    let told = attempt.failed.is_some();
    Ok((!told).then_some((epoch, failed)).into_iter().chain([(epoch, gone)]).collect())
}

fn supersede(state: &JobState, epoch: Epoch, duplicate: AttemptSuperseded) -> Result<Vec<Fact>, Rejection> {
    let is_it = |a: &Attempt| a.started.as_ref().is_some_and(|s| s.value.vm == duplicate.vm);
    let attempt = state.tries().find(|(e, a)| *e == epoch && is_it(a)).map(|(_, a)| a);
    let attempt = attempt.ok_or(Rejection::UnknownAttempt(epoch))?;
    if !attempt.has_vm() {
        return Err(Rejection::AttemptEnded(epoch));
    }
    let told = attempt.superseded.is_some();
    Ok(if told { Vec::new() } else { vec![(epoch, EventData::AttemptSuperseded(duplicate))] })
}

fn cancel(state: &JobState, request: Request) -> Result<Vec<Fact>, Rejection> {
    if state.pending_cancel().is_some() {
        return Ok(Vec::new());
    }
    let phase = state.phase();
    if phase.is_closed() {
        return Err(Rejection::WrongPhase { command: "cancel", phase, needs: "queued, booting, retrying or ready" });
    }
    let Request { by, reason } = request;
    let requested = JobCancelRequested { asked_attempt: Some(state.asked_attempt), by, reason };
    Ok(vec![(JOB_LEVEL, EventData::CancelRequested(requested))])
}

fn settle_cancel(state: &JobState, attempt: u32) -> Result<Vec<Fact>, Rejection> {
    if let Some((epoch, _)) = state.tries().find(|(_, a)| a.has_vm()) {
        return Err(Rejection::VmStillThere(epoch));
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
    let Request { by, reason } = request;
    let requested = JobStopRequested { attempt: Some(state.last_attempt()), by, reason };
    Ok(if already { Vec::new() } else { vec![(JOB_LEVEL, EventData::StopRequested(requested))] })
}

fn snooze(state: &JobState, until: Time, request: Request, now: Time) -> Result<Vec<Fact>, Rejection> {
    let phase = state.phase();
    let (Phase::Retrying, Some(due)) = (phase, state.due(state.last_attempt())) else {
        return Err(Rejection::WrongPhase { command: "snooze", phase, needs: "retrying" });
    };
    if until <= due.max(now) {
        return Err(Rejection::DueLater(due));
    }
    if until.since(now).as_secs() > MAX_SNOOZE_S {
        return Err(Rejection::SnoozedTooLong);
    }
    let Request { by, reason } = request;
    let snoozed = JobSnoozeRequested { attempt: state.last_attempt(), until, by, reason };
    Ok(vec![(JOB_LEVEL, EventData::SnoozeRequested(snoozed))])
}

fn retry_by_hand(
    state: &JobState,
    by: String,
    spec: Option<JobSpec>,
    context: Context,
) -> Result<Vec<Fact>, Rejection> {
    let phase = state.phase();
    // A cancellation that is not carried out yet is overtaken by a number of its own.
    if phase == Phase::Queued && spec.is_none() && state.pending_cancel().is_none() && state.enqueued.is_some() {
        let republished = JobRepublished { attempt: 1, reason: format!("{by} asked"), by: Some(by) };
        return Ok(vec![(JOB_LEVEL, EventData::JobRepublished(republished))]);
    }
    // A try without a VM whose host left the rest to another one.
    let is_left = phase == Phase::Failing && !state.tries().any(|(_, a)| a.has_vm());
    if !(phase.is_closed() || is_left || matches!(phase, Phase::Queued | Phase::Retrying)) {
        let needs = "queued, retrying, dead, cancelled or stopped";
        return Err(Rejection::WrongPhase { command: "retry", phase, needs });
    }
    let spec = spec.or_else(|| state.spec().cloned()).ok_or(Rejection::UnknownJob)?;
    // Also when one is scheduled already: the new number overtakes it, and the old one, when it
    // arrives, is recognised as overtaken.
    let known = state.last_attempt().max(state.settled_attempt()).max(state.asked_attempt);
    // The first one was asked for by who enqueued the job.
    let attempt = known.max(1).saturating_add(1);
    let enqueued_at: Time = state.enqueued_at().unwrap_or(context.now);
    let scheduled = JobRetryScheduled {
        attempt,
        not_before: context.now,
        delay_ms: 0,
        cause: None,
        by: Some(by),
        spec,
        enqueued_at,
        asked_at: Some(context.now),
        asked_attempt: attempt,
    };
    Ok(vec![(Epoch::first(attempt), EventData::JobRetryScheduled(scheduled))])
}

#[cfg(test)]
mod tests;
