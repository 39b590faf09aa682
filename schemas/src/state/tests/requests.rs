//! Which requests still hold, and what a job's numbers are.

use super::*;
use crate::event::{AttemptSuperseded, EventData, JOB_LEVEL, JobCancelRequested, JobStopRequested, VmGone};
use crate::id::VmId;

#[test]
fn an_older_stokers_cancellation_holds_for_what_was_asked_for_before_it() {
    // Asked for again at 6 s.
    let flaky = [enqueue(), begin(e(1)), fail(e(1), Cause::AgentNotListening), gone(e(1), GoneWhy::Failed)];
    let again = given(flaky.into_iter().chain([retry()]));
    let asked = again.state.asked_at.unwrap();
    for (seconds, holds) in [(-1, false), (0, false), (1, true)] {
        let mut state = again.state.clone();
        let at = Time::from_unix_micros(asked.unix_micros() + seconds * 1_000_000);
        let request = JobCancelRequested { asked_attempt: None, by: "bob".into(), reason: String::new() };
        state.apply_data(JOB_LEVEL, at, &EventData::CancelRequested(request));
        assert_eq!(state.pending_cancel().is_some(), holds, "{seconds} s after it was asked for");
    }
}

#[test]
fn an_older_stokers_stop_holds_for_what_had_started_by_then() {
    let up = given([enqueue(), begin(e(1)), ready(e(1))]);
    let started = up.state.attempts[&e(1)].started.as_ref().unwrap().at;
    for (seconds, holds) in [(-1, false), (0, true), (1, true)] {
        let mut state = up.state.clone();
        let at = Time::from_unix_micros(started.unix_micros() + seconds * 1_000_000);
        let request = JobStopRequested { attempt: None, by: "bob".into(), reason: String::new() };
        state.apply_data(JOB_LEVEL, at, &EventData::StopRequested(request));
        assert_eq!(state.pending_stop(e(1)).is_some(), holds, "{seconds} s after its start");
    }
}

#[test]
fn only_tries_before_the_attempt_asked_for_by_hand_are_overtaken() {
    let flaky = [enqueue(), begin(e(1)), fail(e(1), Cause::AgentNotListening), gone(e(1), GoneWhy::Failed)];
    let again = given(flaky.into_iter().chain([retry()])).state;
    assert_eq!(again.asked_attempt, 3);
    assert_eq!([1, 2, 3, 4].map(|attempt| again.is_overtaken(e(attempt))), [true, true, false, false]);
}

#[test]
fn an_epoch_that_was_used_is_not_used_again() {
    let later = Epoch { attempt: 1, delivery: 3 };
    let state = given([enqueue(), begin(e(1)), lost(e(1)), begin(later)]).state;
    let free = |attempt, delivery| state.epoch_for(attempt, delivery).delivery;
    assert_eq!((free(1, 0), free(1, 4), free(1, 9)), (4, 4, 9));
    assert_eq!((free(2, 0), free(2, 1)), (0, 1), "nothing of another attempt counts");
}

#[test]
fn a_job_is_as_old_as_the_earliest_word_of_it() {
    assert_eq!(given([enqueue()]).state.enqueued_at(), Some(at(1)));
    assert_eq!(given([enqueue(), begin(e(1))]).state.enqueued_at(), Some(at(0)), "as its message says");
    assert_eq!(JobState::new(job()).enqueued_at(), None);
}

#[test]
fn a_try_that_was_taken_away_is_stopped_and_one_that_failed_is_not() {
    let phase_after = |commands: Vec<Command>, why| {
        let mut state = given(commands).state;
        state.apply_data(e(1), at(60), &EventData::VmGone(VmGone { why, detail: String::new() }));
        state.phase()
    };
    let vm = VmId::derive(job(), e(1), &host("h-1"));
    let duplicate = || AttemptSuperseded { host: host("h-1"), vm, kept: None };
    let supersede = || Command::Supersede { epoch: e(1), duplicate: duplicate() };
    let failed = || vec![begin(e(1)), fail(e(1), Cause::AgentNotListening)];
    assert_eq!(phase_after(vec![begin(e(1))], GoneWhy::Stopped), Phase::Stopped);
    assert_eq!(phase_after(vec![begin(e(1))], GoneWhy::Duplicate), Phase::Stopped);
    assert_eq!(phase_after(vec![begin(e(1)), supersede()], GoneWhy::Exited), Phase::Stopped);
    assert_eq!(phase_after(failed().into_iter().chain([supersede()]).collect(), GoneWhy::Failed), Phase::Stopped);
    assert_eq!(phase_after(vec![begin(e(1))], GoneWhy::Exited), Phase::Failing);
    assert_eq!(phase_after(failed(), GoneWhy::Stopped), Phase::Failing, "it had failed already");
    assert_eq!(phase_after(failed(), GoneWhy::Failed), Phase::Failing);
}

#[test]
fn phases_are_shown_by_their_names_as_wide_as_asked_for() {
    assert_eq!(format!("{:>6}|{:<6}|{}", Phase::Dead, Phase::Ready, Phase::Queued), "  dead|ready |queued");
}

#[test]
fn of_a_fact_told_twice_the_earlier_telling_counts() {
    let up = given([enqueue(), begin(e(1)), ready(e(1))]);
    let told = up.state.attempts[&e(1)].ready.clone().unwrap();
    for (seconds, counts) in [(1, at(1)), (60, told.at)] {
        let mut state = up.state.clone();
        state.apply_data(e(1), at(seconds), &EventData::AttemptReady(told.value.clone()));
        assert_eq!(state.attempts[&e(1)].ready.as_ref().unwrap().at, counts, "told again at {seconds} s");
    }
}

#[test]
fn marks_and_adoptions_of_a_try_are_kept() {
    let seen = mark(crate::event::Stage::DhcpAck, 5);
    let progress = Command::Progress { epoch: e(1), marks: vec![seen.clone()] };
    let history = given([enqueue(), begin(e(1)), progress, Command::Adopt { epoch: e(1), pid: 77 }]);
    let attempt = &history.state.attempts[&e(1)];
    assert!(attempt.marks.contains(&seen));
    assert_eq!(attempt.adopted.iter().map(|adopted| adopted.value).collect::<Vec<_>>(), [77]);
}
