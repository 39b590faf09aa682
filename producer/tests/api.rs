//! The HTTP API: what it takes, what it refuses, and what it writes to the broker.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use stoker_producer::http::{self, Access};
use stoker_worker::ports::broker::BrokerStatus;
use support::client::{Client, problem};
use support::story::{Story, host_started, publishing_refused, publishing_resumed, warm_vms};
use support::{SOON, Server};

#[tokio::test]
async fn a_job_is_taken_once_the_broker_has_confirmed_it() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let sent = client.http.post(server.url("/v1/jobs")).header("stoker-by", "test/ada");
    let answer = sent.json(&json!({"image": "golden", "priority": "high"})).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["jobs"][0]["duplicate"], false);
    assert_eq!(server.broker.keys(), ["job.enqueued.default.high"]);
    let view = client.json(&location).await;
    assert_eq!(
        (&view["phase"], &view["by"], &view["id"]),
        (&json!("queued"), &json!("test/ada"), &body["jobs"][0]["id"])
    );
}

#[tokio::test]
async fn a_refusal_lists_everything_and_publishes_nothing() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let jobs = json!([{"image": "golden"}, {"image": "a/b", "vcpus": 99}, {"image": "x", "kernel_args": "ip=dhcp"}]);
    let problem = problem(client.post("/v1/jobs", &jobs).await, 422).await;
    let fields: Vec<_> = problem["errors"].as_array().unwrap().iter().map(|e| e["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["[1].image", "[1].vcpus", "[2].kernel_args"]);
    assert!(problem["errors"][2]["hint"].as_str().unwrap().contains("remove ip="), "{problem}");
    assert!(server.broker.keys().is_empty());
}

#[tokio::test]
async fn bodies_are_bounded_and_must_be_json() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let post = || client.http.post(server.url("/v1/jobs"));
    let large = post().header("content-type", "application/json").body(vec![b' '; (8 << 20) + 1]);
    problem(large.send().await.unwrap(), 413).await;
    problem(post().body("{\"image\":\"golden\"}").send().await.unwrap(), 415).await;
    problem(post().header("content-type", "application/json").body("{").send().await.unwrap(), 400).await;
    problem(client.get("/v1/nothing").await, 404).await;
    problem(client.post("/health", &json!({})).await, 405).await;
    problem(client.get("/v1/jobs?phase=strange").await, 400).await;
    problem(client.get("/v1/jobs?cause=strange").await, 400).await;
    problem(client.get("/v1/jobs?unknown=1").await, 400).await;
    assert!(server.broker.keys().is_empty());
}

#[tokio::test]
async fn without_a_broker_nothing_is_taken_and_when_to_come_back_is_said() {
    let server = Server::start().await;
    let client = Client::of(&server);
    for status in [BrokerStatus::Down("refused".into()), BrokerStatus::Blocked("memory alarm".into())] {
        server.broker.status.send_replace(status);
        let answer = client.post("/v1/jobs", &json!({"image": "golden"})).await;
        assert!(answer.headers().contains_key("retry-after"));
        problem(answer, 503).await;
        assert_eq!(client.get("/health").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
    server.broker.status.send_replace(BrokerStatus::Connected);
    // The confirm of the second never comes: the first is told as taken.
    *server.broker.confirms.lock().unwrap() = Some(1);
    let jobs = json!([{"image": "a"}, {"image": "b"}, {"image": "c"}]);
    let partly = problem(client.post("/v1/jobs", &jobs).await, 503).await;
    assert_eq!(partly["confirmed"].as_array().unwrap().len(), 1);
    assert_eq!(server.broker.keys().len(), 1);
}

#[tokio::test]
async fn the_same_key_is_the_same_job() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let send = async |body: Value| {
        let request = client.http.post(server.url("/v1/jobs")).header("idempotency-key", "deploy-7");
        request.json(&body).send().await.unwrap()
    };
    let first: Value = send(json!({"image": "golden"})).await.json().await.unwrap();
    let second: Value = send(json!({"image": "golden"})).await.json().await.unwrap();
    assert_eq!(first["jobs"][0]["id"], second["jobs"][0]["id"]);
    assert_eq!((&first["jobs"][0]["duplicate"], &second["jobs"][0]["duplicate"]), (&json!(false), &json!(true)));
    problem(send(json!({"image": "other"})).await, 409).await;
    assert_eq!(server.broker.keys().len(), 1, "published once");
}

#[tokio::test]
async fn wishes_are_decided_by_the_rules_and_published() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let (queued, up, dead) = (Story::of("queued").enqueued(), Story::ready_at_first("up"), Story::conflict("dead"));
    for story in [&queued, &up, &dead] {
        server.tell(&story.events).await;
    }
    let before = server.broker.keys().len();
    let refused = problem(client.post(&format!("/v1/jobs/{}/stop", queued.id), &json!({})).await, 409).await;
    assert!(refused["detail"].as_str().unwrap().contains("needs it ready"), "{refused}");
    problem(client.post(&format!("/v1/jobs/{}/retry", up.id), &json!({})).await, 409).await;
    problem(client.post(&format!("/v1/jobs/{}/retry", dead.id), &json!({"spec": {"vcpus": 0}})).await, 422).await;
    problem(client.post("/v1/jobs/ffffffff/cancel", &json!({})).await, 404).await;
    assert_eq!(server.broker.keys().len(), before, "refusals publish nothing");

    let wish = async |path: String, body: Value| client.post(&path, &body).await.status();
    assert_eq!(wish(format!("/v1/jobs/{}/cancel", queued.id), json!({"reason": "typo"})).await, StatusCode::ACCEPTED);
    assert_eq!(wish(format!("/v1/jobs/{}/cancel", queued.id), json!({})).await, StatusCode::OK, "asked before");
    assert_eq!(wish(format!("/v1/jobs/{}/stop", up.id), json!({})).await, StatusCode::ACCEPTED);
    let fixed = json!({"spec": {"image": "golden@8"}});
    assert_eq!(wish(format!("/v1/jobs/{}/retry", dead.id), fixed).await, StatusCode::ACCEPTED);
    let keys = server.broker.keys().split_off(before);
    assert_eq!(keys.len(), 3, "{keys:?}");
    assert_eq!(&keys[..2], ["command.all", "command.all"]);
    assert!(keys[2].starts_with("job.retry-scheduled.default.normal."), "{keys:?}");
    let view = client.json(&format!("/v1/jobs/{}", dead.id)).await;
    assert_eq!((&view["phase"], &view["spec"]["image"]), (&json!("retrying"), &json!("golden@8")));
}

#[tokio::test]
async fn dead_jobs_are_seen_by_cause_and_sent_round_again() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let stories = ["a", "b", "c"].map(Story::conflict);
    for story in &stories {
        server.tell(&story.events).await;
    }
    let page = client.json("/v1/dead").await;
    assert_eq!((&page["total"], &page["causes"]["conflicting_network"]), (&json!(3), &json!(3)));
    problem(client.post("/v1/dead/redrive", &json!({})).await, 400).await;
    let ids = json!({"ids": [stories[0].id.to_string(), "ffff"]});
    let answer: Value = client.post("/v1/dead/redrive", &ids).await.json().await.unwrap();
    assert_eq!(answer["redriven"], json!([stories[0].id.to_string()]));
    assert_eq!(answer["skipped"][0]["id"], "ffff");
    let rest = json!({"filter": {"image": "golden"}});
    let answer: Value = client.post("/v1/dead/redrive", &rest).await.json().await.unwrap();
    assert_eq!(answer["redriven"].as_array().unwrap().len(), 2);
    assert_eq!(client.json("/v1/dead").await["total"], 0);
}

#[tokio::test]
async fn consoles_and_reports_are_served() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let story = Story::failed_then_ready("console");
    server.tell(&story.events).await;
    server.consoles.write(
        stoker_schemas::VmId::derive(story.id, stoker_schemas::Epoch::first(1), &"h-01".parse().unwrap()),
        b"first boot\n",
    );
    let path = format!("/v1/jobs/{}/console", story.id);
    let answer = client.get(&format!("{path}?attempt=1&from=6")).await;
    assert_eq!(answer.headers()["stoker-next"], "11");
    assert_eq!(answer.text().await.unwrap(), "boot\n");
    problem(client.get(&path).await, 404).await;
    problem(client.get(&format!("{path}?attempt=9")).await, 404).await;
    let report = client.get(&format!("/v1/jobs/{}/report", story.id)).await;
    assert_eq!(report.headers()["content-type"], "text/markdown; charset=utf-8");
    assert!(report.text().await.unwrap().contains("## Before and after"));
    assert_eq!(client.json(&format!("/v1/jobs/{}/report?format=json", story.id)).await["verified"], true);
}

#[tokio::test]
async fn other_sites_and_names_are_turned_away() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let get = || client.http.get(server.url("/v1/jobs"));
    problem(get().header("host", "evil.example").send().await.unwrap(), 403).await;
    problem(get().header("origin", "http://evil.example").send().await.unwrap(), 403).await;
    let own = get().header("origin", format!("http://{}", server.address)).send().await.unwrap();
    assert_eq!(own.status(), StatusCode::OK);
    let elsewhere = "0.0.0.0:0".parse().unwrap();
    assert!(http::bind(elsewhere, &Access::Open).await.is_err(), "loopback only");
}

#[tokio::test]
async fn pages_show_jobs_and_escape_everything() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let empty = client.get("/").await.text().await.unwrap();
    assert!(empty.contains("stoker enqueue golden --wait"));
    let story = Story::conflict("page");
    server.tell(&story.events).await;
    let page = client.get("/").await;
    assert!(page.headers()["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
    let page = page.text().await.unwrap();
    assert!(page.contains(&format!("/jobs/{}", story.id)) && page.contains("conflicting network"), "{page}");
    let job = client.get(&format!("/jobs/{}", story.id)).await.text().await.unwrap();
    assert!(job.contains("ipaddr=192.168.100.2 &lt;b&gt;|x|&lt;/b&gt;"), "{job}");
    assert!(!job.contains("<b>|x|"));
    let missing = client.get("/jobs/%3Cscript%3Ealert").await;
    assert_eq!(missing.status(), StatusCode::NOT_FOUND);
    assert!(!missing.text().await.unwrap().contains("<script>alert"));
}

#[tokio::test]
async fn hosts_drain_and_metrics_count() {
    let server = Server::start().await;
    let client = Client::of(&server);
    server.tell(&[host_started("h-01")]).await;
    server.tell(&Story::ready_at_first("up").events).await;
    server.tell(&warm_vms("h-01")).await;
    problem(client.post("/v1/hosts/h-99/drain", &json!({})).await, 404).await;
    let host = &client.json("/v1/hosts").await[0];
    assert_eq!(host["ready"], 1, "warm VMs are nobody's: {host}");
    let warm = &host["warm"][0];
    let counted = [("wanted", 2), ("ready", 1), ("booting", 1), ("vcpus", 2), ("memory_mib", 1_024)];
    assert!(counted.iter().all(|(field, n)| warm[*field] == *n), "{warm}");
    assert!(warm["remedy"].as_str().unwrap().contains("ip="), "{warm}");
    let drained = client.post("/v1/hosts/h-01/drain", &json!({"reason": "disk"})).await;
    assert_eq!(drained.status(), StatusCode::ACCEPTED);
    assert_eq!(server.broker.keys().last().unwrap(), "command.host.h-01");
    assert_eq!(client.json("/v1/hosts").await[0]["status"], "drain_requested");
    let metrics = client.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("stoker_jobs{phase=\"ready\"} 1\n"), "{metrics}");
    assert!(metrics.contains("stoker_broker_up 1\n"), "{metrics}");
    assert!(metrics.contains("stoker_warm_vms{state=\"ready\"} 1\n"), "{metrics}");
}

#[tokio::test]
async fn a_queue_that_refuses_a_hosts_messages_is_seen_everywhere() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let none = "stoker_outbox_refused_messages{host=\"h-01\"} 0\n";
    server.tell(&[host_started("h-01")]).await;
    assert!(client.get("/metrics").await.text().await.unwrap().contains(none));

    server.tell(&[publishing_refused("h-01", 1)]).await;
    let refusal = &client.json("/v1/hosts").await[0]["refusals"][0];
    assert_eq!((&refusal["queue"], &refusal["messages"]), (&json!("stoker.delay.2000"), &json!(12)));
    let metrics = client.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("stoker_outbox_refused_messages{host=\"h-01\"} 12\n"), "{metrics}");
    for page in ["/", "/hosts"] {
        let text = client.get(page).await.text().await.unwrap();
        assert!(text.contains("stoker.delay.2000") && text.contains("is full or unavailable"), "{page}: {text}");
    }
    let overview = client.get("/").await.text().await.unwrap();
    assert!(overview.contains("Needs you") && overview.contains("host h-01 keeps 12 messages"), "{overview}");

    server.tell(&[publishing_resumed("h-01", 2)]).await;
    assert!(client.get("/metrics").await.text().await.unwrap().contains(none));
    assert!(!client.get("/").await.text().await.unwrap().contains("stoker.delay.2000"));
}

/// Reads live events until one has this number.
async fn numbers(mut response: Response, last: u64) -> Vec<u64> {
    let mut text = String::new();
    let mut seen = Vec::new();
    while !seen.contains(&last) {
        let chunk = tokio::time::timeout(SOON, response.chunk()).await.unwrap().unwrap().unwrap();
        text.push_str(&String::from_utf8_lossy(&chunk));
        seen = text.lines().filter_map(|l| l.strip_prefix("id: ")?.parse().ok()).collect();
    }
    seen
}

#[tokio::test]
async fn live_events_miss_nothing_and_resume() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let story = Story::ready_at_first("live");
    let (first, rest) = story.events.split_at(2);
    server.tell(first).await;
    let all = client.get(&format!("/v1/events?job={}", story.id)).await;
    let new = client.get("/v1/events").await;
    server.tell(&Story::of("other").enqueued().events).await;
    server.tell(rest).await;
    assert_eq!(numbers(all, 4).await, [0, 1, 3, 4], "its own, from the beginning");
    assert_eq!(numbers(new, 4).await, [2, 3, 4], "everything, from now on");
    let resumed = client.http.get(server.url("/v1/events")).header("last-event-id", "1").send().await.unwrap();
    assert_eq!(numbers(resumed, 4).await, [2, 3, 4]);
    let log = client.get("/v1/log?from=3").await;
    assert_eq!(log.headers()["stoker-next"], "5");
    assert_eq!(log.text().await.unwrap().lines().count(), 2);
}
