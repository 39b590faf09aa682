//! Given a history, when a command comes, then these facts or this refusal.

use std::collections::BTreeMap;

use crate::command::{Begin, Command, Rejection};
use crate::diagnosis::Cause;
use crate::event::{AttemptSuperseded, DeadReason, DeferredWhy, EventData, GoneWhy, Stage};
use crate::fixtures::*;
use crate::id::{Epoch, VmId};
use crate::state::Phase;

/// One history for every place a job can be in.
fn places() -> Vec<(&'static str, History)> {
    let flaky = || fail(e(1), Cause::AgentNotListening);
    let up = || vec![enqueue(), begin(e(1)), ready(e(1))];
    let then = |mut before: Vec<Command>, more: Vec<Command>| {
        before.extend(more);
        given(before)
    };
    let retrying = || vec![enqueue(), begin(e(1)), flaky(), gone(e(1), GoneWhy::Failed)];
    vec![
        ("unknown", given([])),
        ("queued", given([enqueue()])),
        ("booting", given([enqueue(), begin(e(1))])),
        ("ready", given(up())),
        ("failing", given([enqueue(), begin(e(1)), flaky()])),
        ("lost", given([enqueue(), begin(e(1)), lost(e(1))])),
        ("retrying", given(retrying())),
        ("dead", given([enqueue(), begin(e(1)), fail(e(1), Cause::ImageInvalid), gone(e(1), GoneWhy::Failed)])),
        ("stopped", then(up(), vec![Command::Stop(request("bob")), gone(e(1), GoneWhy::Stopped)])),
        ("cancelling", given([enqueue(), begin(e(1)), cancel()])),
        ("cancelled", given([enqueue(), begin(e(1)), cancel(), gone(e(1), GoneWhy::Cancelled)])),
        ("cancel queued", given([enqueue(), cancel()])),
        ("asked again", then(retrying(), vec![retry()])),
    ]
}

fn defer(attempt: u32, why: DeferredWhy, reason: &str) -> Command {
    Command::Defer { attempt, delay_ms: 1_000, why, reason: reason.into(), spec: spec(), enqueued_at: at(0) }
}

fn commands() -> Vec<(&'static str, Command)> {
    let redelivered = Epoch { attempt: 1, delivery: 1 };
    let defer = |attempt| defer(attempt, DeferredWhy::Full, "full");
    let vm = VmId::derive(job(), e(1), &host("h-1"));
    let duplicate = AttemptSuperseded { host: host("h-1"), vm, kept: None };
    let mut other = spec();
    other.vcpus = 2;
    vec![
        ("enqueue", enqueue()),
        ("enqueue other", Command::Enqueue { spec: other, by: "ada".into() }),
        ("begin 1.0", begin(e(1))),
        ("begin 1.1", begin(redelivered)),
        ("begin 2.0", begin(e(2))),
        ("defer 1", defer(1)),
        ("defer 2", defer(2)),
        ("expire 1", Command::Expire { spec: spec(), attempt: 1 }),
        ("expire 2", Command::Expire { spec: spec(), attempt: 2 }),
        ("give up 1", give_up(1)),
        ("give up 2", give_up(2)),
        ("progress", Command::Progress { epoch: e(1), marks: vec![mark(Stage::DhcpAck, 5)] }),
        ("ready", ready(e(1))),
        ("fail", fail(e(1), Cause::AgentNotListening)),
        ("settle message", Command::SettleMessage { epoch: e(1), held_ms: 600_000 }),
        ("adopt", Command::Adopt { epoch: e(1), pid: 77 }),
        ("gone failed", gone(e(1), GoneWhy::Failed)),
        ("gone cancelled", gone(e(1), GoneWhy::Cancelled)),
        ("gone stopped", gone(e(1), GoneWhy::Stopped)),
        ("gone exited", gone(e(1), GoneWhy::Exited)),
        ("gone duplicate", gone(e(1), GoneWhy::Duplicate)),
        ("lost", lost(e(1))),
        ("supersede", Command::Supersede { epoch: e(1), duplicate }),
        ("cancel", cancel()),
        ("settle cancel", Command::SettleCancel { attempt: 1 }),
        ("stop", Command::Stop(request("bob"))),
        ("retry", retry()),
        ("snooze", snooze(3_600)),
        ("abandon", Command::Abandon),
    ]
}

/// Every command in every place. A changed line is a changed rule: read it before accepting it.
#[test]
fn every_command_in_every_place() {
    let mut table = String::new();
    for (name, command) in commands() {
        let mut places_by_outcome = BTreeMap::<String, Vec<&str>>::new();
        for (place, history) in places() {
            places_by_outcome.entry(outcome(&history.when(command.clone()))).or_default().push(place);
        }
        table.push_str(&format!("{name}\n"));
        for (outcome, places) in places_by_outcome {
            table.push_str(&format!("    {outcome}: {}\n", places.join(", ")));
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn every_place_is_in_the_phase_that_it_is_named_after() {
    for (place, history) in places() {
        let expected = match place {
            "unknown" => "queued",
            "lost" => "failing",
            "cancelling" => "booting",
            "cancel queued" => "queued",
            "asked again" => "retrying",
            same => same,
        };
        assert_eq!(history.state.phase().as_str(), expected, "{place}");
    }
}

#[test]
fn every_refusal_says_what_would_be_right() {
    for (name, command) in commands() {
        for (place, history) in places() {
            if let Err(rejection) = history.when(command.clone()) {
                let text = rejection.to_string();
                assert!(text.len() > 10 && !text.contains("{"), "{name} when {place}: {text}");
            }
        }
    }
}

#[test]
fn a_retry_keeps_the_spec_and_the_time_of_the_attempt_that_failed() {
    // This host had attempt 2 with an old spec; by hand somebody asked for attempt 4 with a new one.
    let mut edited = spec();
    edited.vcpus = 8;
    edited.retry.max_attempts = 9;
    let mut history =
        given([enqueue(), begin(e(1)), fail(e(1), Cause::AgentNotListening), gone(e(1), GoneWhy::Failed)]);
    let Command::Begin(begun) = begin(e(4)) else { unreachable!() };
    history.tell(Command::Begin(Begin { spec: edited.clone(), ..begun })).unwrap();
    history.tell(fail(e(4), Cause::AgentNotListening)).unwrap();
    let facts = history.when(gone(e(4), GoneWhy::Failed)).unwrap();
    let Some((epoch, EventData::JobRetryScheduled(next))) = facts.last() else { panic!("{facts:?}") };
    assert_eq!((*epoch, next.attempt), (e(5), 5));
    assert_eq!(next.spec, edited);
    assert_eq!(next.enqueued_at, at(0));
}

#[test]
fn the_last_allowed_attempt_ends_dead_with_its_diagnosis() {
    let flaky = |n| [begin(e(n)), fail(e(n), Cause::AgentNotListening), gone(e(n), GoneWhy::Failed)];
    let history = given([enqueue()].into_iter().chain(flaky(1)).chain(flaky(2)));
    let dead = &history.state.dead[&2].value;
    assert_eq!(dead.reason, DeadReason::AttemptsExhausted);
    assert_eq!(dead.diagnosis.as_ref().unwrap().cause, Cause::AgentNotListening);
}

#[test]
fn an_attempt_asked_for_by_hand_overtakes_the_scheduled_one() {
    let mut history =
        given([enqueue(), begin(e(1)), fail(e(1), Cause::AgentNotListening), gone(e(1), GoneWhy::Failed), retry()]);
    assert_eq!(history.when(begin(e(2))), Err(Rejection::AttemptEnded(e(2))), "scheduled, overtaken");
    history.tell(begin(e(3))).unwrap();
    history.tell(ready(e(3))).unwrap();
    assert_eq!(history.state.phase(), Phase::Ready);
}

#[test]
fn a_host_with_a_stale_wish_to_cancel_lets_a_job_through_that_was_asked_for_since() {
    // h-2 heard of the cancellation, which h-1 settled; then somebody asked for the job again.
    let mut first = given([enqueue(), begin(e(1)), cancel(), gone(e(1), GoneWhy::Cancelled)]);
    let wish = first.events.iter().find(|e| matches!(e.data, EventData::CancelRequested(_))).unwrap().clone();
    let asked = first.tell(retry()).unwrap().remove(0);

    let mut second = History::on("h-2");
    second.state.apply(&wish);
    assert_eq!(second.when(begin_on("h-2", e(2))), Err(Rejection::CancelPending), "without the delivery");
    second.state.apply(&asked);
    second.seconds = first.seconds;
    second.tell(begin_on("h-2", e(2))).unwrap();
    second.tell(fail(e(2), Cause::Unknown)).unwrap();
    let facts = second.when(gone(e(2), GoneWhy::Failed)).unwrap();
    assert_eq!(outcome(&Ok(facts)), "vm.gone+job.dead", "not cancelled: two attempts are all it may have");

    // The same through a deferral, which carries the time on.
    let mut third = History::on("h-3");
    third.state.apply(&wish);
    let mut deferring = History::on("h-1");
    deferring.state.apply(&asked);
    let deferred = deferring.tell(defer(2, DeferredWhy::Full, "full")).unwrap();
    third.state.apply(&deferred[0]);
    third.tell(begin_on("h-3", e(2))).unwrap();
}

#[test]
fn a_snooze_puts_off_the_attempt_that_waits_and_no_other() {
    let mut history =
        given([enqueue(), begin(e(1)), fail(e(1), Cause::AgentNotListening), gone(e(1), GoneWhy::Failed)]);
    let due = history.state.due(2).unwrap();
    assert_eq!(history.when(snooze(0)), Err(Rejection::DueLater(due)));
    assert_eq!(history.when(snooze(crate::limits::MAX_SNOOZE_S + 3_600)), Err(Rejection::SnoozedTooLong));
    history.tell(snooze(3_600)).unwrap();
    assert_eq!(history.state.due(2), Some(at(3_600)));
    assert_eq!(history.when(snooze(1_800)), Err(Rejection::DueLater(at(3_600))));
    assert_eq!(history.state.phase(), Phase::Retrying);
    history.tell(retry()).unwrap();
    assert!(history.state.due(3).unwrap() < at(3_600), "an attempt asked for by hand does not wait");
}

#[test]
fn a_snooze_may_be_as_long_as_the_limit_and_no_longer() {
    let failed = [enqueue(), begin(e(1)), fail(e(1), Cause::AgentNotListening), gone(e(1), GoneWhy::Failed)];
    let history = given(failed);
    let longest = history.seconds + crate::limits::MAX_SNOOZE_S;
    assert_eq!(outcome(&history.when(snooze(longest))), "job.snooze-requested");
    assert_eq!(history.when(snooze(longest + 1)), Err(Rejection::SnoozedTooLong));
}

#[test]
fn a_try_whose_host_is_silent_fails_of_that_and_not_of_what_an_earlier_one_failed_of() {
    let first = [enqueue(), begin(e(1)), fail(e(1), Cause::AgentNotListening), gone(e(1), GoneWhy::Failed)];
    let history = given(first.into_iter().chain([begin_on("h-1", e(2))]));
    let facts = history.when(Command::Abandon).unwrap();
    let [(epoch, EventData::JobDead(dead))] = facts.as_slice() else { panic!("{facts:?}") };
    assert_eq!((*epoch, dead.attempt, dead.reason), (e(2), 2, DeadReason::AttemptsExhausted));
    assert_eq!(dead.diagnosis.as_ref().unwrap().cause, Cause::Interrupted);
}

#[test]
fn a_job_whose_host_is_silent_waits_for_its_next_attempt_and_a_cancelled_one_ends() {
    let history = given([enqueue(), begin(e(1))]);
    let facts = history.when(Command::Abandon).unwrap();
    let [(epoch, EventData::JobRetryScheduled(next))] = facts.as_slice() else { panic!("{facts:?}") };
    assert_eq!((*epoch, next.attempt, next.cause), (e(2), 2, Some(Cause::Interrupted)));
    let history = given([enqueue(), begin(e(1)), cancel()]);
    let facts = history.when(Command::Abandon).unwrap();
    let [(epoch, EventData::JobCancelled(cancelled))] = facts.as_slice() else { panic!("{facts:?}") };
    assert_eq!((*epoch, cancelled.attempt, cancelled.by.as_str()), (e(1), 1, "bob"));
}

#[test]
fn a_vm_that_no_try_has_is_not_superseded_in_the_name_of_another() {
    let history = given([enqueue(), begin(e(1))]);
    let supersede = |epoch, of| {
        let duplicate = AttemptSuperseded { host: host(of), vm: VmId::derive(job(), e(1), &host(of)), kept: None };
        outcome(&history.when(Command::Supersede { epoch, duplicate }))
    };
    assert_eq!(supersede(e(1), "h-1"), "attempt.superseded");
    assert_eq!(supersede(e(1), "h-2"), "UnknownAttempt", "the epoch, but another host's VM");
    assert_eq!(supersede(e(2), "h-1"), "UnknownAttempt", "the VM, but another epoch");
}

#[test]
fn a_deferral_is_recorded_when_its_reason_changes_and_not_each_time() {
    let mut history = given([enqueue()]);
    let mut events = |why, reason: &'static str| history.tell(defer(1, why, reason)).unwrap().len();
    assert_eq!(events(DeferredWhy::Full, "2 slots free"), 1);
    for reason in ["1 slot free", "no slot free", "2 slots free"] {
        assert_eq!(events(DeferredWhy::Full, reason), 0, "the numbers are not the reason");
    }
    assert_eq!(events(DeferredWhy::Address, "no address"), 1);
    assert_eq!(events(DeferredWhy::Snoozed, "until 7"), 1);
    assert_eq!(events(DeferredWhy::Snoozed, "until 7"), 0);
    assert_eq!(events(DeferredWhy::Snoozed, "until 9"), 1, "until when is what a reader wants to know");
}

/// A month of a reason that alternates each minute, whatever the producer's clock said.
#[test]
fn reasons_that_alternate_are_recorded_ever_more_rarely() {
    const HOUR: u64 = 3_600;
    for enqueued in [0, HOUR, 100_000 * HOUR] {
        let mut history = given([enqueue()]);
        let mut events = 0;
        for minute in 0..30 * 24 * 60 {
            let why = if minute % 2 == 0 { DeferredWhy::Full } else { DeferredWhy::Booting };
            history.seconds = HOUR + 60 * minute;
            let mut command = defer(1, why, "");
            if let Command::Defer { enqueued_at, .. } = &mut command {
                *enqueued_at = at(enqueued);
            }
            events += history.tell(command).unwrap().len();
        }
        assert!((20..100).contains(&events), "{events} events of a job enqueued at {enqueued}");
    }
}

/// A host knows of the later attempt only by having put it back itself.
#[test]
fn a_message_of_an_earlier_attempt_than_the_one_that_waits_asks_for_nothing() {
    let mut history = given([]);
    history.tell(defer(2, DeferredWhy::Booting, "")).unwrap();
    for command in [defer(1, DeferredWhy::Booting, ""), begin(e(1))] {
        assert_eq!(history.when(command), Err(Rejection::AttemptEnded(e(1))));
    }
    assert_eq!(history.when(begin(e(2))).map(|facts| facts.len()), Ok(1));
}

#[test]
fn cancelled_twice_is_one_wish_and_a_retry_lifts_it() {
    let mut history = given([enqueue(), cancel()]);
    assert_eq!(history.when(cancel()), Ok(Vec::new()));
    history.tell(Command::SettleCancel { attempt: 1 }).unwrap();
    history.tell(retry()).unwrap();
    assert!(history.state.pending_cancel().is_none());
    history.tell(begin(e(2))).unwrap();
    history.tell(cancel()).unwrap();
    assert!(history.state.pending_cancel().is_some(), "a new wish counts again");
}

#[test]
fn a_late_delivery_of_an_expired_retry_stays_expired() {
    let mut history = given([enqueue()]);
    history.tell(Command::Expire { spec: spec(), attempt: 3 }).unwrap();
    assert!(matches!(history.when(begin(e(3))), Err(Rejection::WrongPhase { .. })));
}

/// The host that had the retry delivered does not keep the message, only what follows from it.
#[test]
fn a_job_that_was_up_and_is_retried_by_hand_has_all_of_its_attempts() {
    let stop = [Command::Stop(request("bob")), gone(e(1), GoneWhy::Stopped)];
    let mut host = given([enqueue(), begin(e(1)), ready(e(1))].into_iter().chain(stop));
    let asked = host.clone().tell(retry()).unwrap().remove(0);
    let kept = host.clone();
    host.state.apply(&asked);
    host.seconds += 1;
    let Command::Begin(mut again) = begin(e(2)) else { unreachable!("begin makes a Begin") };
    again.spec.retry.max_attempts = 5;
    let begun = host.tell(Command::Begin(again)).unwrap();
    let mut host = kept;
    begun.iter().for_each(|event| host.state.apply(event));
    host.seconds += 2;
    host.tell(fail(e(2), Cause::AgentNotListening)).unwrap();
    host.tell(gone(e(2), GoneWhy::Failed)).unwrap();
    assert_eq!(host.state.phase(), Phase::Retrying);
    assert_eq!(outcome(&host.when(begin(e(3)))), "attempt.started");
}

fn give_up(attempt: u32) -> Command {
    Command::GiveUp { spec: spec(), attempt, detail: "it expired".to_owned() }
}

#[test]
fn a_job_whose_message_was_given_up_is_dead_and_can_be_tried_again() {
    let mut history = given([enqueue()]);
    let facts = history.when(give_up(1)).unwrap();
    let [(epoch, EventData::JobDead(dead))] = facts.as_slice() else { panic!("{facts:?}") };
    assert_eq!((*epoch, dead.reason, dead.detail.as_str()), (e(1), DeadReason::MessageLost, "it expired"));
    history.tell(give_up(1)).unwrap();
    assert_eq!(history.state.phase(), Phase::Dead);
    assert_eq!(history.when(give_up(1)), Err(Rejection::AttemptEnded(e(1))), "once is enough");
    history.tell(retry()).unwrap();
    assert_eq!(history.state.phase(), Phase::Retrying);
    assert_eq!(history.when(give_up(1)), Err(Rejection::AttemptEnded(e(1))), "tried again since");
    history.tell(begin(e(2))).unwrap();
}

#[test]
fn a_job_that_runs_or_ran_is_not_given_up_with_a_message_of_it() {
    let mut history = given([enqueue(), begin(e(1))]);
    assert_eq!(history.when(give_up(1)), Err(Rejection::AttemptRunning(e(1))), "it boots");
    history.tell(ready(e(1))).unwrap();
    assert_eq!(history.when(give_up(1)), Err(Rejection::AttemptRunning(e(1))), "it is up");
    history.tell(gone(e(1), GoneWhy::Exited)).unwrap();
    assert_eq!(history.when(give_up(1)), Err(Rejection::AttemptEnded(e(1))), "it was up");
    let failed = [enqueue(), begin(e(1)), fail(e(1), Cause::AgentNotListening), gone(e(1), GoneWhy::Failed)];
    let history = given(failed);
    assert_eq!(history.when(give_up(1)), Err(Rejection::AttemptEnded(e(1))), "its next attempt waits");
    assert_eq!(outcome(&history.when(give_up(2))), "job.dead", "and that one has a message of its own");
}

#[test]
fn a_job_that_lost_its_try_and_then_its_message_ends_with_what_the_try_failed_of() {
    let mut history = given([enqueue(), begin(e(1)), lost(e(1))]);
    assert_eq!(history.state.phase(), Phase::Failing, "whoever has the message decides, and nobody has it");
    let facts = history.tell(give_up(1)).unwrap();
    let EventData::JobDead(dead) = &facts[0].data else { panic!("{facts:?}") };
    assert!(dead.diagnosis.is_some());
    assert_eq!(history.state.phase(), Phase::Dead);
}

#[test]
fn a_cancelled_job_whose_message_was_given_up_is_cancelled() {
    let history = given([enqueue(), cancel()]);
    assert_eq!(outcome(&history.when(give_up(1))), "job.cancelled");
}
