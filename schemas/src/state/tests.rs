//! The same set of events gives the same state: any order, any duplication, several tellers.

use proptest::prelude::*;

use super::*;
use crate::command::Command;
use crate::diagnosis::Cause;
use crate::event::{DeferredWhy, GoneWhy};
use crate::fixtures::*;

mod awaited;
mod requests;
mod superfluous;

/// The command that a number stands for, at the try that the history is at.
fn command(history: &History, host: &str, choice: u8) -> Command {
    let running = history.state.attempts.iter().find(|(_, a)| a.has_vm()).map(|(epoch, _)| *epoch);
    let epoch = running.unwrap_or_else(|| e(history.state.last_attempt().max(1)));
    let attempt = epoch.attempt;
    match choice % 19 {
        0 => enqueue(),
        1..=3 => begin_on(host, epoch),
        4 => begin_on(host, Epoch { delivery: epoch.delivery + 1, ..epoch }),
        5 | 6 => ready(epoch),
        7 => fail(epoch, Cause::AgentNotListening),
        8 => fail(epoch, Cause::ImageInvalid),
        9 => gone(epoch, GoneWhy::Failed),
        10 => gone(epoch, GoneWhy::Stopped),
        11 => lost(epoch),
        12 => cancel(),
        13 => Command::SettleCancel { attempt },
        14 => retry(),
        15 => Command::Stop(request("bob")),
        17 => snooze(u64::from(choice) * 60),
        16 => Command::Defer {
            attempt,
            delay_ms: 5,
            why: DeferredWhy::Full,
            reason: String::new(),
            spec: spec(),
            enqueued_at: at(0),
        },
        _ => Command::Expire { spec: spec(), attempt },
    }
}

/// A valid history: whatever of a random list of commands the rules allow.
fn walk(host: &str, choices: &[u8]) -> History {
    let mut history = History::on(host);
    for choice in choices {
        let next = command(&history, host, *choice);
        let _refused = history.tell(next);
        let with_vm = history.state.attempts.values().filter(|a| a.has_vm()).count();
        assert!(with_vm <= 1, "one host, two VMs for a job");
    }
    history
}

fn replayed(events: &[Event]) -> Option<JobState> {
    JobState::replay(job(), events)
}

prop_compose! {
    /// Histories of the same job on up to three hosts that do not know of each other, with the
    /// same events shuffled and some of them repeated.
    fn tellings()(
        walks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..4),
    )(
        shuffled in Just(events_of(&walks)).prop_shuffle(),
        again in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        events in Just(events_of(&walks)),
    ) -> (Vec<Event>, Vec<Event>) {
        let mut told = shuffled;
        for (place, index) in again.iter().enumerate() {
            if !told.is_empty() {
                told.insert(place.min(told.len()), index.get(&events).clone());
            }
        }
        (events, told)
    }
}

fn events_of(walks: &[Vec<u8>]) -> Vec<Event> {
    ["h-1", "h-2", "h-3"].iter().zip(walks).flat_map(|(host, choices)| walk(host, choices).events).collect()
}

proptest! {
    #[test]
    fn any_order_and_any_duplication_give_the_same_state((events, told) in tellings()) {
        prop_assert_eq!(replayed(&events), replayed(&told));
    }

    #[test]
    fn a_host_that_replays_its_log_is_where_it_was(choices in prop::collection::vec(any::<u8>(), 0..80)) {
        let history = walk("h-1", &choices);
        let replayed = replayed(&history.events).unwrap_or_else(|| JobState::new(job()));
        prop_assert_eq!(&replayed, &history.state);
        // Its own facts, without a teller, are the same facts.
        let mut own = JobState::new(job());
        history.events.iter().for_each(|e| own.apply_data(e.epoch, e.time, &e.data));
        prop_assert_eq!(&own, &history.state);
    }

    #[test]
    fn every_event_of_a_walk_survives_the_wire_and_has_its_own_id((events, _) in tellings()) {
        let mut ids = BTreeMap::new();
        for event in events {
            let bytes = event.encode().unwrap();
            prop_assert_eq!(&Event::decode(&bytes, at(0)).unwrap(), &event);
            // One id on two hosts only for facts about the job as a whole.
            if let Some(other) = ids.insert(event.id(), event.clone()) {
                prop_assert!(!event.data.is_about_try() || other.host() == event.host(), "{}", event.id());
            }
        }
    }

    #[test]
    fn of_several_vms_one_stays((events, _) in tellings()) {
        let Some(state) = replayed(&events) else { return Ok(()) };
        let gone: Vec<_> = duplicates(&state).into_iter().map(|d| d.vm).collect();
        let vms = state.tries().filter(|(_, a)| a.is_up()).filter_map(|(_, a)| a.started.as_ref());
        let staying = vms.filter(|s| !gone.contains(&s.value.vm)).count();
        prop_assert!(staying <= 1, "{staying} VMs stay");
        if state.phase() == Phase::Ready {
            prop_assert_eq!(staying, 1);
        }
    }
}

#[test]
fn the_same_epoch_on_two_hosts_is_two_tries_and_the_later_one_goes() {
    let mut first = History::on("h-1");
    let mut second = History::on("h-2");
    first.tell(begin_on("h-1", e(2))).unwrap();
    second.tell(begin_on("h-2", e(2))).unwrap();
    second.tell(ready(e(2))).unwrap();
    first.seconds += 5;
    first.tell(ready(e(2))).unwrap();
    let events: Vec<_> = second.events.iter().chain(&first.events).cloned().collect();
    let mut state = replayed(&events).unwrap();
    assert_eq!(state.tries().filter(|(_, a)| a.is_up()).count(), 2);
    let found = duplicates(&state);
    assert_eq!(found.iter().map(|d| d.host.as_str()).collect::<Vec<_>>(), ["h-1"], "h-2 was ready first");

    let facts = crate::decide::decide(
        &state,
        found[0].clone().into(),
        crate::command::Context { now: at(20), jitter: crate::retry::Jitter::from_random(0) },
    );
    for (epoch, data) in facts.unwrap() {
        state.apply(&Event::about_job(job(), epoch, "/producers/api", at(20), data.clone()));
        first.state.apply(&Event::about_job(job(), epoch, "/producers/api", at(20), data));
    }
    assert_eq!(duplicates(&state), []);
    assert_eq!(crate::next::next(&first.state, e(2)), crate::next::Next::Remove(GoneWhy::Duplicate));
    for event in first.tell(gone(e(2), GoneWhy::Duplicate)).unwrap() {
        state.apply(&event);
    }
    assert_eq!(state.phase(), Phase::Ready);
    assert_eq!(state.tries().filter(|(_, a)| a.has_vm()).count(), 1);
}

#[test]
fn events_of_other_jobs_and_hosts_change_nothing() {
    let mut state = given([enqueue()]).state;
    let before = state.clone();
    for mut event in crate::event::samples() {
        if event.job().is_some() {
            event.subject = JobId::from_key("another", "job").to_string();
        }
        state.apply(&event);
    }
    assert_eq!(state, before);
}
