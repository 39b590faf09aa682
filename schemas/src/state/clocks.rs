//! Clocks of machines that differ, and step while the machines work, change no phase and no decision:
//! what overtakes what follows from what was known.

use proptest::prelude::*;

use super::*;
use crate::command::Command;
use crate::diagnosis::Cause;
use crate::event::{GoneWhy, JobCancelRequested, JobDead, JobStopRequested};
use crate::fixtures::*;
use crate::next::{Next, next};

const HOUR: i64 = 3_600_000_000;
const TELLERS: [&str; 3] = ["h-1", "h-2", "control"];
/// The one of them that hears everything, and is asked.
const CONTROL: usize = 2;

/// One step: who acts, what it does, and how far its clock is off then.
type Step = (usize, u8, i64);

fn command(state: &JobState, teller: usize, choice: u8) -> Command {
    let running = state.attempts.iter().find(|(_, a)| a.has_vm()).map(|(epoch, _)| *epoch);
    let epoch = running.unwrap_or_else(|| e(state.last_attempt().max(1)));
    let snoozed = state.snooze_requested.as_ref().map_or(at(0), |s| s.value.until).since(at(0)).as_secs();
    match (teller, choice % 10) {
        (CONTROL, 0..=3) => cancel(),
        (CONTROL, 4..=6) => retry(),
        (CONTROL, 7 | 8) => Command::Stop(request("bob")),
        (CONTROL, _) => snooze(snoozed.max(10 * 86_400) + 60),
        (_, 0..=2) => begin_on(TELLERS[teller], epoch),
        (_, 3 | 4) => ready(epoch),
        (_, 5) => fail(epoch, Cause::AgentNotListening),
        (_, 6) => gone(epoch, GoneWhy::Failed),
        (_, 7) => gone(epoch, GoneWhy::Stopped),
        (_, 8) => lost(epoch),
        (_, _) => Command::SettleCancel { attempt: epoch.attempt },
    }
}

fn is_heard_by_hosts(data: &EventData) -> bool {
    matches!(
        data,
        EventData::CancelRequested(_)
            | EventData::StopRequested(_)
            | EventData::SnoozeRequested(_)
            | EventData::JobEnqueued(_)
            | EventData::JobRetryScheduled(_)
    )
}

/// What was decided, and where everybody saw the job, after each step.
fn story(steps: &[Step], with_clocks: bool) -> Vec<String> {
    let mut tellers = TELLERS.map(History::on);
    let mut told = Vec::new();
    let first = tellers[CONTROL].tell(enqueue()).unwrap();
    tellers[..CONTROL].iter_mut().for_each(|host| first.iter().for_each(|event| host.state.apply(event)));
    for (step, (teller, choice, skew)) in (1..).zip(steps) {
        let asked = command(&tellers[*teller].state, *teller, *choice);
        let acting = &mut tellers[*teller];
        acting.seconds = step;
        acting.skew = if with_clocks { *skew } else { 0 };
        let result = acting.when(asked.clone());
        told.push(outcome(&result));
        let events = acting.tell(asked).unwrap_or_default();
        // Odd choices travel late: they are heard by nobody but who says them, until the end.
        if choice % 2 == 0 {
            for event in &events {
                for (place, other) in tellers.iter_mut().enumerate().filter(|(place, _)| place != teller) {
                    if place == CONTROL || is_heard_by_hosts(&event.data) {
                        other.state.apply(event);
                    }
                }
            }
        }
        told.extend(tellers.iter().map(|teller| seen(&teller.state)));
    }
    let mut all = JobState::new(job());
    tellers.iter().flat_map(|teller| &teller.events).for_each(|event| all.apply(event));
    told.push(seen(&all));
    told
}

/// What somebody makes of a state.
fn seen(state: &JobState) -> String {
    let steps: Vec<_> = state.attempts.keys().map(|epoch| (*epoch, next(state, *epoch))).collect();
    let (phase, cancelling) = (state.phase(), state.pending_cancel().is_some());
    let last = (state.last_attempt(), state.asked_attempt, state.settled_attempt());
    // Which of two VMs goes may depend on clocks; that one goes does not.
    let too_many = duplicates(state).len();
    let awaited = state.awaited().map(|a| (a.from, a.attempt, a.cancelling));
    format!("{phase} {cancelling} {last:?} {steps:?} {too_many} {awaited:?}")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(2_000), ..ProptestConfig::default() })]

    #[test]
    fn clocks_that_differ_by_hours_and_step_change_no_phase_and_no_decision(
        steps in prop::collection::vec((0usize..3, any::<u8>(), -6 * HOUR..6 * HOUR), 0..40),
    ) {
        prop_assert_eq!(story(&steps, true), story(&steps, false));
    }

    #[test]
    fn of_vms_that_are_up_all_readers_keep_the_same(
        ready in prop::collection::vec(-6 * HOUR..6 * HOUR, 2..5), known in prop::collection::vec(any::<bool>(), 5),
    ) {
        let mut all = Vec::new();
        for (host, skew) in ready.iter().enumerate() {
            let name = format!("h-{host}");
            let mut teller = History::on(&name);
            teller.skew = *skew;
            teller.tell(begin_on(&name, e(1))).unwrap();
            teller.tell(ready_now()).unwrap();
            all.push(teller.events);
        }
        let whole = JobState::replay(job(), all.iter().flatten()).unwrap();
        let kept = duplicates(&whole).first().and_then(|d| d.kept).unwrap();
        // A reader that has not read all yet tells no VM to go which another reader keeps.
        let read = all.iter().zip(&known).flat_map(|(events, is_known)| &events[..1 + usize::from(*is_known)]);
        let early = JobState::replay(job(), read).unwrap();
        prop_assert!(duplicates(&early).iter().all(|d| d.vm != kept));
    }
}

fn ready_now() -> Command {
    ready(e(1))
}

fn control(skew: i64) -> History {
    let mut teller = History::on("control");
    teller.skew = skew;
    teller
}

#[test]
fn a_cancellation_asked_for_after_a_retry_counts_whatever_the_clocks_say() {
    let mut first = given([enqueue(), begin(e(1)), cancel(), gone(e(1), GoneWhy::Cancelled)]);
    first.tell(retry()).unwrap();
    let mut behind = control(-HOUR);
    first.events.iter().for_each(|event| behind.state.apply(event));
    let asked = behind.tell(cancel()).unwrap();
    assert!(matches!(&asked[0].data, EventData::CancelRequested(e) if e.asked_attempt == Some(2)));
    first.state.apply(&asked[0]);
    assert!(first.state.pending_cancel().is_some());
    assert_eq!(first.when(begin(e(2))), Err(crate::command::Rejection::CancelPending));
}

#[test]
fn a_retry_asked_for_after_a_cancellation_counts_whatever_the_clocks_say() {
    let mut ahead = control(HOUR);
    ahead.tell(enqueue()).unwrap();
    ahead.tell(cancel()).unwrap();
    let mut other = control(-HOUR);
    ahead.events.iter().for_each(|event| other.state.apply(event));
    other.tell(retry()).unwrap();
    assert_eq!((other.state.pending_cancel(), other.state.phase()), (None, Phase::Retrying));
    // Asked for at the same moment, without knowing of each other: the retry counts.
    let mut unaware = given([enqueue(), begin(e(1)), fail(e(1), Cause::ImageInvalid), gone(e(1), GoneWhy::Failed)]);
    let mut late = unaware.clone();
    late.skew = HOUR;
    let request = JobCancelRequested { asked_attempt: Some(0), by: "bob".into(), reason: String::new() };
    late.state.add(crate::event::JOB_LEVEL, late.now(), &EventData::CancelRequested(request), None);
    unaware.tell(retry()).unwrap().iter().for_each(|event| late.state.apply(event));
    assert_eq!((late.state.pending_cancel(), late.state.phase()), (None, Phase::Retrying));
}

#[test]
fn a_stop_is_about_the_vm_that_was_up_whatever_the_clocks_say() {
    let mut host = given([enqueue(), begin(e(1)), ready(e(1))]);
    let mut behind = control(-HOUR);
    host.events.iter().for_each(|event| behind.state.apply(event));
    let asked = behind.tell(Command::Stop(request("bob"))).unwrap();
    host.state.apply(&asked[0]);
    assert_eq!(next(&host.state, e(1)), Next::Remove(GoneWhy::Stopped));
    host.tell(gone(e(1), GoneWhy::Stopped)).unwrap();
    host.tell(retry()).unwrap();
    // A later attempt is another VM, also where the clock of who asked was ahead.
    let ahead = JobStopRequested { attempt: Some(1), by: "bob".into(), reason: String::new() };
    let ahead = EventData::StopRequested(ahead);
    host.state.add(crate::event::JOB_LEVEL, at(100 * 3_600), &ahead, None);
    host.tell(begin(e(2))).unwrap();
    assert_eq!(next(&host.state, e(2)), Next::Boot);
}

#[test]
fn requests_of_an_older_stoker_are_judged_by_their_times() {
    let history = given([enqueue(), begin(e(1)), ready(e(1))]);
    for (seconds, step) in [(100, Next::Remove(GoneWhy::Stopped)), (1, Next::Watch)] {
        let mut state = history.state.clone();
        let stop = EventData::StopRequested(request("bob").into());
        state.add(crate::event::JOB_LEVEL, at(seconds), &stop, None);
        assert_eq!(next(&state, e(1)), step, "{seconds}");
    }
    let mut asked = given([enqueue(), cancel(), Command::SettleCancel { attempt: 1 }, retry()]).state;
    let cancel = EventData::CancelRequested(request("bob").into());
    asked.add(crate::event::JOB_LEVEL, at(1), &cancel, None);
    assert!(asked.pending_cancel().is_none(), "asked for before the retry");
    asked.add(crate::event::JOB_LEVEL, at(100), &cancel, None);
    assert!(asked.pending_cancel().is_some());
}

#[test]
fn the_longer_snooze_counts_whichever_clock_asked_last() {
    let mut history =
        given([enqueue(), begin(e(1)), fail(e(1), Cause::AgentNotListening), gone(e(1), GoneWhy::Failed)]);
    history.skew = HOUR;
    history.tell(snooze(10_000)).unwrap();
    let mut behind = control(-HOUR);
    history.events.iter().for_each(|event| behind.state.apply(event));
    behind.tell(snooze(20_000)).unwrap();
    assert_eq!(behind.state.due(2), Some(at(20_000)));
}

#[test]
fn an_attempt_asked_for_by_hand_is_that_whatever_a_host_scheduled_under_its_number() {
    // Somebody asks for attempt 3 while attempt 2 waits; a host fails attempt 2, and schedules the third.
    let mut waits = given([enqueue(), begin(e(1)), fail(e(1), Cause::AgentNotListening), gone(e(1), GoneWhy::Failed)]);
    let mut asker = waits.clone();
    asker.skew = HOUR;
    let asked = asker.tell(retry()).unwrap();
    let Some(EventData::JobRetryScheduled(scheduled)) = waits.events.last().map(|e| e.data.clone()) else { panic!() };
    let third = JobRetryScheduled { attempt: 3, ..scheduled };
    let own = Event::about_job(job(), e(3), "/hosts/h-1", at(9), EventData::JobRetryScheduled(third));
    assert_eq!(own.id(), asked[0].id());
    for order in [[&own, &asked[0]], [&asked[0], &own]] {
        let mut state = waits.state.clone();
        order.iter().for_each(|event| state.apply(event));
        assert_eq!(state.retries[&3].value.by.as_deref(), Some("eve"));
    }
    assert!(asked[0].data.precedence() < own.data.precedence());
    waits.state.apply(&asked[0]);
    assert_eq!(waits.state.asked_attempt, 3);
}

#[test]
fn a_vm_that_a_second_message_boots_after_a_stop_goes_as_well() {
    let mut job_here = given([enqueue(), begin(e(1)), ready(e(1)), Command::Stop(request("bob"))]);
    assert_eq!(duplicates(&job_here.state), [], "its own host stops it");
    job_here.tell(gone(e(1), GoneWhy::Stopped)).unwrap();
    let mut late = History::on("h-9");
    late.tell(begin_on("h-9", e(1))).unwrap();
    for more in [None, Some(ready(e(1)))] {
        more.into_iter().for_each(|ready| drop(late.tell(ready).unwrap()));
        let mut state = job_here.state.clone();
        late.events.iter().for_each(|event| state.apply(event));
        let goes = duplicates(&state);
        assert_eq!(goes.iter().map(|d| (d.host.as_str(), d.kept)).collect::<Vec<_>>(), [("h-9", None)]);
        assert_eq!(state.phase(), Phase::Stopped);
    }
    job_here.tell(retry()).unwrap();
    job_here.tell(begin(e(2))).unwrap();
    job_here.tell(ready(e(2))).unwrap();
    assert_eq!(duplicates(&job_here.state), [], "a later attempt is another VM");
}

#[test]
fn a_job_that_expired_or_was_cancelled_keeps_no_vm_that_a_late_host_boots() {
    let spec = spec();
    let dead =
        JobDead { attempt: 1, reason: crate::event::DeadReason::Expired, diagnosis: None, detail: String::new(), spec };
    let mut late = History::on("h-9");
    late.tell(begin_on("h-9", e(1))).unwrap();
    for closing in [EventData::JobDead(dead), EventData::JobCancelled(JobCancelled { attempt: 1, by: "bob".into() })] {
        let mut state = given([enqueue()]).state;
        state.add(e(1), at(5), &closing, None);
        assert!(state.phase().is_closed() && state.awaited().is_none());
        late.events.iter().for_each(|event| state.apply(event));
        assert!(state.phase().is_closed());
        let goes = duplicates(&state);
        assert_eq!(goes.iter().map(|d| (d.host.as_str(), d.kept)).collect::<Vec<_>>(), [("h-9", None)]);
    }
}
