//! Webhooks over HTTP: what each kind of delivery is answered, and the trace that it leaves; and
//! callbacks to a receiver on this machine.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use stoker_producer::callbacks::Callbacks;
use stoker_producer::clock::{self, Clock};
use stoker_producer::hooks::HooksConfig;
use stoker_producer::hooks::secret::Secret;
use stoker_producer::hooks::verify::{WEBHOOK_ID, WEBHOOK_SIGNATURE, WEBHOOK_TIMESTAMP};
use stoker_schemas::event::GoneWhy;
use stoker_schemas::{JobSpec, Time};
use stoker_worker::ports::broker::BrokerStatus;
use support::story::Story;
use support::{SOON, Server};

const NEW: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OLD: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const GITHUB: &str = "It's a Secret to Everybody";

fn hooks(more: &str) -> HooksConfig {
    let text = format!(
        r#"
        [[source]]
        name = "ci"
        kind = "standard"
        secrets = ["{NEW}", "{OLD}"]
        max_body_bytes = 2000
        when = "payload.type == 'build.done'"
        [source.job]
        image = "{{{{ payload.data.image }}}}"
        vcpus = "{{{{ payload.data.cpus | default(1) }}}}"
        labels = {{ build = "b-{{{{ payload.data.number }}}}" }}

        [[source]]
        name = "hub"
        kind = "github"
        secrets = ["{GITHUB}"]
        when = "event == 'push' and payload.ref == 'refs/heads/main'"
        [source.job]
        image = "golden"

        [[source]]
        name = "plain"
        kind = "bearer"
        secrets = ["a bearer token, long"]
        [source.job]
        image = "golden"
        {more}"#
    );
    HooksConfig::parse(&text, Path::new("."), &|_| None).unwrap()
}

struct Sender {
    server: Server,
    http: reqwest::Client,
}

impl Sender {
    async fn start() -> Self {
        let http = reqwest::Client::builder().no_proxy().timeout(SOON).build().unwrap();
        Self { server: Server::start_with_hooks(hooks("")).await, http }
    }

    async fn post(&self, source: &str, headers: &[(&str, String)], body: &str) -> (u16, Value) {
        let mut request = self.http.post(self.server.url(&format!("/hooks/{source}"))).body(body.to_owned());
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// As a Standard Webhooks sender does.
    async fn signed(&self, secret: &str, id: &str, age_s: i64, body: &Value) -> (u16, Value) {
        let body = body.to_string();
        let timestamp = clock::system()().unix_micros() / 1_000_000 - age_s;
        let signature = Secret::standard(secret).unwrap().standard_signature(id, timestamp, body.as_bytes());
        let headers = [
            (WEBHOOK_ID, id.to_owned()),
            (WEBHOOK_TIMESTAMP, timestamp.to_string()),
            (WEBHOOK_SIGNATURE, format!("v1a,other {signature}")),
        ];
        self.post("ci", &headers, &body).await
    }

    async fn github(&self, event: &str, delivery: &str, body: &Value) -> (u16, Value) {
        let body = body.to_string();
        let mac = Secret::plain(GITHUB).unwrap().sign(&[body.as_bytes()]);
        let hex: String = mac.iter().map(|b| format!("{b:02x}")).collect();
        let headers = [
            ("x-hub-signature-256", format!("sha256={hex}")),
            ("x-github-delivery", delivery.to_owned()),
            ("x-github-event", event.to_owned()),
        ];
        self.post("hub", &headers, &body).await
    }

    /// The newest trace: outcome, status, why, and whether it can be replayed.
    async fn trace(&self) -> Value {
        let page: Value =
            self.http.get(self.server.url("/v1/hooks/deliveries")).send().await.unwrap().json().await.unwrap();
        page["deliveries"][0].clone()
    }

    async fn replay(&self, n: &Value, body: Value) -> (u16, Value) {
        let url = self.server.url(&format!("/v1/hooks/deliveries/{n}/replay"));
        let answer = self.http.post(url).json(&body).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }
}

fn build(image: &str) -> Value {
    json!({"type": "build.done", "data": {"image": image, "cpus": 2, "number": 7}})
}

#[tokio::test]
async fn a_delivery_becomes_a_job_once() {
    let sender = Sender::start().await;
    let (status, first) = sender.signed(NEW, "msg_1", 0, &build("golden")).await;
    assert_eq!((status, &first["outcome"]), (202, &json!("accepted")), "{first}");
    let (status, again) = sender.signed(NEW, "msg_1", 10, &build("golden")).await;
    assert_eq!((status, &again["outcome"], &again["job"]), (200, &json!("duplicate"), &first["job"]));
    let (status, other) = sender.signed(OLD, "msg_2", 0, &build("golden")).await;
    assert_eq!(status, 202, "the old secret is good while it is listed: {other}");
    assert_eq!(sender.server.broker.keys(), ["job.enqueued.default.normal"; 2]);

    let id = first["job"].as_str().unwrap().parse().unwrap();
    assert!(sender.server.model.wait_for(&[id], SOON).await);
    let state = sender.server.model.job(id).unwrap().unwrap();
    let spec: &JobSpec = state.spec().unwrap();
    assert_eq!((spec.vcpus, spec.labels["build"].as_str()), (2, "b-7"));
    assert_eq!(spec.idempotency_key.as_deref(), Some("hook/ci/msg_1"));
    assert_eq!(state.enqueued.as_ref().unwrap().value.by, "webhook/ci");
}

#[tokio::test]
async fn two_at_once_make_one_job() {
    let sender = Sender::start().await;
    let body = build("golden");
    let all = (0..8).map(|_| sender.signed(NEW, "msg_same", 0, &body));
    let statuses: Vec<_> = futures_util::future::join_all(all).await.into_iter().map(|(status, _)| status).collect();
    assert_eq!(statuses.iter().filter(|s| **s == 202).count(), 1, "{statuses:?}");
    assert_eq!(sender.server.broker.keys().len(), 1);
}

#[tokio::test]
async fn each_refusal_has_its_answer_and_its_trace() {
    let sender = Sender::start().await;
    let check = async |(status, problem): (u16, Value), wanted: u16, says: &str| {
        assert_eq!(status, wanted, "{problem}");
        let trace = sender.trace().await;
        assert_eq!((&trace["outcome"], &trace["status"]), (&json!("refused"), &json!(wanted)), "{trace}");
        let (told, kept) = (problem.to_string(), trace["why"].as_str().unwrap().to_owned());
        assert!(told.contains(says) && kept.contains(says), "{says}: {told} / {kept}");
        trace
    };
    let stranger = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let wrong = check(sender.signed(stranger, "m1", 0, &build("golden")).await, 401, "no signature matches").await;
    assert_eq!((&wrong["id"], &wrong["replayable"]), (&Value::Null, &json!(false)), "nothing of a stranger's is kept");
    check(sender.signed(NEW, "m2", 301, &build("golden")).await, 401, "301 s in the past").await;
    check(sender.signed(NEW, "m3", -400, &build("golden")).await, 401, "s in the future").await;
    check(sender.post("ci", &[], "{}").await, 401, "webhook-id is missing").await;
    let huge = json!({"type": "build.done", "data": "x".repeat(2_000)});
    check(sender.signed(NEW, "m4", 0, &huge).await, 413, "larger than 2000 bytes").await;
    let unmapped = json!({"type": "build.done", "data": {}});
    let bad = check(sender.signed(NEW, "m5", 0, &unmapped).await, 422, "job.image").await;
    assert_eq!((&bad["id"], &bad["replayable"]), (&json!("m5"), &json!(true)));
    check(sender.signed(NEW, "m6", 0, &build("../etc")).await, 422, "image").await;
    check(
        sender.post("plain", &[("authorization", "Bearer a bearer token, l0ng".to_owned())], "{}").await,
        401,
        "token",
    )
    .await;
    sender.server.broker.status.send_replace(BrokerStatus::Down("refused".to_owned()));
    check(sender.signed(NEW, "m7", 0, &build("golden")).await, 503, "refused").await;
    sender.server.broker.status.send_replace(BrokerStatus::Connected);
    assert!(sender.server.broker.keys().is_empty());
    let (status, _) = sender.signed(NEW, "m7", 0, &build("golden")).await;
    assert_eq!(status, 202, "what was refused may come again");
    let (status, unknown) = sender.post("nobody", &[], "{}").await;
    assert_eq!(status, 404, "{unknown}");
}

#[tokio::test]
async fn conditions_pings_and_bearers() {
    let sender = Sender::start().await;
    let push = json!({"ref": "refs/heads/main"});
    for (event, delivery, body) in [("ping", "d1", json!({})), ("push", "d2", json!({"ref": "refs/heads/x"}))] {
        let (status, answer) = sender.github(event, delivery, &body).await;
        assert_eq!((status, &answer["outcome"]), (200, &json!("ignored")), "{answer}");
    }
    assert!(sender.trace().await["why"].as_str().unwrap().contains("condition"));
    assert_eq!(sender.github("push", "d3", &push).await.0, 202);
    assert_eq!(sender.github("push", "d3", &push).await.1["outcome"], "duplicate");
    let bearer = [("authorization", "Bearer a bearer token, long".to_owned())];
    assert_eq!(sender.post("plain", &bearer, "{\"n\":1}").await.0, 202);
    assert_eq!(
        sender.post("plain", &bearer, "{\"n\":1}").await.1["outcome"],
        "duplicate",
        "the same body, the same delivery"
    );
    assert_eq!(sender.post("plain", &bearer, "{\"n\":2}").await.0, 202);
    assert!(!sender.trace().await.to_string().contains("bearer token"), "secrets are not kept");
}

#[tokio::test]
async fn a_tunnel_may_bring_any_host_name() {
    let sender = Sender::start().await;
    let headers = [("host", "hooks.example.com".to_owned())];
    assert_eq!(sender.post("ci", &headers, "{}").await.0, 401, "judged by its signature, not by its address");
}

#[tokio::test]
async fn deliveries_are_replayed_and_shown() {
    let sender = Sender::start().await;
    let (_, first) = sender.signed(NEW, "m1", 0, &build("golden")).await;
    let n = &first["delivery"];
    let (status, again) = sender.replay(n, json!({"replays": 0})).await;
    assert_eq!((status, &again["outcome"]), (202, &json!("accepted")), "{again}");
    assert_ne!(again["job"], first["job"], "a replay of one that made a job makes another");
    assert_eq!(sender.replay(n, json!({"replays": 0})).await.0, 409, "pressed twice");
    let (status, ignored) = sender.signed(NEW, "m2", 0, &json!({"type": "<b>other</b>"})).await;
    assert_eq!((status, &ignored["outcome"]), (200, &json!("ignored")));
    sender.signed("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "m3", 0, &build("golden")).await;
    let stranger = sender.trace().await;
    assert_eq!(sender.replay(&stranger["n"], json!({})).await.0, 409);
    assert_eq!(sender.replay(&json!(999_999), json!({})).await.0, 404);

    let page = sender.http.get(sender.server.url("/webhooks")).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("/hooks/ci") && page.contains("no signature matches"), "{page}");
    assert!(page.contains("&lt;b&gt;other") && !page.contains("<b>other"));
    let form = sender.http.post(sender.server.url(&format!("/webhooks/{n}/replay")));
    let form = form.header("content-type", "application/x-www-form-urlencoded").body("replays=1");
    assert_eq!(form.send().await.unwrap().status(), StatusCode::OK, "sent back to the page");
    assert_eq!(sender.trace().await["replay_of"], *n);
}

/// Status, and a header.
type Answer = (u16, Option<&'static str>);

/// A receiver of callbacks that answers as it is told to.
#[derive(Clone, Default)]
struct Receiver {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    got: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
}

impl Receiver {
    async fn start(answers: &[Answer]) -> (Self, SocketAddr) {
        let receiver = Self { answers: Arc::new(Mutex::new(answers.iter().copied().collect())), ..Self::default() };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().fallback(Self::take).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (receiver, address)
    }

    async fn take(
        State(receiver): State<Self>,
        headers: HeaderMap,
        body: Bytes,
    ) -> (StatusCode, HeaderMap, &'static str) {
        receiver.got.lock().unwrap().push((headers, body));
        let (status, extra) = receiver.answers.lock().unwrap().pop_front().unwrap_or((200, None));
        let mut answer = HeaderMap::new();
        if let Some((name, value)) = extra.and_then(|extra| extra.split_once(": ")) {
            answer.insert(name, value.parse().unwrap());
        }
        (StatusCode::from_u16(status).unwrap(), answer, "words")
    }
}

/// A job whose callback goes there.
fn story(name: &str, url: &str) -> Story {
    let mut story = Story::of(name);
    story.spec.callback_url = Some(url.to_owned());
    story.enqueued().started(1, 3, "192.168.100.17").booted(1, 3, "192.168.100.17").ready(1, 1_933, "192.168.100.17")
}

struct Caller {
    server: Server,
    callbacks: Callbacks,
    now: Arc<Mutex<Time>>,
    clock: Clock,
}

impl Caller {
    async fn start(allow: &str) -> Self {
        let config = hooks(&format!("[callbacks]\nsecrets = [\"{NEW}\", \"{OLD}\"]\nallow = [{allow}]"));
        let server = Server::start_with_hooks(config).await;
        let callbacks = server.webhooks.clone().unwrap().callbacks.unwrap();
        let now = Arc::new(Mutex::new(Story::of("now").at(60_000)));
        let clock: Clock = Arc::new({
            let now = now.clone();
            move || *now.lock().unwrap()
        });
        Self { server, callbacks, now, clock }
    }

    async fn tell(&self, story: &Story) {
        self.server.tell(&story.events).await;
        self.callbacks.collect(&self.server.model, (self.clock)()).await.unwrap();
    }

    /// Sends what is due after this long; state, tries and status of the newest callback.
    async fn after(&self, seconds: u64) -> (String, u32, Option<u16>) {
        let later = (self.clock)().plus(Duration::from_secs(seconds));
        *self.now.lock().unwrap() = later;
        self.callbacks.deliver_due(&self.clock).await.unwrap();
        let newest = self.callbacks.list(u64::MAX, 1).unwrap().remove(0);
        (newest.state.as_str().to_owned(), newest.tries, newest.last.and_then(|last| last.status))
    }
}

#[tokio::test]
async fn a_callback_is_signed_and_tried_again_until_it_is_taken() {
    let (receiver, address) = Receiver::start(&[(500, None), (302, Some("location: http://127.0.0.1:1/"))]).await;
    let caller = Caller::start("\"127.0.0.0/8\"").await;
    let story = story("ready", &format!("http://{address}/cb/t0ken?key=1"));
    caller.tell(&story).await;
    assert_eq!(caller.after(0).await, ("waiting".to_owned(), 1, Some(500)));
    assert_eq!(caller.after(4).await, ("waiting".to_owned(), 1, Some(500)), "not before its time");
    assert_eq!(caller.after(3).await, ("waiting".to_owned(), 2, Some(302)), "no redirect is followed");
    assert_eq!(caller.after(400).await, ("delivered".to_owned(), 3, Some(200)));
    // Read again from the beginning: nothing is sent twice.
    caller.tell(&story).await;
    caller.after(100_000).await;

    let got = receiver.got.lock().unwrap().clone();
    assert_eq!(got.len(), 3);
    for (headers, body) in &got {
        let text = |name: &str| headers[name].to_str().unwrap().to_owned();
        assert_eq!(text(WEBHOOK_ID), got[0].0[WEBHOOK_ID], "the same message each time");
        let timestamp = text(WEBHOOK_TIMESTAMP).parse().unwrap();
        let signed = |secret| Secret::standard(secret).unwrap().standard_signature(&text(WEBHOOK_ID), timestamp, body);
        assert_eq!(text(WEBHOOK_SIGNATURE), format!("{} {}", signed(NEW), signed(OLD)));
    }
    let body: Value = serde_json::from_slice(&got[0].1).unwrap();
    assert_eq!((&body["type"], &body["data"]["id"]), (&json!("job.ready"), &json!(story.id.to_string())));
    assert_eq!(body["data"]["agent"], "192.168.100.17:8080");
    let page = reqwest::get(caller.server.url("/v1/callbacks")).await.unwrap().text().await.unwrap();
    assert!(page.contains(&format!("http://{address}\"")) && !page.contains("t0ken"), "{page}");
}

#[tokio::test]
async fn gone_and_throttled_receivers_are_heard() {
    let caller = Caller::start("\"127.0.0.0/8\"").await;
    let (gone, address) = Receiver::start(&[(410, None)]).await;
    let mut first = story("gone", &format!("http://{address}/"));
    caller.tell(&first).await;
    assert_eq!(caller.after(0).await, ("disabled".to_owned(), 1, Some(410)));
    first = first.gone(1, 5_000, GoneWhy::Stopped);
    caller.tell(&first).await;
    assert_eq!(caller.after(100_000).await, ("disabled".to_owned(), 0, None), "its later news are not sent");
    assert_eq!(gone.got.lock().unwrap().len(), 1);

    *caller.now.lock().unwrap() = Story::of("now").at(60_000);
    let (busy, address) = Receiver::start(&[(429, Some("retry-after: 3600"))]).await;
    caller.tell(&story("busy", &format!("http://{address}/"))).await;
    assert_eq!(caller.after(0).await, ("waiting".to_owned(), 1, Some(429)));
    assert_eq!(caller.after(3_599).await.1, 1);
    assert_eq!(caller.after(2).await, ("delivered".to_owned(), 2, Some(200)));
    assert_eq!(busy.got.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn private_targets_are_refused_and_failing_ones_given_up() {
    let (receiver, address) = Receiver::start(&[]).await;
    let caller = Caller::start("").await;
    for (name, url) in [("a", format!("http://{address}/")), ("b", format!("http://localhost:{}/", address.port()))] {
        caller.tell(&story(name, &url)).await;
        assert_eq!(caller.after(0).await, ("refused".to_owned(), 1, None), "{url}");
    }
    assert!(receiver.got.lock().unwrap().is_empty());

    let caller = Caller::start("\"127.0.0.1\"").await;
    let (receiver, address) = Receiver::start(&[(500, None); 20]).await;
    caller.tell(&story("c", &format!("http://{address}/"))).await;
    let mut last = caller.after(0).await;
    while last.0 == "waiting" {
        last = caller.after(13 * 3_600).await;
    }
    assert_eq!(last, ("given_up".to_owned(), stoker_producer::callbacks::schedule::MAX_TRIES, Some(500)));
    assert_eq!(receiver.got.lock().unwrap().len() as u32, last.1);
}

#[tokio::test]
async fn news_that_came_before_their_job_are_told_too() {
    let (receiver, address) = Receiver::start(&[]).await;
    let caller = Caller::start("\"127.0.0.0/8\"").await;
    let mut story = story("late", &format!("http://{address}/"));
    // Hosts and producers publish on their own: any order may be read.
    story.events.reverse();
    caller.tell(&story).await;
    assert_eq!(caller.after(0).await.0, "delivered");
    assert_eq!(receiver.got.lock().unwrap().len(), 1);
}
