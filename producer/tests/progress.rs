//! What a person who waits for a job sees while it boots.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};

use stoker_producer::progress::{Progress, Screen, waiting_for};
use stoker_schemas::event::GoneWhy;
use stoker_schemas::{JobState, Phase};
use support::Story;

const ADDRESS: &str = "192.168.100.17";

/// The states that a reader of the history sees one after the other.
fn states(story: &Story) -> Vec<JobState> {
    (1..=story.events.len()).map(|n| JobState::replay(story.id, &story.events[..n]).unwrap()).collect()
}

fn retried() -> Story {
    Story::failed_then_ready("progress")
}

#[test]
fn each_thing_that_happens_is_one_line() {
    let mut progress = Progress::default();
    let lines: Vec<_> = states(&retried()).iter().flat_map(|state| progress.news(state)).collect();
    insta::assert_snapshot!(lines.join("\n"));
    assert!(progress.news(states(&retried()).last().unwrap()).is_empty(), "nothing is said twice");
}

#[test]
fn what_is_waited_for_follows_the_boot() {
    let story = Story::of("progress").enqueued().started(1, 3, ADDRESS).booted(1, 3, ADDRESS).ready(1, 1_940, ADDRESS);
    let seen: Vec<_> = states(&story).iter().map(|s| format!("{:<8} {}", s.phase(), waiting_for(s))).collect();
    insta::assert_snapshot!(seen.join("\n"));
}

#[test]
fn a_guest_with_a_static_address_is_not_waited_for_to_ask() {
    let waits = |network: Option<serde_json::Value>| {
        let mut spec = serde_json::json!({"image": "golden@7"});
        spec["network"] = network.unwrap_or("dhcp".into());
        let mut story = Story::of("progress");
        story.spec = stoker_schemas::JobSpec::from_value(&spec).unwrap();
        let state = story.enqueued().started(1, 3, ADDRESS).kernel_started(1, 300).state();
        waiting_for(&state)
    };
    assert_eq!(waits(None), "the guest to ask for its address by DHCP");
    let own = serde_json::json!({"static": {"address": ADDRESS, "gateway": "192.168.100.1"}});
    assert_eq!(waits(Some(own)), "the agent to answer GET /health on port 8080");
}

/// Plays the states a quarter of a second apart, then waits on for half a minute.
fn played(terminal: bool, states: &[JobState]) -> String {
    let start = Instant::now();
    let mut screen = Screen::new(terminal, start);
    let mut out = Vec::new();
    let mut now = start;
    for state in states {
        now += Duration::from_millis(250);
        screen.show(state, now, &mut out).unwrap();
    }
    for _ in 0..30 {
        now += Duration::from_secs(1);
        screen.show(states.last().unwrap(), now, &mut out).unwrap();
    }
    String::from_utf8(out).unwrap().replace("\r\u{1b}[K", "<again>")
}

#[test]
fn without_a_terminal_there_is_a_sign_of_life_every_ten_seconds() {
    let story = Story::of("progress").enqueued().started(1, 3, ADDRESS).booted(1, 3, ADDRESS);
    insta::assert_snapshot!(played(false, &states(&story)));
}

#[test]
fn on_a_terminal_one_line_is_written_again_and_is_gone_in_the_end() {
    let story = Story::of("progress").enqueued().started(1, 3, ADDRESS).booted(1, 3, ADDRESS).ready(1, 1_940, ADDRESS);
    let text = played(true, &states(&story));
    assert_eq!(text.matches("<again>").count(), 6, "{text}");
    let last = text.lines().last().unwrap();
    assert!(last.contains("ready: the agent at 192.168.100.17:8080 answered 200"), "{text}");
}

#[test]
fn a_line_that_is_written_again_takes_one_row() {
    let mut story = Story::of("progress");
    story.spec.readiness.units = (1..9).map(|n| format!("A service with a long name {n}")).collect();
    let story = story.enqueued().started(1, 3, ADDRESS).booted(1, 3, ADDRESS).healthy(1, 1_700);
    let text = played(true, &states(&story));
    let live = text.rsplit("<again>").next().unwrap();
    assert!(live.contains("waiting for units to start: A service") && live.ends_with('…'), "{live}");
    assert_eq!(live.chars().count(), 79, "{live}");
}

#[test]
fn a_guest_cannot_command_the_terminal() {
    let mut story = Story::of("progress").enqueued().started(1, 3, ADDRESS);
    story.spec.readiness.units = vec!["a\u{1b}[2Jb".to_owned()];
    let story = story.booted(1, 3, "\u{1b}[31m192.168.100.17");
    let mut progress = Progress::default();
    let lines: Vec<_> = states(&story).iter().flat_map(|state| progress.news(state)).collect();
    assert!(lines.iter().all(|line| !line.contains('\u{1b}')), "{lines:?}");
}

#[test]
fn a_settled_job_waits_for_nothing() {
    let story = retried().gone(2, 90_000, GoneWhy::Stopped);
    let last = states(&story).pop().unwrap();
    assert_eq!((last.phase(), waiting_for(&last).as_str()), (Phase::Stopped, "nothing: the job is settled"));
}
