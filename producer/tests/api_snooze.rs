//! Attempts that are to wait longer: over HTTP, on pages, with the command line's words.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use stoker_producer::clock;
use stoker_schemas::event::GoneWhy;
use stoker_schemas::{Phase, Time};
use support::Server;
use support::client::{Client, problem};
use support::story::Story;

/// Waits for its second attempt, which is due a minute from now.
fn waiting(name: &str) -> Story {
    let mut story = Story::of(name).on("h-07").enqueued().started(1, 3, "192.168.100.17");
    story = story.failed(1, 900, Story::not_listening()).gone(1, 950, GoneWhy::Failed);
    let now = (clock::system())();
    let since_start = u64::try_from(now.since(story.at(0)).as_millis()).unwrap();
    story.retry(2, 960, since_start - 960 + 60_000)
}

fn time(value: &Value) -> Time {
    serde_json::from_value(value.clone()).unwrap()
}

#[tokio::test]
async fn a_waiting_attempt_waits_longer_and_everybody_sees_whose_wish_it_is() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let story = waiting("snoozed");
    server.tell(&story.events).await;
    let path = format!("/v1/jobs/{}/snooze", story.id);
    let asked = client.http.post(server.url(&path)).header("stoker-by", "test/ada");
    let answer = asked.json(&json!({"for_s": 3600, "reason": "the switch is rebooted"})).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    assert_eq!(answer.json::<Value>().await.unwrap()["events"], json!(["job.snooze-requested"]));
    assert_eq!(server.broker.keys().last().unwrap(), "command.all");
    let view = client.json(&format!("/v1/jobs/{}", story.id)).await;
    let due = time(&view["next"]["not_before"]);
    let wait = due.since((clock::system())());
    assert!(wait > Duration::from_secs(3_500) && wait <= Duration::from_secs(3_600), "{wait:?}");
    assert_eq!(view["next"]["snoozed_by"], "test/ada");
    let row = &client.json("/v1/jobs?phase=retrying").await["jobs"][0];
    assert_eq!((&row["snoozed_by"], time(&row["not_before"])), (&json!("test/ada"), due));
    for page in ["/retries".to_owned(), format!("/jobs/{}", story.id), "/jobs?phase=retrying".to_owned()] {
        let text = client.get(&page).await.text().await.unwrap();
        assert!(text.contains("snoozed by test/ada"), "{page}");
    }
    // Later still, to the second; earlier is refused with the way out.
    let later = due.plus(Duration::from_secs(60));
    let answer = client.post(&path, &json!({ "until": later })).await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    assert_eq!(server.model.job(story.id).unwrap().unwrap().due(2), Some(later));
    let refused = problem(client.post(&path, &json!({"for_s": 60})).await, 409).await;
    assert!(refused["detail"].as_str().unwrap().contains("retry to have it now"), "{refused}");
}

#[tokio::test]
async fn what_cannot_be_snoozed_is_refused_with_the_fields_name() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let (story, up) = (waiting("refused"), Story::ready_at_first("up"));
    server.tell(&story.events).await;
    server.tell(&up.events).await;
    let path = format!("/v1/jobs/{}/snooze", story.id);
    let until = "2026-01-01T00:00:00Z";
    let wrong = [
        (json!({}), "for_s"),
        (json!({"for_s": 60, "until": until}), "for_s, until"),
        (json!({"for_s": 1.5}), "for_s"),
        (json!({"for_s": null}), "for_s"),
        (json!({"until": "soon"}), "until"),
        (json!({"until": until, "reson": "x"}), "reson"),
    ];
    for (body, field) in wrong {
        let refused = problem(client.post(&path, &body).await, 400).await;
        assert!(refused["detail"].as_str().unwrap().contains(field), "{body}: {refused}");
    }
    problem(client.post(&path, &json!({ "until": until })).await, 409).await;
    problem(client.post(&format!("/v1/jobs/{}/snooze", up.id), &json!({"for_s": 60})).await, 409).await;
    problem(client.post("/v1/jobs/0192/snooze", &json!({"for_s": 60})).await, 404).await;
    let told = server.broker.published().len();
    assert_eq!(told, story.events.len() + up.events.len(), "nothing was published");
}

#[tokio::test]
async fn rows_are_snoozed_without_script_one_by_one_or_ticked() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let stories: Vec<_> = (0..3).map(|n| waiting(&format!("row {n}"))).collect();
    for story in &stories {
        server.tell(&story.events).await;
    }
    let page = client.get("/retries").await.text().await.unwrap();
    let first = stories[0].id;
    assert!(page.contains(&format!("formaction=\"/jobs/{first}/snooze-3600\"")), "{page}");
    assert!(
        page.contains("By host")
            && page.contains("/jobs?phase=retrying&amp;host=h-07\">h-07</a></td><td class=\"num\">3<")
    );
    let no_redirect =
        reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    // A row's button sends the form around the table, ticked rows and all.
    let ids: Vec<_> = stories.iter().map(|story| ("id", story.id.to_string())).collect();
    let fields =
        [("back", "/retries".to_owned()), ("filter", "phase=retrying&".to_owned()), ids[1].clone(), ids[2].clone()];
    let body = |fields: &[(&str, String)]| {
        let pairs = fields.iter().map(|(name, value)| format!("{name}={}", value.replace('&', "%26")));
        pairs.collect::<Vec<_>>().join("&")
    };
    let post = |path: String, fields: &[(&str, String)]| {
        let form = no_redirect.post(server.url(&path)).header("content-type", "application/x-www-form-urlencoded");
        form.body(body(fields)).send()
    };
    let answer = post(format!("/jobs/{first}/snooze-3600"), &fields).await.unwrap();
    assert_eq!((answer.status(), answer.headers()["location"].to_str().unwrap()), (StatusCode::SEE_OTHER, "/retries"));
    let waits = |n: usize| {
        let state = server.model.job(stories[n].id).unwrap().unwrap();
        state.due(2).unwrap().since((clock::system())()).as_secs()
    };
    assert!(waits(0) > 3_000 && waits(1) < 100 && waits(2) < 100);
    let mut ticked = fields.to_vec();
    ticked.push(("action", "snooze-28800".to_owned()));
    let answer = post("/jobs/act".to_owned(), &ticked).await.unwrap().text().await.unwrap();
    assert!(answer.contains("2 snoozed"), "{answer}");
    assert!(waits(0) < 4_000 && waits(1) > 28_000 && waits(2) > 28_000);
    assert_eq!(server.model.counts().phases[&Phase::Retrying], 3);
    // What is due in 8 h anyway cannot be made to wait an hour.
    let page = client.get("/retries").await.text().await.unwrap();
    assert!(!page.contains(&format!("/jobs/{}/snooze-3600", stories[1].id)), "{page}");
}
