//! Submitting and waiting: the answer comes with the jobs, or when time is up.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use stoker_schemas::JobId;
use support::client::{Client, problem};
use support::story::Story;
use support::{SOON, Server};
use tokio::task::JoinHandle;

/// Sends jobs and waits, beside the test.
fn submit(server: &Server, query: &str, jobs: Value) -> JoinHandle<Response> {
    let http = reqwest::Client::builder().no_proxy().timeout(SOON).build().unwrap();
    let request = http.post(server.url(&format!("/v1/jobs?{query}"))).json(&jobs);
    tokio::spawn(async move { request.send().await.unwrap() })
}

/// The beginning of what happens to so many jobs, once they are known.
async fn enqueued(server: &Server, count: usize) -> Vec<Story> {
    let mut news = server.model.changes();
    let known = || server.model.arrived(0, 100).unwrap();
    tokio::time::timeout(SOON, async {
        while known().len() < count {
            news.recv().await.unwrap();
        }
    })
    .await
    .unwrap();
    known().iter().map(|stored| Story::after(&stored.event().unwrap())).collect()
}

fn up(story: Story) -> Story {
    let address = "192.168.100.17";
    story.started(1, 3, address).ready(1, 1_933, address)
}

async fn answered(waiting: JoinHandle<Response>, status: u16) -> Value {
    let answer = tokio::time::timeout(SOON, waiting).await.unwrap().unwrap();
    assert_eq!(answer.status().as_u16(), status);
    answer.json().await.unwrap()
}

#[tokio::test]
async fn the_answer_comes_when_the_job_is_ready_and_shows_it() {
    let server = Server::start().await;
    let waiting = submit(&server, "wait=ready", json!({"image": "golden"}));
    let story = enqueued(&server, 1).await.remove(0);
    // Something else happens meanwhile.
    server.tell(&Story::ready_at_first("other").events).await;
    assert!(!waiting.is_finished());
    server.tell(&up(story).events).await;
    let answer = tokio::time::timeout(SOON, waiting).await.unwrap().unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    let body: Value = answer.json().await.unwrap();
    assert_eq!((&body["ready"], &body["settled"], &body["from"]), (&json!(true), &json!(true), &json!(0)));
    let job = &body["jobs"][0];
    assert_eq!(
        (&job["settled"], &job["duplicate"], &job["job"]["phase"]),
        (&json!(true), &json!(false), &json!("ready"))
    );
    assert_eq!(job["job"]["attempts"][0]["proof"]["agent"], "192.168.100.17:8080");
    assert_eq!(location, format!("/v1/jobs/{}", job["id"].as_str().unwrap()));
}

#[tokio::test]
async fn of_several_jobs_all_are_waited_for_and_their_ends_told_apart() {
    let server = Server::start().await;
    let waiting = submit(&server, "wait=ready&timeout=600", json!([{"image": "a"}, {"image": "b"}, {"image": "c"}]));
    let mut stories = enqueued(&server, 3).await.into_iter();
    let (first, second, third) = (stories.next().unwrap(), stories.next().unwrap(), stories.next().unwrap());
    let ids = [first.id, second.id, third.id];
    server.tell(&up(first).events).await;
    let dead = second.started(1, 3, "192.168.100.18").failed(1, 900, Story::conflicting());
    server.tell(&dead.dead(1, 950, Story::conflicting()).events).await;
    assert!(!waiting.is_finished(), "one is on its way");
    server.tell(&third.cancelled(5).events).await;
    let body = answered(waiting, 200).await;
    assert_eq!((&body["ready"], &body["settled"]), (&json!(false), &json!(true)));
    let phase = |id: JobId| {
        let jobs = body["jobs"].as_array().unwrap();
        jobs.iter().find(|job| job["id"] == json!(id)).unwrap()["job"]["phase"].as_str().unwrap().to_owned()
    };
    assert_eq!(ids.map(phase), ["ready", "dead", "cancelled"]);
}

#[tokio::test]
async fn when_time_is_up_what_is_known_is_told_and_the_jobs_go_on() {
    let server = Server::start().await;
    let begun = Instant::now();
    let body = answered(submit(&server, "wait=ready&timeout=1", json!({"image": "golden"})), 202).await;
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!((&body["settled"], &body["jobs"][0]["job"]["phase"]), (&json!(false), &json!("queued")));
    assert_eq!(server.broker.keys().len(), 1);
}

#[tokio::test]
async fn a_job_that_is_there_already_is_told_at_once() {
    let server = Server::start().await;
    let job = json!({"image": "golden", "idempotency_key": "deploy-7"});
    let waiting = submit(&server, "wait=ready", job.clone());
    let story = enqueued(&server, 1).await.remove(0);
    server.tell(&up(story).events).await;
    answered(waiting, 200).await;
    let again = answered(submit(&server, "wait=ready", job), 200).await;
    assert_eq!((&again["jobs"][0]["duplicate"], &again["ready"]), (&json!(true), &json!(true)));
}

#[tokio::test]
async fn waits_have_bounded_places_and_a_refusal_publishes_nothing() {
    let server = Server::start_narrow(1, SOON).await;
    let client = Client::of(&server);
    for (query, field) in [
        ("wait=dead", "wait"),
        ("wait=ready&timeout=0", "timeout:"),
        ("wait=ready&timeout=601", "timeout:"),
        ("timeout=5", "timeout:"),
        ("strange=1", "strange"),
    ] {
        let refused = client.post(&format!("/v1/jobs?{query}"), &json!({"image": "golden"})).await;
        let problem = problem(refused, 400).await;
        assert!(problem["detail"].as_str().unwrap().contains(field), "{query}: {problem}");
    }
    assert!(server.broker.keys().is_empty());
    let waiting = submit(&server, "wait=ready", json!({"image": "golden"}));
    enqueued(&server, 1).await;
    problem(client.post("/v1/jobs?wait=ready", &json!({"image": "golden"})).await, 503).await;
    assert_eq!(server.broker.keys().len(), 1);
    assert_eq!(client.post("/v1/jobs", &json!({"image": "golden"})).await.status(), StatusCode::ACCEPTED);
    drop(server);
    assert_eq!(answered(waiting, 202).await["settled"], false, "a stopping server holds nobody up");
}
