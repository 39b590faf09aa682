//! How it is and how it went: health, readiness, the numbers, the tries of a job.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};
use stoker_producer::clock;
use stoker_producer::http::Access;
use stoker_producer::http::access::{Fingerprint, new_token};
use stoker_worker::ports::broker::{BrokerStatus, HistoryStatus};
use support::client::{Client, problem};
use support::story::Story;
use support::{SOON, Server};

/// A probe gives up after a second or so.
const AT_ONCE: Duration = Duration::from_secs(1);

#[tokio::test]
async fn it_is_ready_once_the_history_is_read_and_while_the_broker_is_there() {
    let server = Server::start().await;
    let client = Client::of(&server);
    server.tell(&Story::ready_at_first("long ago").events).await;
    let answer = client.get("/ready").await;
    assert!(answer.headers().contains_key("retry-after"));
    let early = problem(answer, 503).await;
    assert!(early["detail"].as_str().unwrap().contains("4 events so far"), "{early}");
    // An event of our own time: what was there before is behind us.
    let mut caught_up = server.model.caught_up();
    assert_eq!(client.post("/v1/jobs", &json!({"image": "golden"})).await.status(), StatusCode::ACCEPTED);
    tokio::time::timeout(SOON, caught_up.wait_for(|is| *is)).await.unwrap().unwrap();
    let answer = client.get("/ready").await;
    assert_eq!(answer.status(), StatusCode::OK);
    let ready = answer.json::<Value>().await.unwrap();
    assert_eq!((&ready["ready"], &ready["needs"]), (&json!(true), &json!([])));
    server.broker.status.send_replace(BrokerStatus::Down("connection refused".into()));
    let down = problem(client.get("/ready").await, 503).await;
    assert!(down["detail"].as_str().unwrap().contains("connection refused"), "{down}");
    server.broker.status.send_replace(BrokerStatus::Connected);
    assert_eq!(client.get("/ready").await.status(), StatusCode::OK, "once is enough");
}

#[tokio::test]
async fn a_history_that_says_nothing_more_is_read() {
    let server = Server::start().await;
    let client = Client::of(&server);
    server.broker.history_status.send_replace(HistoryStatus::Away("no leader".into()));
    let health = client.json("/health").await;
    assert_eq!(health["history"], json!({"state": "away", "reason": "no leader"}));
    assert_eq!(health["ok"], true, "work goes on");
    let since = Instant::now();
    server.broker.history_status.send_replace(HistoryStatus::Available);
    tokio::time::timeout(SOON, server.model.caught_up().wait_for(|is| *is)).await.unwrap().unwrap();
    assert!(since.elapsed() >= Duration::from_millis(900), "silence of one that is away counts for nothing");
    assert_eq!(client.get("/ready").await.status(), StatusCode::OK);
    assert_eq!(client.json("/health").await["history"], json!({"state": "available"}));
}

#[tokio::test]
async fn probes_need_no_token_and_are_answered_at_once_whatever_the_broker_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.toml");
    let sha256 = Fingerprint::of(&new_token().unwrap());
    std::fs::write(&path, format!("[[token]]\nname = \"eye\"\nrole = \"read\"\nsha256 = \"{sha256}\"\n")).unwrap();
    let server = Server::start_with(Access::from_file(&path).unwrap()).await;
    let client = Client::of(&server);
    for status in [BrokerStatus::Down("timed out".into()), BrokerStatus::Blocked("disk alarm".into())] {
        server.broker.status.send_replace(status);
        for path in ["/health", "/ready"] {
            let asked = Instant::now();
            assert_eq!(client.get(path).await.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
            assert!(asked.elapsed() < AT_ONCE, "{path} took {:?}", asked.elapsed());
        }
    }
    assert_eq!(client.get("/v1/stats").await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn the_numbers_are_those_of_the_overview() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let start = Story::of("x").at(0);
    let two_minutes_ago = clock::system()().since(start).as_secs() - 120;
    let recent = |name: &str| Story::of(name).later(two_minutes_ago).enqueued();
    let address = "192.168.100.17";
    let up = recent("up").started(1, 3, address).booted(1, 3, address).ready(1, 1_933, address);
    let dead = recent("dead").started(1, 3, address).failed(1, 900, Story::conflicting());
    let dead = dead.dead(1, 950, Story::conflicting());
    let queued = recent("queued");
    // Longer ago than is asked for.
    let old = Story::ready_at_first("old");
    for story in [&up, &dead, &queued, &old] {
        server.tell(&story.events).await;
    }
    let stats = client.json("/v1/stats?minutes=5").await;
    let total = &stats["total"];
    let counted = ["enqueued", "boots", "ok", "failed"].map(|name| total[name].as_u64().unwrap());
    assert_eq!(counted, [3, 2, 1, 1], "{stats}");
    let p95 = total["boot_p95_ms"].as_f64().unwrap();
    assert!((p95 / 1_930.0 - 1.0).abs() < 0.07, "{p95}");
    assert_eq!(total["causes"], json!({"conflicting_network": 1}));
    assert!(total["stages_ms"]["kernel_started"].as_u64().unwrap() > 0, "{total}");
    let minutes = stats["minutes"].as_array().unwrap();
    assert_eq!(minutes.len(), 5);
    for name in ["enqueued", "boots", "ok", "failed"] {
        assert_eq!(minutes.iter().map(|m| m[name].as_u64().unwrap()).sum::<u64>(), total[name].as_u64().unwrap());
    }
    assert!(minutes.is_sorted_by_key(|m| m["at"].as_str().unwrap().to_owned()));
    assert_eq!((&stats["phases"]["ready"], &stats["phases"]["dead"]), (&json!(2), &json!(1)));
    assert_eq!(stats["causes"], json!({"conflicting_network": 1}));
    assert_eq!(stats["oldest_queued"]["id"], json!(queued.id));
    assert!(stats["oldest_queued"]["waits_ms"].as_u64().unwrap() >= 120_000);
    assert_eq!(client.json("/v1/stats").await["minutes"].as_array().unwrap().len(), 60);
    for bad in ["0", "10081", "x"] {
        let problem = problem(client.get(&format!("/v1/stats?minutes={bad}")).await, 400).await;
        assert!(problem["detail"].as_str().unwrap().contains("minutes"), "{problem}");
    }
}

#[tokio::test]
async fn the_tries_of_a_job_say_where_how_long_and_why() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let story = Story::failed_then_ready("twice");
    server.tell(&story.events).await;
    let told = client.json(&format!("/v1/jobs/{}/attempts", story.id)).await;
    assert_eq!((&told["id"], &told["phase"], &told["next"]), (&json!(story.id), &json!("ready"), &Value::Null));
    let attempts = told["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 2);
    let (first, second) = (&attempts[0], &attempts[1]);
    assert_eq!((&first["outcome"], &first["host"]), (&json!("failed"), &json!("h-01")));
    assert_eq!(first["diagnosis"]["cause"], "agent_not_listening");
    assert_eq!((&second["outcome"], &second["host"]), (&json!("ready"), &json!("h-02")));
    assert_eq!((&second["address"], &second["took_ms"]), (&json!("192.168.100.17"), &json!(1_930)));
    assert_eq!(second["vm"], json!(story.vm(2)));
    let stage = second["stages"].as_array().unwrap().iter().find(|s| s["name"] == "kernel_started").unwrap();
    assert_eq!(stage["took_ms"], 284);
    problem(client.get("/v1/jobs/ffff/attempts").await, 404).await;
}
