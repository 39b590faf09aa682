//! Pools: how they stand, pausing and limiting them, and hosts that come later.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::Duration;

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use stoker_producer::clock;
use stoker_producer::http::CancellationToken;
use stoker_producer::pools;
use stoker_producer::submit::Submitter;
use stoker_schemas::Time;
use stoker_schemas::event::{Event, EventData, PoolConfigured};
use stoker_worker::ports::broker::{BrokerStatus, HistoryEntry};
use support::client::{Client, problem};
use support::story::{Story, host_started};
use support::{SOON, Server};

fn now() -> Time {
    (clock::system())()
}

/// A host that serves these pools and began at this time.
fn host(name: &str, pools: &[&str], at: Time) -> Event {
    let mut event = host_started(name);
    event.time = at;
    if let EventData::HostStarted(started) = &mut event.data {
        started.pools = pools.iter().map(|pool| (*pool).to_owned()).collect();
    }
    event
}

fn told(entry: &HistoryEntry) -> Option<(Event, PoolConfigured)> {
    let event = Event::decode(&entry.body, now()).unwrap();
    let EventData::PoolConfigured(rule) = event.data.clone() else { return None };
    Some((event, rule))
}

fn pool<'a>(list: &'a Value, name: &str) -> &'a Value {
    list.as_array().unwrap().iter().find(|pool| pool["name"] == name).unwrap_or_else(|| panic!("no {name} in {list}"))
}

async fn put(client: &Client<'_>, path: &str, body: &Value) -> Response {
    client.http.put(client.server.url(path)).json(body).send().await.unwrap()
}

#[tokio::test]
async fn a_list_says_how_each_pool_stands() {
    let server = Server::start().await;
    let client = Client::of(&server);
    assert_eq!(client.json("/v1/pools").await, json!([]));
    server.tell(&[host("h-01", &["batch", "default"], now()), host("h-02", &["default"], now())]).await;
    server.tell(&Story::ready_at_first("up").events).await;
    server.tell(&Story::of("waits").enqueued().events).await;
    let mut elsewhere = Story::of("elsewhere");
    elsewhere.spec.pool = "gpu".parse().unwrap();
    server.tell(&elsewhere.enqueued().events).await;
    let pools = client.json("/v1/pools").await;
    let names: Vec<_> = pools.as_array().unwrap().iter().map(|pool| pool["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["batch", "default", "gpu"]);
    let default = pool(&pools, "default");
    assert_eq!((&default["paused"], &default["max_per_host"]), (&json!(false), &Value::Null));
    assert_eq!(default["hosts"], json!(["h-01", "h-02"]));
    let jobs = &default["jobs"];
    assert_eq!((&jobs["queued"], &jobs["ready"], &jobs["dead"]), (&json!(1), &json!(1), &json!(0)));
    assert_eq!((&pool(&pools, "gpu")["jobs"]["queued"], &pool(&pools, "gpu")["hosts"]), (&json!(1), &json!([])));
    assert_eq!(default["waiting"], 0, "as the broker says");
    // Without the broker the rest is told nevertheless.
    server.broker.status.send_replace(BrokerStatus::Down("no route".to_owned()));
    let pools = client.json("/v1/pools").await;
    assert_eq!((pool(&pools, "default").get("waiting"), &pool(&pools, "default")["jobs"]["ready"]), (None, &json!(1)));
}

#[tokio::test]
async fn a_pause_keeps_the_limit_and_a_limit_the_pause() {
    let server = Server::start().await;
    let client = Client::of(&server);
    server.tell(&[host("h-01", &["batch", "default"], now())]).await;
    let answer = put(&client, "/v1/pools/batch/limit", &json!({"max_per_host": 8})).await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    let asked = client.http.post(server.url("/v1/pools/batch/pause")).header("stoker-by", "test/ada");
    let answer = asked.json(&json!({"reason": "new <b>image</b>"})).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    let expected = json!({"pool": "batch", "paused": true, "max_per_host": 8, "events": ["pool.configured"]});
    assert_eq!(answer.json::<Value>().await.unwrap(), expected);
    let again = client.post("/v1/pools/batch/pause", &json!({})).await;
    assert_eq!(again.status(), StatusCode::OK);
    assert_eq!(again.json::<Value>().await.unwrap()["events"], json!([]));
    let rules: Vec<_> = server.broker.published().iter().filter_map(told).collect();
    assert_eq!(rules.len(), 2);
    assert!(rules[1].0.time > rules[0].0.time);
    assert_eq!((rules[1].1.paused, rules[1].1.max_per_host, &rules[1].1.host), (true, Some(8), &None));
    assert_eq!(server.broker.keys()[1..], ["command.all", "command.all"]);
    let pools = client.json("/v1/pools").await;
    let batch = pool(&pools, "batch");
    assert_eq!((&batch["by"], &batch["reason"]), (&json!("test/ada"), &json!("new <b>image</b>")));
    assert_eq!(batch["since"], json!(rules[1].0.time));
    // A person sees it where things are that need somebody, and can undo it there.
    let page = client.get("/").await.text().await.unwrap();
    assert!(page.contains("is paused") && page.contains("by test/ada: new &lt;b&gt;image"), "{page}");
    assert!(page.contains("action=\"/pools/batch/resume\""), "{page}");
    let answer = put(&client, "/v1/pools/batch/limit", &json!({"max_per_host": null})).await;
    assert_eq!(answer.json::<Value>().await.unwrap()["paused"], true);
    client.post("/v1/pools/batch/resume", &json!({})).await;
    let page = client.get("/").await.text().await.unwrap();
    assert!(!page.contains("is paused"), "{page}");
    let rule = server.broker.published().iter().filter_map(told).last().unwrap().1;
    assert_eq!((rule.paused, rule.max_per_host), (false, None));
}

#[tokio::test]
async fn wishes_at_the_same_time_do_not_undo_each_other() {
    let server = Server::start().await;
    let client = Client::of(&server);
    server.tell(&[host("h-01", &["batch"], now())]).await;
    let (nothing, two) = (json!({}), json!({"max_per_host": 2}));
    let (pause, limit) =
        tokio::join!(client.post("/v1/pools/batch/pause", &nothing), put(&client, "/v1/pools/batch/limit", &two));
    assert_eq!((pause.status(), limit.status()), (StatusCode::ACCEPTED, StatusCode::ACCEPTED));
    let pools = client.json("/v1/pools").await;
    assert_eq!((&pools[0]["paused"], &pools[0]["max_per_host"]), (&json!(true), &json!(2)));
}

#[tokio::test]
async fn mistakes_are_told_with_the_way_out() {
    let server = Server::start().await;
    let client = Client::of(&server);
    server.tell(&[host("h-01", &["batch", "default"], now())]).await;
    let unknown = problem(client.post("/v1/pools/bach/pause", &json!({})).await, 404).await;
    assert!(unknown["hint"].as_str().unwrap().contains("batch, default"), "{unknown}");
    problem(client.post("/v1/pools/Not%20one/pause", &json!({})).await, 400).await;
    problem(client.post("/v1/pools/batch/pause", &json!({"max_per_host": 1})).await, 400).await;
    for body in [
        json!({}),
        json!({"max_per_host": 0}),
        json!({"max_per_host": "8"}),
        json!({"max_per_host": 4_294_967_296_u64}),
    ] {
        let refused = problem(put(&client, "/v1/pools/batch/limit", &body).await, 400).await;
        assert!(refused["detail"].as_str().unwrap().contains("max_per_host"), "{body}: {refused}");
    }
    assert_eq!(server.broker.keys(), ["host.started"], "nothing was published");
    server.broker.status.send_replace(BrokerStatus::Blocked("memory".to_owned()));
    problem(client.post("/v1/pools/batch/pause", &json!({})).await, 503).await;
}

#[tokio::test]
async fn pages_pause_and_limit_without_script() {
    let server = Server::start().await;
    let client = Client::of(&server);
    server.tell(&[host("h-01", &["batch"], now())]).await;
    let form = async |path: &str, fields: &str| {
        let form = client.http.post(server.url(path)).header("content-type", "application/x-www-form-urlencoded");
        form.body(fields.to_owned()).send().await.unwrap()
    };
    let page = client.get("/hosts").await.text().await.unwrap();
    assert!(page.contains("action=\"/pools/batch/pause\"") && page.contains("action=\"/pools/batch/limit\""), "{page}");
    let page = form("/pools/batch/pause", "").await.text().await.unwrap();
    assert!(page.contains("action=\"/pools/batch/resume\"") && page.contains("by api"), "{page}");
    let page = form("/pools/batch/limit", "max_per_host=3").await.text().await.unwrap();
    assert!(page.contains("value=\"3\""), "{page}");
    let rule = server.broker.published().iter().filter_map(told).last().unwrap().1;
    assert_eq!((rule.paused, rule.max_per_host), (true, Some(3)));
    let refused = form("/pools/batch/limit", "max_per_host=many").await;
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    form("/pools/batch/limit", "max_per_host=").await;
    let rule = server.broker.published().iter().filter_map(told).last().unwrap().1;
    assert_eq!((rule.paused, rule.max_per_host), (true, None));
}

/// Waits until so many words about pools were published.
async fn words(server: &Server, count: usize) -> Vec<(Event, PoolConfigured)> {
    let of = |entries: &[HistoryEntry]| entries.iter().filter_map(told).collect::<Vec<_>>();
    let all = server.broker.until(|entries| of(entries).len() >= count);
    of(&tokio::time::timeout(SOON, all).await.expect("words about pools"))
}

#[tokio::test]
async fn a_host_that_comes_later_is_told_once_with_the_first_time() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let long_ago = Time::from_unix_micros(now().unix_micros() - 3_600_000_000);
    server.tell(&[host("h-01", &["batch", "default"], long_ago)]).await;
    client.post("/v1/pools/batch/pause", &json!({"reason": "new image"})).await;
    let stop = CancellationToken::new();
    let submitter = Submitter::new(server.broker.clone(), "test", clock::system());
    let telling = tokio::spawn(pools::run(server.model.clone(), submitter, stop.clone()));
    server.tell(&[host("h-02", &["default"], now()), host("h-03", &["batch", "default"], now())]).await;
    let words = words(&server, 2).await;
    let (said, retold) = (&words[0], &words[1]);
    assert_eq!(retold.1, PoolConfigured { host: Some("h-03".parse().unwrap()), ..said.1.clone() });
    assert_eq!(retold.0.time, said.0.time, "a later word must stay later");
    // Resumed: it goes on there, too, and the word to h-03 does not pause it again.
    client.post("/v1/pools/batch/resume", &json!({})).await;
    server.tell(std::slice::from_ref(&retold.0)).await;
    assert_eq!(client.json("/v1/pools").await[0]["paused"], false);
    let later = now().plus(Duration::from_secs(1));
    server.tell(&[host("h-04", &["batch"], later)]).await;
    // To all, to h-03, to all (which h-03 heard itself), once more by us, to h-04.
    let words = self::words(&server, 5).await;
    let to: Vec<_> = words.iter().map(|(_, rule)| (rule.host.as_ref().map(ToString::to_string), rule.paused)).collect();
    let host = |name: &str| Some(name.to_owned());
    let to_h_04 = to.iter().filter(|(to, _)| *to == host("h-04")).collect::<Vec<_>>();
    assert_eq!(to_h_04, [&(host("h-04"), false)], "{to:?}");
    assert!(!to.contains(&(host("h-01"), true)) && !to.contains(&(host("h-02"), true)), "{to:?}");
    // What counts is that the history tells of its beginning later, not what its clock shows.
    server.tell(&[host_at("h-05", long_ago)]).await;
    let words = self::words(&server, 6).await;
    assert_eq!(words[5].1.host, Some("h-05".parse().unwrap()));
    stop.cancel();
    telling.await.unwrap();
}

fn host_at(name: &str, at: Time) -> Event {
    host(name, &["batch"], at)
}
