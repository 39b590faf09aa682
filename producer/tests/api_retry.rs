//! A retry of a job that waits in a queue: its message again, should it be gone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use reqwest::StatusCode;
use serde_json::{Value, json};
use stoker_schemas::Phase;
use support::Server;
use support::client::Client;
use support::story::Story;

#[tokio::test]
async fn a_queued_job_is_retried_with_the_message_that_it_had() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let story = Story::of("lost").enqueued();
    server.tell(&story.events).await;
    let path = format!("/v1/jobs/{}", story.id);
    let answer = client.post(&format!("{path}/retry"), &json!({})).await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    assert_eq!(answer.json::<Value>().await.unwrap()["events"], json!(["job.republished"]));
    let published = server.broker.published();
    let [first, .., again, said] = published.as_slice() else { panic!("{published:?}") };
    assert_eq!((&again.routing_key, &again.body), (&first.routing_key, &first.body));
    assert_eq!(said.routing_key, "job.republished");
    let view = client.json(&path).await;
    assert_eq!((&view["phase"], &view["attempts"]), (&json!("queued"), &json!([])));
    let page = client.get(&format!("/jobs/{}", story.id)).await.text().await.unwrap();
    assert!(
        page.contains("Retry now") && page.contains("message was published again") && page.contains("api asked"),
        "{page}"
    );
}

#[tokio::test]
async fn a_retry_overtakes_a_cancellation_that_nobody_carried_out() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let story = Story::of("cancelled").enqueued();
    server.tell(&story.events).await;
    let path = format!("/v1/jobs/{}", story.id);
    client.post(&format!("{path}/cancel"), &json!({})).await;
    assert_eq!(client.json(&path).await["cancelling"], true);
    let answer = client.post(&format!("{path}/retry"), &json!({})).await;
    assert_eq!(answer.json::<Value>().await.unwrap()["events"], json!(["job.retry-scheduled"]));
    let state = server.model.job(story.id).unwrap().unwrap();
    assert_eq!((state.phase(), state.pending_cancel()), (Phase::Retrying, None));
}
