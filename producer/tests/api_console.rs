//! Consoles over HTTP: pieces, ends, ranges, and what is followed until the VM is gone.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::Duration;

use reqwest::{Response, StatusCode};
use stoker_schemas::event::GoneWhy;
use support::client::{Client, problem};
use support::story::Story;
use support::{SOON, Server};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpSocket;

/// A ready job whose console says ten digits.
async fn with_console(server: &Server) -> (Story, String) {
    let story = Story::ready_at_first("console");
    server.tell(&story.events).await;
    server.consoles.write(story.vm(1), b"0123456789");
    let path = format!("/v1/jobs/{}/console", story.id);
    (story, path)
}

fn header<'a>(answer: &'a Response, name: &str) -> &'a str {
    answer.headers()[name].to_str().unwrap()
}

#[tokio::test]
async fn a_piece_is_named_by_its_beginning_its_length_or_the_end() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let (_, path) = with_console(&server).await;
    for (query, from, text, next) in [
        ("", "0", "0123456789", "10"),
        ("?from=3&limit=4", "3", "3456", "7"),
        ("?limit=2", "0", "01", "2"),
        ("?from=10", "10", "", "10"),
        ("?tail=3", "7", "789", "10"),
        ("?tail=99999999999", "0", "0123456789", "10"),
    ] {
        let answer = client.get(&format!("{path}{query}")).await;
        let places = (header(&answer, "stoker-from").to_owned(), header(&answer, "stoker-next").to_owned());
        assert_eq!(places, (from.to_owned(), next.to_owned()), "{query}");
        assert_eq!(answer.text().await.unwrap(), text, "{query}");
    }
    for (query, field) in [("?tail=3&from=1", "tail:"), ("?follow=true&limit=1", "limit:"), ("?tail=x", "tail")] {
        let problem = problem(client.get(&format!("{path}{query}")).await, 400).await;
        assert!(problem["detail"].as_str().unwrap().contains(field), "{problem}");
    }
}

#[tokio::test]
async fn a_long_console_comes_in_bounded_pieces() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let (story, path) = with_console(&server).await;
    server.consoles.write(story.vm(1), &vec![b'x'; 3 << 20]);
    let length = async |query: &str| client.get(&format!("{path}{query}")).await.bytes().await.unwrap().len();
    assert_eq!(length("").await, 64 << 10);
    assert_eq!(length("?limit=9999999").await, 1 << 20);
    assert_eq!(length("?tail=9999999").await, 1 << 20);
    assert_eq!(length("?from=5&limit=0").await, 1, "no piece is empty before the end");
}

#[tokio::test]
async fn ranges_are_answered_as_http_has_them() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let (_, path) = with_console(&server).await;
    let get = async |range: &str| client.http.get(server.url(&path)).header("range", range).send().await.unwrap();
    for (range, said, text) in [
        ("bytes=2-4", "bytes 2-4/10", "234"),
        ("bytes=7-", "bytes 7-9/10", "789"),
        ("bytes=7-99", "bytes 7-9/10", "789"),
        ("bytes=-2", "bytes 8-9/10", "89"),
        ("bytes=-99", "bytes 0-9/10", "0123456789"),
    ] {
        let answer = get(range).await;
        assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT, "{range}");
        assert_eq!(header(&answer, "content-range"), said);
        assert_eq!(answer.text().await.unwrap(), text);
    }
    for range in ["bytes=10-", "bytes=-0"] {
        let answer = get(range).await;
        assert_eq!(header(&answer, "content-range"), "bytes */10");
        problem(answer, 416).await;
    }
    assert_eq!(get("bytes=0-1,4-5").await.status(), StatusCode::OK, "several ranges are ignored");
    assert_eq!(header(&get("pages=1").await, "accept-ranges"), "bytes");
}

/// Reads a stream until it has said this much.
async fn heard(answer: &mut Response, until: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(until) {
        let chunk = tokio::time::timeout(SOON, answer.chunk()).await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(&chunk.expect("ended early")).unwrap());
    }
    text
}

#[tokio::test]
async fn a_followed_console_ends_with_its_vm() {
    let server = Server::start().await;
    let client = Client::of(&server);
    let (story, path) = with_console(&server).await;
    let mut all = client.get(&format!("{path}?follow=true")).await;
    let mut end = client.get(&format!("{path}?follow=true&tail=2")).await;
    assert_eq!(header(&all, "content-type"), "text/plain; charset=utf-8");
    assert_eq!(heard(&mut all, "9").await, "0123456789");
    assert_eq!(heard(&mut end, "9").await, "89");
    server.consoles.write(story.vm(1), b"more");
    assert_eq!(heard(&mut all, "more").await, "more");
    server.consoles.write(story.vm(1), b"bye");
    let before = story.events.len();
    let gone = story.gone(1, 90_000, GoneWhy::Stopped);
    server.tell(&gone.events[before..]).await;
    let rest = tokio::time::timeout(SOON, all.text()).await.unwrap().unwrap();
    assert_eq!(rest, "bye", "what was written last is not lost");
    assert_eq!(tokio::time::timeout(SOON, end.text()).await.unwrap().unwrap(), "morebye");
    problem(client.get("/v1/jobs/ffff/console?follow=true").await, 404).await;
}

#[tokio::test]
async fn followers_have_bounded_places_and_end_with_the_server() {
    let server = Server::start_narrow(1, SOON).await;
    let client = Client::of(&server);
    let (_, path) = with_console(&server).await;
    let follow = format!("{path}?follow=true");
    let mut first = client.get(&follow).await;
    heard(&mut first, "9").await;
    problem(client.get(&follow).await, 503).await;
    drop(server);
    let rest = tokio::time::timeout(SOON, first.text()).await.unwrap();
    assert_eq!(rest.unwrap(), "", "a whole answer, not a cut one");
}

/// A place that was taken is free again.
async fn freed(client: &Client<'_>, path: &str) -> Response {
    let again = async {
        loop {
            let answer = client.get(path).await;
            if answer.status() == StatusCode::OK {
                return answer;
            }
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        }
    };
    tokio::time::timeout(SOON, again).await.expect("the place was never given back")
}

#[tokio::test]
async fn who_leaves_gives_the_place_back() {
    let server = Server::start_narrow(1, SOON).await;
    let client = Client::of(&server);
    let (_, path) = with_console(&server).await;
    let follow = format!("{path}?follow=true");
    let mut first = client.get(&follow).await;
    heard(&mut first, "9").await;
    drop(first);
    freed(&client, &follow).await;
}

#[tokio::test]
async fn who_does_not_read_is_cut() {
    let server = Server::start_narrow(1, Duration::from_millis(300)).await;
    let client = Client::of(&server);
    let (story, path) = with_console(&server).await;
    // More than both ends' buffers hold.
    server.consoles.write(story.vm(1), &vec![b'x'; 32 << 20]);
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    let mut stuck = socket.connect(server.address).await.unwrap();
    let request = format!("GET {path}?follow=true HTTP/1.1\r\nhost: {}\r\n\r\n", server.address);
    stuck.write_all(request.as_bytes()).await.unwrap();
    stuck.ready(Interest::READABLE).await.unwrap();
    // It is there and holds the only place; then it is gone, without having read a byte.
    let answer = freed(&client, &format!("{path}?follow=true&tail=1")).await;
    assert_eq!(answer.status(), StatusCode::OK);
    drop(stuck);
}
