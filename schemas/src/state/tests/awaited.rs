//! What a job waits for in each place that it can be in, and how long that takes when all is well.

use super::*;
use crate::event::DeferredWhy;
use crate::state::{Awaited, AwaitedFrom};

fn awaited(commands: impl IntoIterator<Item = Command>) -> Option<Awaited> {
    given(commands).state.awaited()
}

fn defer(delay_ms: u64) -> Command {
    Command::Defer {
        attempt: 1,
        why: DeferredWhy::Full,
        delay_ms,
        reason: "full".into(),
        spec: spec(),
        enqueued_at: at(0),
    }
}

fn failed() -> Vec<Command> {
    vec![begin(e(1)), fail(e(1), Cause::AgentNotListening), gone(e(1), GoneWhy::Failed)]
}

fn then(before: Vec<Command>, more: Vec<Command>) -> Vec<Command> {
    before.into_iter().chain(more).collect()
}

#[test]
fn each_place_waits_for_something_or_has_ended() {
    use AwaitedFrom::{Deferral, Host, Queue};
    let boot_ms = 2 * spec().readiness.deadline_ms;
    let up = || vec![begin(e(1)), ready(e(1))];
    let table = [
        ("queued", vec![enqueue()], Some((Queue, 1, 0, false))),
        ("put back", vec![enqueue(), defer(5_000)], Some((Deferral, 1, 5_000, false))),
        ("booting", vec![begin(e(1))], Some((Host, 1, boot_ms, false))),
        ("being cancelled", vec![begin(e(1)), cancel()], Some((Host, 1, boot_ms, true))),
        ("failing", vec![begin(e(1)), fail(e(1), Cause::Unknown)], Some((Host, 1, 0, false))),
        ("retrying", failed(), Some((Queue, 2, 1_000, false))),
        ("put back before", then(vec![defer(5_000)], failed()), Some((Queue, 2, 1_000, false))),
        ("snoozed at 4 s", then(failed(), vec![snooze(3_600)]), Some((Queue, 2, 3_596_000, false))),
        ("up", up(), None),
        ("up, to be cancelled", then(up(), vec![cancel()]), Some((Host, 1, 0, true))),
        ("stopped", then(up(), vec![gone(e(1), GoneWhy::Stopped)]), None),
        ("dead", vec![begin(e(1)), fail(e(1), Cause::ImageInvalid), gone(e(1), GoneWhy::Failed)], None),
        ("cancelled", vec![enqueue(), cancel(), Command::SettleCancel { attempt: 1 }], None),
    ];
    for (place, commands, expected) in table {
        let found = awaited(commands).map(|a| (a.from, a.attempt, a.usual_ms, a.cancelling));
        assert_eq!(found, expected, "{place}");
    }
}

#[test]
fn a_time_to_live_counts_until_the_first_attempt() {
    let mut short = spec();
    short.ttl_s = Some(60);
    let enqueue = Command::Enqueue { spec: short.clone(), by: "ada".into() };
    let Command::Begin(begun) = begin(e(1)) else { unreachable!() };
    let begin = Command::Begin(crate::command::Begin { spec: short, ..begun });
    let ttl_s = |commands: Vec<Command>| awaited(commands).unwrap().ttl_s;
    assert_eq!(ttl_s(vec![enqueue.clone()]), Some(60));
    let mut tried = failed();
    tried[0] = begin;
    assert_eq!(ttl_s(then(vec![enqueue], tried)), None);
}

#[test]
fn only_what_was_published_again_for_this_attempt_is_counted() {
    let republished = |commands: Vec<Command>| awaited(commands).unwrap().republished;
    assert_eq!(republished(vec![enqueue()]), 0);
    assert_eq!(republished(vec![enqueue(), retry(), retry()]), 2);
    assert_eq!(republished(then(vec![enqueue(), retry()], failed())), 0);
}
