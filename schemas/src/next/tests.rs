//! Given a history, then this is what the host must do; asked twice, the same.

use super::*;
use crate::command::Command;
use crate::diagnosis::Cause;
use crate::event::{AttemptSuperseded, EventData};
use crate::fixtures::*;
use crate::id::VmId;

#[test]
fn each_history_has_its_next_step() {
    let vm = VmId::derive(job(), e(1), &host("h-1"));
    let duplicate = AttemptSuperseded { host: host("h-1"), vm, kept: None };
    let supersede = || Command::Supersede { epoch: e(1), duplicate: duplicate.clone() };
    let flaky = || fail(e(1), Cause::AgentNotListening);
    let table = [
        (vec![], Next::Settled),
        (vec![enqueue()], Next::Settled),
        (vec![enqueue(), begin(e(1))], Next::Boot),
        (vec![begin(e(1)), ready(e(1))], Next::Watch),
        (vec![begin(e(1)), flaky()], Next::Remove(GoneWhy::Failed)),
        (vec![begin(e(1)), cancel()], Next::Remove(GoneWhy::Cancelled)),
        (vec![begin(e(1)), ready(e(1)), cancel()], Next::Remove(GoneWhy::Cancelled)),
        (vec![begin(e(1)), flaky(), cancel()], Next::Remove(GoneWhy::Failed)),
        (vec![begin(e(1)), supersede()], Next::Remove(GoneWhy::Duplicate)),
        (vec![begin(e(1)), ready(e(1)), supersede()], Next::Remove(GoneWhy::Duplicate)),
        (vec![begin(e(1)), ready(e(1)), Command::Stop(request("bob"))], Next::Remove(GoneWhy::Stopped)),
        (vec![begin(e(1)), flaky(), gone(e(1), GoneWhy::Failed)], Next::Settled),
    ];
    for (commands, expected) in table {
        let shown = format!("{commands:?}");
        let state = given(commands).state;
        assert_eq!(next(&state, e(1)), expected, "{shown}");
        assert_eq!(next(&state, e(1)), expected, "asked twice");
        assert_eq!(next(&state, e(7)), Next::Settled, "a try that never was");
    }
}

#[test]
fn a_cancellation_that_another_host_settled_still_removes_this_vm() {
    let mut here = given([enqueue(), begin(e(1)), ready(e(1))]);
    let mut elsewhere = History::on("h-2");
    elsewhere.tell(cancel()).unwrap();
    let settled = elsewhere.tell(Command::SettleCancel { attempt: 1 }).unwrap();
    assert!(matches!(settled[0].data, EventData::JobCancelled(_)));
    here.state.apply(&settled[0]);
    assert_eq!(next(&here.state, e(1)), Next::Remove(GoneWhy::Cancelled));
}

#[test]
fn a_cancellation_that_a_new_attempt_lifted_removes_no_vm() {
    let mut here = given([enqueue(), begin(e(1)), ready(e(1))]);
    let mut elsewhere = given([enqueue(), cancel(), Command::SettleCancel { attempt: 1 }]);
    let settled = elsewhere.events.last().unwrap().clone();
    let asked = elsewhere.tell(retry()).unwrap();
    here.state.apply(&settled);
    here.state.apply(&asked[0]);
    assert_ne!(here.state.phase(), Phase::Cancelled);
    assert_eq!(next(&here.state, e(1)), Next::Watch);
}
