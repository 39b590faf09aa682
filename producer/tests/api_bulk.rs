//! One wish for all jobs that match: their number, the token, the deed and how far it is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use stoker_schemas::{EventData, Phase};
use stoker_worker::ports::broker::BrokerStatus;
use support::client::{Client, problem};
use support::story::Story;
use support::{SOON, Server};

/// More than one page of the list.
const MANY: usize = 620;

async fn json_of(response: Response, status: StatusCode) -> Value {
    let told = response.status();
    let body: Value = response.json().await.unwrap();
    assert_eq!(told, status, "{body}");
    body
}

/// The wish, with the token that its count answered with.
async fn counted(client: &Client<'_>, wish: &Value) -> (Value, Value) {
    let mut asked = wish.clone();
    asked["dry_run"] = json!(true);
    let counted = json_of(client.post("/v1/jobs/bulk", &asked).await, StatusCode::OK).await;
    let mut wish = wish.clone();
    wish["token"] = counted["token"].clone();
    (counted, wish)
}

/// Waits until it has ended.
async fn ended(client: &Client<'_>, started: &Value) -> Value {
    let path = started["location"].as_str().unwrap();
    let end = async {
        loop {
            let view = client.json(path).await;
            if view["state"] != "running" {
                return view;
            }
        }
    };
    tokio::time::timeout(SOON, end).await.expect("the end of a bulk")
}

fn dead(name: &str) -> Story {
    Story::conflict(name)
}

#[tokio::test]
async fn everything_that_matches_is_done_and_the_rest_named() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let mut events = Vec::new();
    for n in 0..MANY {
        events.extend(dead(&format!("dead {n}")).later(n as u64).events);
    }
    events.extend(Story::ready_at_first("up").events);
    server.tell(&events).await;
    let filter = json!({"image": "golden"});
    let wish = json!({"action": "retry", "filter": filter, "reason": "the image is mended"});
    let (counted, order) = counted(&client, &wish).await;
    assert_eq!(counted["count"], MANY + 1);
    assert_eq!(server.broker.published().len(), events.len(), "to count does nothing");
    let answer = client.post("/v1/jobs/bulk", &order).await;
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    let started = json_of(answer, StatusCode::ACCEPTED).await;
    assert_eq!(started["location"], location);
    let view = ended(&client, &started).await;
    assert_eq!((&view["state"], &view["total"], &view["done"]), (&json!("done"), &json!(MANY + 1), &json!(MANY)));
    assert_eq!((&view["left"], view["skipped"].as_array().unwrap().len()), (&json!(1), 1));
    assert_eq!(view["skipped"][0]["id"], json!(Story::of("up").id));
    assert!(view["skipped"][0]["reason"].as_str().unwrap().contains("ready"), "{view}");
    assert_eq!(server.broker.published().len(), events.len() + MANY);
    assert_eq!(view.get("error"), None);
}

#[tokio::test]
async fn a_token_is_good_for_its_wish_and_its_number_only() {
    let server = Server::start().await;
    let client = Client::of(&server);
    server.tell(&dead("one").events).await;
    let wish = json!({"action": "retry", "filter": {"phase": "dead"}});
    let (_, order) = counted(&client, &wish).await;
    let changed = [("action", json!("cancel")), ("filter", json!({})), ("token", json!("AAAA"))];
    for (field, value) in changed {
        let mut other = order.clone();
        other[field] = value;
        let refused = problem(client.post("/v1/jobs/bulk", &other).await, 409).await;
        assert!(refused["detail"].as_str().unwrap().contains("token"), "{field}: {refused}");
    }
    server.tell(&dead("two").events).await;
    let refused = problem(client.post("/v1/jobs/bulk", &order).await, 409).await;
    assert_eq!(refused["detail"], "2 jobs match now, and the token is for 1");
    let told = server.broker.published().len();
    let wrong = [
        (json!({"action": "retry", "filter": {}}), "token"),
        (json!({"action": "retry", "filter": {}, "dry_run": true, "token": "AAAA"}), "token"),
        (json!({"action": "retry", "dry_run": true}), "filter"),
        (json!({"action": "explode", "filter": {}, "dry_run": true}), "explode"),
        (json!({"action": "snooze", "filter": {}, "dry_run": true}), "for_s"),
        (json!({"action": "retry", "filter": {}, "dry_run": true, "for_s": 5}), "for_s"),
        (json!({"action": "retry", "filter": {"colour": "red"}, "dry_run": true}), "colour"),
    ];
    for (body, word) in wrong {
        let refused = problem(client.post("/v1/jobs/bulk", &body).await, 400).await;
        assert!(refused["detail"].as_str().unwrap().contains(word), "{body}: {refused}");
    }
    problem(client.post("/v1/jobs/bulk", &json!([])).await, 400).await;
    for id in ["0192", "018f6f0e-0a52-7c0e-9d1c-7a4b3b0d5e11"] {
        problem(client.get(&format!("/v1/bulk/{id}")).await, 404).await;
    }
    assert_eq!(server.broker.published().len(), told, "nothing was published");
    server.broker.status.send_replace(BrokerStatus::Blocked("memory".to_owned()));
    let (_, order) = counted(&client, &wish).await;
    problem(client.post("/v1/jobs/bulk", &order).await, 503).await;
}

#[tokio::test]
async fn what_the_broker_does_not_take_ends_it_and_is_said() {
    let server = Server::start().await;
    let client = Client::of(&server);
    for n in 0..5 {
        server.tell(&dead(&format!("dead {n}")).events).await;
    }
    let (_, order) = counted(&client, &json!({"action": "retry", "filter": {"phase": "dead"}})).await;
    *server.broker.confirms.lock().unwrap() = Some(2);
    let started = json_of(client.post("/v1/jobs/bulk", &order).await, StatusCode::ACCEPTED).await;
    let view = ended(&client, &started).await;
    assert_eq!((&view["state"], &view["total"], &view["done"]), (&json!("stopped"), &json!(5), &json!(2)));
    assert!(view["error"].as_str().unwrap().contains("did not confirm"), "{view}");
}

#[tokio::test]
async fn a_snooze_of_many_says_the_same_time_to_all() {
    let server = Server::start().await;
    let client = Client::of(&server);
    for n in 0..3 {
        let story = Story::of(&format!("waits {n}")).enqueued().started(1, 3, "192.168.100.17");
        let story = story.failed(1, 900, Story::not_listening());
        server.tell(&story.gone(1, 950, stoker_schemas::event::GoneWhy::Failed).retry(2, 960, 60_000).events).await;
    }
    assert_eq!(server.model.counts().phases[&Phase::Retrying], 3);
    let wish = json!({"action": "snooze", "for_s": 3600, "reason": "switch", "filter": {"phase": "retrying"}});
    let (_, order) = counted(&client, &wish).await;
    let started = json_of(client.post("/v1/jobs/bulk", &order).await, StatusCode::ACCEPTED).await;
    assert_eq!(ended(&client, &started).await["done"], 3);
    let told = server.broker.published();
    let snoozes = told.iter().filter_map(|entry| {
        match stoker_schemas::Event::decode(&entry.body, stoker_schemas::Time::UNIX_EPOCH).unwrap().data {
            EventData::SnoozeRequested(snooze) => Some(snooze),
            _ => None,
        }
    });
    let snoozes: Vec<_> = snoozes.collect();
    assert_eq!(snoozes.len(), 3);
    assert!(snoozes.iter().all(|snooze| snooze.until == snoozes[0].until && snooze.reason == "switch"));
}

/// More than the pages carry out in one request.
const VERY_MANY: usize = 10_001;

#[tokio::test]
async fn very_many_chosen_on_a_page_go_on_by_themselves() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let events: Vec<_> = (0..VERY_MANY).flat_map(|n| Story::of(&format!("waits {n}")).enqueued().events).collect();
    server.tell(&events).await;
    let act = async |confirmed: &str| {
        let form =
            client.http.post(server.url("/jobs/act")).header("content-type", "application/x-www-form-urlencoded");
        let fields = format!("action=cancel-all&back=/jobs&filter=phase%3Dqueued%26&confirmed={confirmed}");
        form.body(fields).send().await.unwrap()
    };
    let asked = act("").await.text().await.unwrap();
    assert!(asked.contains("Cancel 10,001 jobs?"), "{asked}");
    let page = act("10001").await;
    let path = page.url().path().to_owned();
    assert!(path.starts_with("/bulk/"), "{path}");
    assert!(page.text().await.unwrap().contains("/10,001"));
    let view = ended(&client, &json!({ "location": format!("/v1{path}") })).await;
    assert_eq!((&view["state"], &view["done"], &view["left"]), (&json!("done"), &json!(VERY_MANY), &json!(0)));
    let page = client.get(&path).await.text().await.unwrap();
    assert!(page.contains("Done.") && page.contains("10,001 done"), "{page}");
    assert_eq!(client.get("/bulk/nothing").await.status(), StatusCode::NOT_FOUND);
}
