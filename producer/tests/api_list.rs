//! Lists of jobs: whatever the filter and however the pages are cut, exactly the rows that match,
//! the newest first.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::cmp::Reverse;
use std::sync::LazyLock;

use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::json;
use stoker_producer::clock;
use stoker_producer::readmodel::{Filter, JobSummary, Phases, ReadModel};
use stoker_schemas::diagnosis::Cause;
use stoker_schemas::{Phase, Time};
use stoker_worker::ports::broker::{CONTENT_BATCH, HistoryEntry};
use support::Server;
use support::client::{Client, problem};
use support::story::Story;

/// More than one page looks at, and more in one phase than makes its index the quickest way in.
const JOBS: u64 = 2_600;
/// Seconds that they are spread over: several are enqueued at the same moment.
const SPREAD_S: u64 = 900;

struct World {
    model: ReadModel,
    /// Every row, in the order of lists.
    rows: Vec<JobSummary>,
    start: Time,
    _dir: tempfile::TempDir,
}

fn story(n: u64) -> Story {
    let mut story = Story::of(&format!("job {n}")).later(n * 7 % SPREAD_S);
    story.spec.labels.insert("shard".to_owned(), (n % 5).to_string());
    if n.is_multiple_of(3) {
        story.spec.image = "other@2".parse().unwrap();
    }
    let story = story.enqueued();
    let address = "192.168.100.17";
    match n % 13 {
        0 => story.started(1, 3, address),
        1 => story.started(1, 3, address).ready(1, 1_933, address),
        2 => story.cancelled(50),
        3 => {
            let failed = story.on("h-02").started(1, 3, address).failed(1, 900, Story::not_listening());
            if n.is_multiple_of(2) { failed.retry(2, 950, 1_000) } else { failed }
        }
        4 => story.started(1, 3, address).failed(1, 900, Story::conflicting()).dead(1, 950, Story::conflicting()),
        _ => story,
    }
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let model = ReadModel::open(dir.path(), clock::system()).unwrap();
    let stories: Vec<_> = (0..JOBS).map(story).collect();
    for (offset, some) in (0..).zip(stories.chunks(400)) {
        let events: Vec<_> = some.iter().flat_map(|s| &s.events).map(|e| e.encode().unwrap()).collect();
        let body = [b"[".as_slice(), &events.join(b",".as_slice()), b"]"].concat().into();
        let (content_type, routing_key) = (CONTENT_BATCH.to_owned(), String::new());
        model.apply(&[HistoryEntry { offset, content_type, routing_key, body }]).unwrap();
    }
    let mut rows: Vec<_> = stories.iter().map(|s| model.summary(s.id).unwrap().unwrap()).collect();
    rows.sort_by_key(|job| (Reverse(job.created), job.id));
    World { model, rows, start: stories[0].at(0), _dir: dir }
});

/// What a filter means, said as plainly as it can be.
fn is_meant(filter: &Filter, job: &JobSummary) -> bool {
    let phases: Option<Vec<_>> = filter.phase.as_ref().map(|phases| phases.iter().collect());
    let label = |wanted: &str| job.labels.iter().any(|(k, v)| k == wanted || format!("{k}={v}") == wanted);
    let checks = [
        phases.is_none_or(|phases| phases.contains(&job.phase)),
        filter.image.as_ref().is_none_or(|i| job.image == *i || job.image.split('@').next() == Some(i)),
        filter.pool.as_ref().is_none_or(|pool| job.pool == *pool),
        filter.label.as_deref().is_none_or(label),
        filter.cause.is_none_or(|cause| job.cause == Some(cause)),
        filter.host.as_ref().is_none_or(|host| job.host.as_ref() == Some(host)),
        filter.since.is_none_or(|since| since <= job.created),
        filter.until.is_none_or(|until| job.created < until),
    ];
    checks.into_iter().all(|holds| holds)
}

/// All pages of a list, one after the other.
fn all_pages(model: &ReadModel, filter: &Filter, limit: usize) -> Vec<JobSummary> {
    let (mut cursor, mut seen) = (None, Vec::new());
    loop {
        let page = model.list(filter, cursor.as_deref(), limit).unwrap();
        assert!(page.jobs.len() <= limit);
        seen.extend(page.jobs);
        cursor = page.next;
        if cursor.is_none() {
            return seen;
        }
    }
}

prop_compose! {
    fn filters()(
        phases in option::of(subsequence(Phase::ALL.to_vec(), 1..=Phase::ALL.len())),
        image in option::of(select(vec!["golden", "golden@7", "other@2", "nothing"])),
        pool in option::weighted(0.2, select(vec!["default", "nothing"])),
        label in option::of(select(vec!["team", "shard", "shard=3", "shard=9", "team=web", "none"])),
        cause in option::weighted(0.2, select(vec![Cause::ConflictingNetwork, Cause::AgentNotListening, Cause::Unknown])),
        host in option::weighted(0.2, select(vec!["h-01", "h-02", "h-99"])),
        since in option::of(-10_i64..SPREAD_S as i64 + 10),
        until in option::of(-10_i64..SPREAD_S as i64 + 10),
    ) -> Filter {
        let names = |phases: Vec<Phase>| phases.iter().map(Phase::to_string).collect::<Vec<_>>().join(",");
        let text = |text: Option<&str>| text.map(str::to_owned);
        let at = |seconds: i64| Time::from_unix_micros(WORLD.start.unix_micros() + seconds * 1_000_000);
        Filter {
            phase: phases.map(|phases| names(phases).parse::<Phases>().unwrap()),
            image: text(image),
            pool: text(pool),
            label: text(label),
            cause,
            host: text(host),
            text: None,
            since: since.map(at),
            until: until.map(at),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pages_are_what_a_look_at_every_row_gives(filter in filters(), limit in select(vec![3_usize, 50, 499])) {
        let seen = all_pages(&WORLD.model, &filter, limit);
        let meant: Vec<_> = WORLD.rows.iter().filter(|job| is_meant(&filter, job)).cloned().collect();
        prop_assert_eq!(seen, meant, "{:?}", filter);
    }
}

#[test]
fn a_page_looks_at_a_bounded_number_of_rows() {
    let nowhere = Filter { text: Some("nothing says this".to_owned()), ..Filter::default() };
    let first = WORLD.model.list(&nowhere, None, 10).unwrap();
    assert!(first.jobs.is_empty() && first.next.is_some(), "gave up before the end, and says so");
    assert!(WORLD.model.list(&nowhere, first.next.as_deref(), 10).unwrap().next.is_none());
    // A range of time is where the scan begins and ends, not what it throws away.
    let oldest = WORLD.rows.last().unwrap().created;
    let within = Filter { until: Some(oldest.plus(std::time::Duration::from_secs(1))), ..nowhere };
    assert!(WORLD.model.list(&within, None, 10).unwrap().next.is_none());
    let newest = Filter { since: Some(WORLD.rows[0].created), ..Filter::default() };
    assert!(WORLD.model.list(&newest, None, 500).unwrap().next.is_none());
}

#[tokio::test]
async fn several_states_and_a_range_of_time_are_asked_for_by_address() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let (early, late) = (Story::ready_at_first("early"), Story::of("late").later(3_600).enqueued());
    let late = late.dead(1, 900, Story::conflicting());
    let queued = Story::of("queued").later(1_800).enqueued();
    for story in [&early, &late, &queued] {
        server.tell(&story.events).await;
    }
    let ids = async |query: &str| {
        let page = client.json(&format!("/v1/jobs?{query}")).await;
        let jobs = page["jobs"].as_array().unwrap_or_else(|| panic!("{page}"));
        jobs.iter().map(|job| job["id"].clone()).collect::<Vec<_>>()
    };
    let id = |story: &Story| json!(story.id);
    assert_eq!(ids("state=ready,dead").await, [id(&late), id(&early)]);
    assert_eq!(ids("phase=ready%2Cqueued").await, [id(&queued), id(&early)]);
    let (begin, end) = (early.at(0), late.at(0));
    assert_eq!(ids(&format!("since={begin}&until={end}")).await, [id(&queued), id(&early)], "until is not included");
    assert_eq!(ids(&format!("since={end}")).await, [id(&late)], "since is");
    assert_eq!(ids("since=2025-11-24T18:30:00%2B02:00&until=").await, [id(&late), id(&queued)]);
    for (query, field) in [
        ("state=ready,strange", "phase:"),
        ("phase=ready&state=dead", "phase"),
        ("cause=strange", "cause:"),
        ("since=yesterday", "since:"),
        ("until=2025-11-24", "until:"),
        ("since=2025-11-24T16:00:00Z&until=2025-11-24T16:00:00Z", "until:"),
        ("cursor=00", "cursor"),
    ] {
        let problem = problem(client.get(&format!("/v1/jobs?{query}")).await, 400).await;
        assert!(problem["detail"].as_str().unwrap().contains(field), "{query}: {problem}");
    }
    let answer = client.post("/v1/dead/redrive", &json!({"filter": {"until": end}})).await;
    assert_eq!(answer.json::<serde_json::Value>().await.unwrap()["redriven"], json!([]), "none is that old");
}

#[tokio::test]
async fn the_page_of_jobs_has_ranges_as_links_and_keeps_the_rest() {
    let server = Server::start().await;
    let client = Client::of(&server);
    server.tell(&Story::conflict("old").events).await;
    let page = client.get("/jobs?phase=failing,dead&image=golden").await.text().await.unwrap();
    assert!(page.contains("conflicting network"), "{page}");
    assert!(page.contains("/jobs?phase=failing%2Cdead&amp;image=golden&amp;since="), "{page}");
    assert!(page.contains("<option value=\"failing,dead\" selected>"), "{page}");
    let recent = client.get("/jobs?since=2026-01-01T00:00:00Z").await.text().await.unwrap();
    assert!(recent.contains("No job matches") && recent.contains("name=\"since\""), "{recent}");
}
