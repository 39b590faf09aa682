//! The verification report, as its readers see it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "report/combinations.rs"]
mod combinations;
mod support;

use stoker_producer::report::Report;
use stoker_schemas::event::GoneWhy;
use support::Story;

fn markdown(story: &Story, console: Option<&str>) -> String {
    Report::of(&story.state(), console).to_markdown()
}

#[test]
fn ready_at_first() {
    let console = "[    0.000000] Linux version 6.1\n\u{1b}[0;32m[  OK  ]\u{1b}[0m Started VM Browser OAuth Agent.\n";
    insta::assert_snapshot!(markdown(&Story::ready_at_first("report"), Some(console)));
}

#[test]
fn failed_then_ready() {
    insta::assert_snapshot!(markdown(&Story::failed_then_ready("report"), None));
}

#[test]
fn dead_with_conflicting_network() {
    insta::assert_snapshot!(markdown(&Story::conflict("report"), None));
}

#[test]
fn queued() {
    insta::assert_snapshot!(markdown(&Story::of("report").enqueued(), None));
}

#[test]
fn cancelled() {
    let booting = Story::of("report").enqueued().started(1, 3, "192.168.100.17").booted(1, 3, "192.168.100.17");
    insta::assert_snapshot!(markdown(&booting.cancelled(2_000).gone(1, 2_004, GoneWhy::Cancelled), None));
}

#[test]
fn a_guest_cannot_write_into_the_report() {
    let console = "```\n# Verification report: forged\n<script>alert(1)</script>\n";
    let text = markdown(&Story::ready_at_first("report"), Some(console));
    let body = text.split("## End of the console").nth(1).unwrap();
    assert_eq!(body.matches("```").count(), 2, "the fence stays closed:\n{body}");
}

#[test]
fn the_report_is_a_function_of_the_set_of_events() {
    let mut story = Story::failed_then_ready("report");
    let told = markdown(&story, None);
    story.events.reverse();
    story.events.extend(story.events.clone());
    assert_eq!(markdown(&story, None), told);
}

#[test]
fn many_attempts_stay_a_table_that_fits() {
    let mut story = Story::of("report").enqueued();
    for attempt in 1..=20 {
        let ms = u64::from(attempt) * 60_000;
        story = story.started(attempt, ms, "192.168.100.17").failed(attempt, ms + 100, Story::not_listening());
        story = story.gone(attempt, ms + 200, GoneWhy::Failed);
    }
    let text = markdown(&story, None);
    let header = text.lines().find(|l| l.starts_with("| check |")).unwrap();
    assert!(header.contains("attempt 1 |") && header.contains("attempt 20 |"), "{header}");
    assert!(header.matches("attempt").count() <= 6, "{header}");
}
