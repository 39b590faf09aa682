//! Dead letters as files, and the limit of deliveries to webhook sources.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::Path;

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use stoker_producer::hooks::HooksConfig;
use stoker_schemas::JobSpec;
use support::client::{Client, problem};
use support::story::Story;
use support::{SOON, Server};

/// More than are written at once.
const MANY: u64 = 130;

fn dead(name: &str, later: u64) -> Story {
    let mut story = Story::of(name).later(later);
    story.spec.labels.insert("note".to_owned(), "a,b \"c\"".to_owned());
    let mut diagnosis = Story::conflicting();
    diagnosis.summary = "=cmd|' /C calc'!A0".to_owned();
    let story = story.enqueued().started(1, 3, "192.168.100.17").failed(1, 900, diagnosis.clone());
    story.dead(1, 950, diagnosis)
}

fn headers(answer: &Response) -> (String, String) {
    let of = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    (of("content-type"), of("content-disposition"))
}

#[tokio::test]
async fn all_dead_letters_come_as_lines_with_their_specs() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let stories: Vec<_> = (0..MANY).map(|n| dead(&format!("dead {n}"), n)).collect();
    for story in &stories {
        server.tell(&story.events).await;
    }
    server.tell(&Story::ready_at_first("up").events).await;
    let answer = client.get("/v1/dead?format=ndjson").await;
    let (kind, disposition) = headers(&answer);
    assert_eq!(kind, "application/x-ndjson");
    assert!(disposition.starts_with("attachment; filename=\"stoker-dead-20"), "{disposition}");
    assert!(disposition.ends_with("Z.ndjson\""), "{disposition}");
    let text = answer.text().await.unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: Vec<_> = rows.iter().map(|row| row["id"].clone()).collect();
    let newest_first: Vec<_> = stories.iter().rev().map(|story| json!(story.id)).collect();
    assert_eq!(ids, newest_first);
    let (row, story) = (&rows[0], stories.last().unwrap());
    assert_eq!((&row["cause"], &row["reason"]), (&json!("conflicting_network"), &json!("not_retryable")));
    assert_eq!((&row["died_at"], &row["enqueued_at"]), (&json!(story.at(950)), &json!(story.at(0))));
    assert!(row["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()));
    let again: JobSpec = serde_json::from_value(row["spec"].clone()).unwrap();
    assert_eq!(again, story.spec, "it can be sent again as it was");
    // The same filters as a page; Accept as well as format.
    let asked = client.http.get(server.url("/v1/dead?label=note&since=2100-01-01T00:00:00Z"));
    let none = asked.header("accept", "application/x-ndjson").send().await.unwrap();
    assert_eq!((none.status(), none.text().await.unwrap()), (StatusCode::OK, String::new()));
}

#[tokio::test]
async fn a_table_is_harmless_to_a_spreadsheet() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let story = dead("table", 0);
    server.tell(&story.events).await;
    let answer = client.get("/v1/dead?format=csv").await;
    let (kind, disposition) = headers(&answer);
    assert!(kind.starts_with("text/csv") && disposition.ends_with(".csv\""), "{kind} {disposition}");
    let text = answer.text().await.unwrap();
    let lines: Vec<_> = text.split_terminator("\r\n").collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert_eq!(lines[0], "id,image,pool,labels,reason,cause,summary,remedy,attempts,enqueued_at,died_at");
    let begin =
        format!("{},golden@7,default,\"note=a,b \"\"c\"\";team=web\",not_retryable,conflicting_network,", story.id);
    assert!(lines[1].starts_with(&begin), "{}", lines[1]);
    assert!(lines[1].contains(",'=cmd|' /C calc'!A0,"), "{}", lines[1]);
    assert!(lines[1].ends_with(&format!(",1,{},{}", story.at(0), story.at(950))), "{}", lines[1]);
    let page = client.get("/dead?cause=conflicting_network").await.text().await.unwrap();
    assert!(page.contains("/v1/dead?cause=conflicting_network&amp;format=csv"), "{page}");
    let nothing = client.get("/v1/dead?format=csv&image=other").await.text().await.unwrap();
    assert_eq!(nothing.lines().count(), 1, "a table has its head");
    for (query, word) in [("format=xml", "format:"), ("format=csv&limit=5", "limit"), ("strange=1", "strange")] {
        let problem = problem(client.get(&format!("/v1/dead?{query}")).await, 400).await;
        assert!(problem["detail"].as_str().unwrap().contains(word), "{query}: {problem}");
    }
    assert_eq!(client.json("/v1/dead?format=json&limit=5").await["total"], 1);
}

#[tokio::test]
async fn deliveries_are_limited_by_source() {
    let source = |name: &str| {
        format!(
            "[[source]]\nname = \"{name}\"\nkind = \"bearer\"\nsecrets = [\"a bearer token, long\"]\n[source.job]\nimage = \"golden\"\n"
        )
    };
    let config = HooksConfig::parse(&(source("one") + &source("other")), Path::new("."), &|_| None).unwrap();
    let server = Server::start_with_hooks(config).await;
    let client = Client::of(&server);
    let send = async |source: &str| {
        let request = client.http.post(server.url(&format!("/hooks/{source}"))).bearer_auth("wrong, but long enough");
        request.body("{}").send().await.unwrap()
    };
    let (mut refused, mut limited) = (0, None);
    tokio::time::timeout(SOON, async {
        while limited.is_none() {
            let answer = send("one").await;
            match answer.status() {
                StatusCode::UNAUTHORIZED => refused += 1,
                _ => limited = Some(answer),
            }
        }
    })
    .await
    .unwrap();
    let limited = limited.unwrap();
    assert!(refused >= 300, "a burst passes: {refused}");
    let wait: u64 = limited.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=5).contains(&wait), "{wait}");
    problem(limited, 429).await;
    assert_eq!(send("other").await.status(), StatusCode::UNAUTHORIZED, "each source has its own");
    let traces = client.json("/v1/hooks/deliveries?limit=500").await;
    assert!(traces["deliveries"].as_array().unwrap().iter().all(|d| d["status"] != 429), "no row for each of a flood");
}
