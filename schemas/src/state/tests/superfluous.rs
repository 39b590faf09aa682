//! Given what several hosts told, then these VMs are to go.

use super::*;
use crate::event::{AttemptSuperseded, EventData};
use crate::id::VmId;

fn known(histories: &[&History]) -> JobState {
    let events: Vec<_> = histories.iter().flat_map(|history| history.events.clone()).collect();
    replayed(&events).unwrap()
}

fn on(host: &str, commands: impl IntoIterator<Item = Command>) -> History {
    let mut history = History::on(host);
    commands.into_iter().for_each(|command| drop(history.tell(command).unwrap()));
    history
}

fn going(histories: &[&History]) -> Vec<(u32, String, Option<VmId>)> {
    let found = duplicates(&known(histories));
    found.into_iter().map(|d| (d.epoch.attempt, d.host.to_string(), d.kept)).collect()
}

fn vm(epoch: Epoch, name: &str) -> VmId {
    VmId::derive(job(), epoch, &host(name))
}

/// Asked for by hand, where nothing of a try is known.
fn asked() -> History {
    on("api", [enqueue(), Command::Retry { by: "eve".into(), spec: Some(spec()) }])
}

#[test]
fn what_still_boots_goes_when_the_job_was_cancelled_without_it() {
    for attempt in [1, 2] {
        let boots = on("h-1", [begin_on("h-1", e(attempt))]);
        let cancelled = on("h-2", [cancel(), Command::SettleCancel { attempt }]);
        assert_eq!(going(&[&boots, &cancelled]), [(attempt, "h-1".to_owned(), None)]);
        let up = on("h-1", [begin_on("h-1", e(attempt)), ready(e(attempt))]);
        assert_eq!(going(&[&up, &cancelled]), [(attempt, "h-1".to_owned(), None)]);
    }
}

#[test]
fn what_still_boots_may_succeed_where_another_host_failed() {
    let boots = on("h-1", [begin_on("h-1", e(1))]);
    let dead = [begin_on("h-2", e(1)), fail(e(1), Cause::ImageInvalid), gone(e(1), GoneWhy::Failed)];
    let dead = on("h-2", dead);
    assert_eq!(known(&[&boots, &dead]).phase(), Phase::Dead);
    assert_eq!(going(&[&boots, &dead]), []);
}

#[test]
fn beside_a_vm_that_is_up_only_what_is_up_too_goes() {
    let up = on("h-1", [begin_on("h-1", e(1)), ready(e(1))]);
    let mut other = on("h-2", [begin_on("h-2", e(1))]);
    assert_eq!(going(&[&up, &other]), []);
    other.seconds += 5;
    other.tell(ready(e(1))).unwrap();
    assert_eq!(going(&[&up, &other]), [(1, "h-2".to_owned(), Some(vm(e(1), "h-1")))]);
}

#[test]
fn what_is_older_than_an_attempt_asked_for_by_hand_goes_and_the_new_one_stays() {
    let asked = asked();
    let boots = on("h-1", [begin_on("h-1", e(1))]);
    assert_eq!(going(&[&boots, &asked]), [(1, "h-1".to_owned(), None)]);
    let mut newer = on("h-2", [begin_on("h-2", e(2))]);
    assert_eq!(going(&[&boots, &asked, &newer]), [(1, "h-1".to_owned(), None)]);
    let up = on("h-1", [begin_on("h-1", e(1)), ready(e(1))]);
    newer.seconds += 5;
    newer.tell(ready(e(2))).unwrap();
    assert_eq!(going(&[&up, &asked, &newer]), [(1, "h-1".to_owned(), Some(vm(e(2), "h-2")))]);
}

#[test]
fn a_vm_that_was_told_to_go_is_not_the_one_that_stays() {
    let duplicate = AttemptSuperseded { host: host("h-1"), vm: vm(e(1), "h-1"), kept: None };
    let told = on("h-1", [begin_on("h-1", e(1)), ready(e(1)), Command::Supersede { epoch: e(1), duplicate }]);
    let mut stays = on("h-2", [begin_on("h-2", e(1))]);
    stays.seconds += 5;
    stays.tell(ready(e(1))).unwrap();
    assert_eq!(going(&[&told, &stays]), []);
}

#[test]
fn a_stop_that_one_host_carried_out_is_about_the_tries_up_to_its_attempt() {
    let up = || vec![begin_on("h-1", e(1)), ready(e(1))];
    let stopped = up().into_iter().chain([Command::Stop(request("bob")), gone(e(1), GoneWhy::Stopped)]);
    let stopped = on("h-1", stopped);
    let rival = on("h-2", [begin_on("h-2", e(1)), ready(e(1))]);
    let state = known(&[&stopped, &rival]);
    assert_eq!((state.stopped_below(), state.phase()), (2, Phase::Stopped));
    assert_eq!(going(&[&stopped, &rival]), [(1, "h-2".to_owned(), None)]);
    // It ended by itself before the stop reached it.
    let exited = up().into_iter().chain([Command::Stop(request("bob")), gone(e(1), GoneWhy::Exited)]);
    let state = known(&[&on("h-1", exited), &rival]);
    assert_eq!((state.stopped_below(), state.phase()), (0, Phase::Ready));
}

#[test]
fn a_stop_is_not_carried_out_by_the_end_of_a_later_attempt() {
    let mut state = known(&[&on("h-1", [begin_on("h-1", e(1)), ready(e(1)), Command::Stop(request("bob"))])]);
    let later = on("h-2", [begin_on("h-2", e(2)), ready(e(2)), gone(e(2), GoneWhy::Stopped)]);
    later.events.iter().for_each(|event| state.apply(event));
    assert_eq!(state.stopped_below(), 0);
    assert!(later.events.iter().any(|event| matches!(event.data, EventData::VmGone(_))));
}
