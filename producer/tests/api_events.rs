//! Events by filter, live and from the log; and what becomes of who does not read them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::Duration;

use reqwest::{Response, StatusCode};
use serde_json::Value;
use stoker_schemas::event::GoneWhy;
use stoker_schemas::{Event, EventData};
use stoker_worker::ports::broker::CONTENT_BATCH;
use support::client::{Client, problem};
use support::story::{Story, host_started};
use support::{SOON, Server};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpSocket;

/// Two hosts, a job on each of them, and one that is in another pool and nowhere.
async fn world(server: &Server) -> [Story; 3] {
    let address = "192.168.100.18";
    let first = Story::ready_at_first("first");
    let second = Story::of("second").on("h-02").enqueued().started(1, 3, address);
    let second = second.failed(1, 900, Story::conflicting()).dead(1, 950, Story::conflicting());
    let mut third = Story::of("third");
    third.spec.pool = "edge".parse().unwrap();
    third.spec.labels = [("team".to_owned(), "api".to_owned())].into();
    let third = third.enqueued();
    server.tell(&[host_started("h-01"), host_started("h-02")]).await;
    for story in [&first, &second, &third] {
        server.tell(&story.events).await;
    }
    [first, second, third]
}

fn kind(event: &Value) -> String {
    event["type"].as_str().unwrap().trim_start_matches("dev.stoker.").trim_end_matches(".v1").to_owned()
}

/// What the log says that matches: kind and subject.
async fn logged(client: &Client<'_>, query: &str) -> Vec<(String, String)> {
    let answer = client.get(&format!("/v1/log?{query}")).await;
    assert_eq!(answer.status(), StatusCode::OK, "{query}");
    let text = answer.text().await.unwrap();
    let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.map(|event| (kind(&event), event["subject"].as_str().unwrap().to_owned())).collect()
}

/// Live events until so many came.
async fn live(mut answer: Response, count: usize) -> Vec<Value> {
    assert_eq!(answer.status(), StatusCode::OK);
    let mut text = String::new();
    loop {
        let whole = text.rsplit_once("\n\n").map_or("", |(whole, _)| whole);
        let events: Vec<_> = whole.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        if events.len() >= count {
            return events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect();
        }
        let chunk = tokio::time::timeout(SOON, answer.chunk()).await.unwrap().unwrap().expect("ended early");
        text.push_str(&String::from_utf8_lossy(&chunk));
    }
}

#[tokio::test]
async fn filters_hold_together_in_the_log_and_live() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let [first, second, third] = world(&server).await;
    let of = |story: &Story, kinds: &[&str]| -> Vec<_> {
        kinds.iter().map(|kind| ((*kind).to_owned(), story.id.to_string())).collect()
    };
    assert_eq!(
        logged(&client, "kind=attempt.ready,job.dead").await,
        [of(&first, &["attempt.ready"]), of(&second, &["job.dead"])].concat()
    );
    assert_eq!(logged(&client, "pool=edge").await, of(&third, &["job.enqueued"]));
    assert_eq!(logged(&client, "label=team=api").await, of(&third, &["job.enqueued"]));
    assert_eq!(logged(&client, "label=team&kind=job.enqueued").await.len(), 3);
    let of_host = [("host.started".to_owned(), "h-02".to_owned())];
    let of_second = of(&second, &["attempt.started", "attempt.failed", "job.dead"]);
    assert_eq!(logged(&client, "host=h-02").await, [&of_host[..], &of_second].concat());
    assert_eq!(logged(&client, &format!("job={}&host=h-02", first.id)).await, []);
    assert_eq!(logged(&client, &format!("job={}&kind=job.dead", second.id)).await, of(&second, &["job.dead"]));
    let page = client.get("/v1/log?pool=edge&limit=4").await;
    assert_eq!(page.headers()["stoker-next"], "4", "a page goes on though nothing of it matched");
    assert_eq!(page.text().await.unwrap(), "");

    let past = client.get("/v1/events?from=0&host=h-02&kind=job.dead,host.started").await;
    assert_eq!(live(past, 2).await.iter().map(kind).collect::<Vec<_>>(), ["host.started", "job.dead"]);
    let one = client.get(&format!("/v1/events?job={}&kind=attempt.ready,vm.gone", first.id)).await;
    let edge = client.get("/v1/events?pool=edge").await;
    let resumed = client.http.get(server.url("/v1/events?kind=job.enqueued")).header("last-event-id", "2");
    let resumed = resumed.send().await.unwrap();
    // Something for nobody, then something for each.
    server.tell(&Story::of("noise").enqueued().events).await;
    let before = third.events.len();
    let third = third.cancelled(50);
    server.tell(&third.events[before..]).await;
    assert_eq!(live(one, 1).await.iter().map(kind).collect::<Vec<_>>(), ["attempt.ready"]);
    assert_eq!(live(edge, 2).await[1]["type"], "dev.stoker.job.cancelled.v1");
    let subjects: Vec<_> = live(resumed, 3).await.iter().map(|e| e["subject"].clone()).collect();
    assert_eq!(subjects[..2], [second.id.to_string(), third.id.to_string()], "from the number on, not from the end");
}

#[tokio::test]
async fn what_cannot_be_a_filter_is_refused_with_its_name() {
    let server = Server::start().await;
    let client = Client::of(&server);
    for path in ["/v1/events", "/v1/log"] {
        for (query, word) in [("kind=job.strange", "kind:"), ("kind=", "kind:"), ("phase=dead", "phase")] {
            let problem = problem(client.get(&format!("{path}?{query}")).await, 400).await;
            assert!(problem["detail"].as_str().unwrap().contains(word), "{path}?{query}: {problem}");
        }
        problem(client.get(&format!("{path}?job=ffffffff")).await, 404).await;
    }
}

/// Many long events in one go.
fn flood(events: usize) -> Vec<u8> {
    let long = |n: usize| {
        let mut event: Event = Story::of(&format!("flood {n}")).gone(1, 5, GoneWhy::Failed).events.remove(0);
        if let EventData::VmGone(gone) = &mut event.data {
            gone.detail = "x".repeat(3_900);
        }
        event.encode().unwrap()
    };
    let all: Vec<_> = (0..events).map(long).collect();
    [b"[".as_slice(), &all.join(b",".as_slice()), b"]"].concat()
}

#[tokio::test]
async fn who_does_not_read_events_is_cut_and_not_waited_for() {
    let server = Server::start_narrow(1, Duration::from_millis(300)).await;
    let client = Client::of(&server);
    // More than both ends' buffers hold.
    for _ in 0..8 {
        server.broker.put("batch", CONTENT_BATCH, flood(400));
    }
    let last = Story::of("last").enqueued().events;
    server.tell(&last).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    let mut stuck = socket.connect(server.address).await.unwrap();
    let request = format!("GET /v1/events?from=0 HTTP/1.1\r\nhost: {}\r\n\r\n", server.address);
    stuck.write_all(request.as_bytes()).await.unwrap();
    stuck.ready(Interest::READABLE).await.unwrap();
    let freed = async { while client.get("/v1/events").await.status() != StatusCode::OK {} };
    tokio::time::timeout(SOON, freed).await.expect("it still holds the only place");
    drop(stuck);
}
