//! Dead letters over HTTP and on pages: found, paged, bounded, and done with by those who may.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a failed expectation is a failed test")]

mod support;

use serde_json::{Value, json};
use stoker_producer::http::Access;
use stoker_producer::http::access::{Fingerprint, new_token};
use stoker_producer::readmodel::MAX_LETTERS;
use stoker_schemas::event::MessageDismissed;
use stoker_schemas::letter::{Death, GivenUpBy, Letter, dead_lettered};
use stoker_schemas::{Event, EventData};
use stoker_worker::ports::broker::CONTENT_BATCH;
use support::client::{Client, problem};
use support::{SOON, Server, Story};

const OPEN: &str = "/v1/dead-letters";

/// Number `n` of messages that died one after the other.
fn letter(n: u64, by: GivenUpBy) -> Event {
    let at = Story::of("letters").at(n * 1_000);
    let (queue, routing_key) = ("stoker.jobs.default.normal".to_owned(), "job.enqueued.default.normal".to_owned());
    let death = Death { by, queue, exchange: String::new(), routing_key, count: 1, at: Some(at) };
    let body = format!("<script>alert({n})</script>");
    let letter = Letter { death: &death, message_id: None, content_type: None, body: body.as_bytes() };
    dead_lettered(letter, "/producers/test", at)
}

fn parked(n: u64) -> Event {
    letter(n, GivenUpBy::Worker("not a CloudEvent".to_owned()))
}

fn ids(page: &Value) -> Vec<String> {
    let letters = page["letters"].as_array().unwrap();
    letters.iter().map(|letter| letter["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn letters_are_paged_filtered_and_found_by_the_beginning_of_their_id() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let mut events: Vec<_> = (0..5).map(parked).collect();
    events.push(letter(9, GivenUpBy::Broker("expired".to_owned())));
    server.tell(&events).await;
    let newest_first: Vec<_> = events.iter().rev().map(|event| event.subject.clone()).collect();
    let first = client.json(&format!("{OPEN}?limit=4")).await;
    assert_eq!(first["open"], json!({"unreadable": 5, "expired": 1}));
    let second = client.json(&format!("{OPEN}?limit=4&cursor={}", first["next"].as_str().unwrap())).await;
    assert_eq!([ids(&first), ids(&second)].concat(), newest_first);
    assert_eq!(second["next"], Value::Null);
    let expired = client.json(&format!("{OPEN}?reason=expired")).await;
    assert_eq!(ids(&expired), newest_first[..1]);
    let one = client.json(&format!("{OPEN}/{}", &newest_first[1][..13])).await;
    assert_eq!((&one["id"], &one["body"]["content"]), (&json!(newest_first[1]), &json!("<script>alert(4)</script>")));
    for (query, word) in [("state=closed", "state"), ("reason=x", "reason"), ("cursor=1", "cursor"), ("x=1", "x")] {
        let problem = problem(client.get(&format!("{OPEN}?{query}")).await, 400).await;
        assert!(problem["detail"].as_str().unwrap().contains(word), "{query}: {problem}");
    }
    problem(client.get(&format!("{OPEN}/ffffffff-0000")).await, 404).await;
    // What a stranger publishes cannot run on a page.
    for path in ["/dead", "/dead-letters", &format!("/dead-letters/{}", newest_first[1])] {
        let page = client.get(path).await.text().await.unwrap();
        assert!(page.contains(&newest_first[1]) && !page.contains("<script>alert"), "{page}");
    }
}

#[tokio::test]
async fn a_word_about_a_letter_holds_for_every_control_plane_and_for_that_death_only() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let died = parked(1);
    server.tell(std::slice::from_ref(&died)).await;
    // Another control plane's.
    let EventData::MessageDeadLettered(death) = &died.data else { unreachable!() };
    let said = MessageDismissed { seen: death.died_at, by: "ada".to_owned(), reason: "a test".to_owned() };
    let dismissed = Event { data: EventData::MessageDismissed(said), time: death.died_at, ..died.clone() };
    server.tell(&[dismissed]).await;
    let path = format!("{OPEN}/{}", died.subject);
    let letter = client.json(&path).await;
    assert_eq!((&letter["state"], &letter["word"]["by"]), (&json!("dismissed"), &json!("ada")));
    let before = server.broker.published().len();
    let answer = client.http.post(server.url(&format!("{path}/dismiss"))).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), server.broker.published().len()), (200, before), "said before");
    let mut again = died.clone();
    if let EventData::MessageDeadLettered(death) = &mut again.data {
        death.died_at = Story::of("letters").at(99_000);
    }
    server.tell(&[again]).await;
    let letter = client.json(&path).await;
    assert_eq!((&letter["state"], &letter["deaths"]), (&json!("open"), &json!(2)));
    let answer = client.http.post(server.url(&format!("{path}/dismiss"))).send().await.unwrap();
    assert_eq!(answer.status(), 202);
    assert_eq!(client.json(&path).await["word"]["by"], "api");
    assert_eq!(client.json("/v1/counts").await["dead_letters"], json!({}));
}

#[tokio::test]
async fn who_may_only_read_does_nothing_about_letters() {
    let secret = new_token().unwrap();
    let sha256 = Fingerprint::of(&secret);
    let tokens = format!("[[token]]\nname = \"eye\"\nrole = \"read\"\nsha256 = \"{sha256}\"\n");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tokens.toml");
    std::fs::write(&file, tokens).unwrap();
    let server = Server::start_with(Access::from_file(&file).unwrap()).await;
    let died = parked(1);
    server.tell(std::slice::from_ref(&died)).await;
    let http = reqwest::Client::new();
    for action in ["redrive", "dismiss"] {
        let url = server.url(&format!("{OPEN}/{}/{action}", died.subject));
        let answer = http.post(url).bearer_auth(&secret).send().await.unwrap();
        assert_eq!(answer.status(), 403, "{action}");
    }
    let answer = http.get(server.url(OPEN)).bearer_auth(&secret).send().await.unwrap();
    assert_eq!(answer.status(), 200);
}

/// A flood is bounded in rows, and the numbers stay those of the rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_letters_go_where_there_are_too_many() {
    const MORE: u64 = 50;
    let server = Server::start().await;
    let client = Client::of(&server);
    let events: Vec<_> = (0..MAX_LETTERS + MORE).map(|n| parked(n).encode().unwrap()).collect();
    for some in events.chunks(200) {
        let body = [b"[".as_slice(), &some.join(b",".as_slice()), b"]"].concat();
        server.broker.put("history.batch", CONTENT_BATCH, body);
    }
    // What is too much goes with the next batch.
    let last = parked(MAX_LETTERS + MORE);
    server.tell(std::slice::from_ref(&last)).await;
    assert!(server.model.wait_for_event(&last, SOON).await);
    server.tell(&[parked(MAX_LETTERS + MORE + 1)]).await;
    let open = client.json("/v1/counts").await["dead_letters"]["unreadable"].as_u64().unwrap();
    assert!((MAX_LETTERS..=MAX_LETTERS + 1).contains(&open), "{open}");
    problem(client.get(&format!("{OPEN}/{}", parked(0).subject)).await, 404).await;
    assert_eq!(client.json(&format!("{OPEN}/{}", last.subject)).await["state"], "open");
    let mut seen = 0;
    let mut cursor = String::new();
    loop {
        let page = client.json(&format!("{OPEN}?limit=500{cursor}")).await;
        seen += page["letters"].as_array().unwrap().len() as u64;
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, open, "as many as are counted");
}
