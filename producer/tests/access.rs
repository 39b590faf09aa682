//! Who may come in: tokens and their roles, sessions and their forms, other sites, limits.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, Response, StatusCode, redirect};
use serde_json::{Value, json};
use stoker_producer::http::access::{Fingerprint, new_token};
use stoker_producer::http::{self, Access};
use support::story::{Story, host_started};
use support::{SOON, Server};

/// Fills in a form, as a browser does.
trait Fill {
    fn filled(self, fields: &[(&str, &str)]) -> Self;
}

impl Fill for RequestBuilder {
    fn filled(self, fields: &[(&str, &str)]) -> Self {
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        self.header("content-type", "application/x-www-form-urlencoded").body(body)
    }
}

/// A server with a token of each role, and a client that follows nothing by itself.
struct Closed {
    server: Server,
    http: reqwest::Client,
    read: String,
    operate: String,
    admin: String,
    over: String,
    dir: tempfile::TempDir,
}

impl Closed {
    async fn start() -> Self {
        let [read, operate, admin, over] = [(); 4].map(|()| new_token().unwrap());
        let entry = |name: &str, role: &str, secret: &str| {
            format!("[[token]]\nname = \"{name}\"\nrole = \"{role}\"\nsha256 = \"{}\"\n", Fingerprint::of(secret))
        };
        let text = [
            entry("eye", "read", &read),
            entry("hand", "operate", &operate),
            entry("head", "admin", &admin),
            entry("gone", "admin", &over) + "expires = 2020-01-01T00:00:00Z\n",
        ];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.toml");
        std::fs::write(&path, text.concat()).unwrap();
        let server = Server::start_with(Access::from_file(&path).unwrap()).await;
        let http = reqwest::Client::builder().no_proxy().timeout(SOON).redirect(redirect::Policy::none());
        Self { server, http: http.build().unwrap(), read, operate, admin, over, dir }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, self.server.url(path))
    }

    async fn with(&self, token: &str, method: Method, path: &str) -> Response {
        let request = self.request(method.clone(), path).bearer_auth(token);
        let request = if method == Method::POST { request.json(&json!({})) } else { request };
        request.send().await.unwrap()
    }

    fn origin(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// Logs in; the cookie as a browser sends it back.
    async fn log_in(&self, token: &str) -> String {
        let form = self.request(Method::POST, "/login").header("origin", self.origin());
        let answer = form.filled(&[("token", token), ("next", "/jobs?phase=dead")]).send().await.unwrap();
        assert_eq!((answer.status(), location(&answer)), (StatusCode::SEE_OTHER, "/jobs?phase=dead".to_owned()));
        let cookie = answer.headers()["set-cookie"].to_str().unwrap().to_owned();
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
        cookie.split(';').next().unwrap().to_owned()
    }

    async fn page(&self, cookie: &str, path: &str) -> Response {
        let request = self.request(Method::GET, path).header("cookie", cookie).header("accept", "text/html");
        request.send().await.unwrap()
    }

    /// The guard that the forms of a page carry.
    async fn guard(&self, cookie: &str, path: &str) -> String {
        let page = self.page(cookie, path).await.text().await.unwrap();
        let (_, rest) = page.split_once("name=\"csrf\" value=\"").expect("a form with its guard");
        rest.split('"').next().unwrap().to_owned()
    }

    /// Posts a form of a page of ours.
    async fn form(&self, cookie: &str, path: &str, fields: &[(&str, &str)]) -> Response {
        let request = self.request(Method::POST, path).header("cookie", cookie).header("origin", self.origin());
        request.filled(fields).send().await.unwrap()
    }
}

fn location(answer: &Response) -> String {
    answer.headers()["location"].to_str().unwrap().to_owned()
}

async fn problem(answer: Response, status: u16) -> (HeaderMap, Value) {
    assert_eq!(answer.status().as_u16(), status);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let headers = answer.headers().clone();
    (headers, answer.json().await.unwrap())
}

#[tokio::test]
async fn every_role_may_do_its_own_and_no_more() {
    let closed = Closed::start().await;
    closed.server.tell(&[host_started("h-01")]).await;
    let dead = Story::conflict("dead");
    closed.server.tell(&dead.events).await;
    let one = |what: &str| format!("/v1/jobs/{}/{what}", dead.id);
    let page = |what: &str| format!("/jobs/{}/{what}", dead.id);
    let (get, post) = (Method::GET, Method::POST);
    let routes = [
        // (method, path, who may: read, operate, admin)
        (&get, "/v1/jobs".to_owned(), [true, true, true]),
        (&get, "/v1/counts".to_owned(), [true, true, true]),
        (&get, "/metrics".to_owned(), [true, true, true]),
        (&get, "/v1/log".to_owned(), [true, true, true]),
        (&get, "/v1/events".to_owned(), [true, true, true]),
        (&get, "/live".to_owned(), [true, true, true]),
        (&get, "/".to_owned(), [true, true, true]),
        (&get, page("edit"), [true, true, true]),
        (&post, "/v1/jobs".to_owned(), [false, true, true]),
        (&post, one("retry"), [false, true, true]),
        (&post, one("cancel"), [false, true, true]),
        (&post, one("stop"), [false, true, true]),
        (&post, "/v1/dead/redrive".to_owned(), [false, true, true]),
        (&post, "/jobs/act".to_owned(), [false, true, true]),
        (&post, page("retry"), [false, true, true]),
        (&post, "/v1/hosts/h-01/drain".to_owned(), [false, false, true]),
        (&post, "/hosts/h-01/drain".to_owned(), [false, false, true]),
        (&post, "/nothing".to_owned(), [false, false, true]),
    ];
    for (method, path, may) in routes {
        for (token, may) in [&closed.read, &closed.operate, &closed.admin].into_iter().zip(may) {
            let status = closed.with(token, method.clone(), &path).await.status();
            assert_ne!(status, StatusCode::UNAUTHORIZED, "{method} {path}");
            assert_eq!(status != StatusCode::FORBIDDEN, may, "{method} {path}: {status}");
        }
    }
    let refused = closed.with(&closed.read, Method::POST, "/v1/dead/redrive").await;
    let (_, said) = problem(refused, 403).await;
    let detail = said["detail"].as_str().unwrap();
    assert!(detail.contains("role operate") && detail.contains("eye") && detail.contains("role read"), "{said}");
}

#[tokio::test]
async fn without_a_good_token_nothing_but_the_probes_answers() {
    let closed = Closed::start().await;
    for path in ["/v1/jobs", "/v1/counts", "/v1/events", "/metrics", "/live", "/v1/nothing", "/"] {
        let (headers, said) = problem(closed.request(Method::GET, path).send().await.unwrap(), 401).await;
        assert!(headers["www-authenticate"].to_str().unwrap().starts_with("Bearer"), "{path}");
        assert!(said["hint"].as_str().unwrap().contains("STOKER_TOKEN"), "{said}");
    }
    let long = "x".repeat(10_000);
    for token in ["wrong", closed.over.as_str(), "", long.as_str()] {
        problem(closed.with(token, Method::POST, "/v1/jobs").await, 401).await;
    }
    let basic = closed.request(Method::GET, "/v1/jobs").basic_auth("admin", Some(&closed.admin));
    problem(basic.send().await.unwrap(), 401).await;
    assert!(closed.server.broker.keys().is_empty());
    for free in ["/health", "/login"] {
        assert_eq!(closed.request(Method::GET, free).send().await.unwrap().status(), StatusCode::OK, "{free}");
    }
}

#[tokio::test]
async fn events_name_the_token_whatever_the_client_says() {
    let closed = Closed::start().await;
    let request = closed.request(Method::POST, "/v1/jobs").bearer_auth(&closed.operate).header("stoker-by", "cli/root");
    let answer: Value = request.json(&json!({"image": "golden"})).send().await.unwrap().json().await.unwrap();
    let id = answer["jobs"][0]["id"].as_str().unwrap();
    let job: Value = closed.with(&closed.read, Method::GET, &format!("/v1/jobs/{id}")).await.json().await.unwrap();
    assert_eq!(job["by"], "token:hand");
    let cookie = closed.log_in(&closed.operate).await;
    let csrf = closed.guard(&cookie, &format!("/jobs/{id}")).await;
    closed.form(&cookie, &format!("/jobs/{id}/cancel"), &[("csrf", csrf.as_str())]).await;
    let log = closed.with(&closed.read, Method::GET, "/v1/log").await.text().await.unwrap();
    let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(last["data"]["by"], "token:hand", "{last}");
}

#[tokio::test]
async fn a_session_begins_with_a_token_and_ends_when_asked() {
    let closed = Closed::start().await;
    let login = closed.request(Method::GET, "/login?next=/jobs").send().await.unwrap();
    assert!(login.headers()["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
    assert!(login.text().await.unwrap().contains("type=\"password\""));
    let wrong = closed.request(Method::POST, "/login").header("origin", closed.origin());
    let wrong = wrong.filled(&[("token", "stk_wrong")]).send().await.unwrap();
    assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
    assert!(!wrong.headers().contains_key("set-cookie"));

    let cookie = closed.log_in(&closed.read).await;
    let page = closed.page(&cookie, "/").await;
    assert_eq!(page.status(), StatusCode::OK);
    assert!(page.text().await.unwrap().contains("eye (read)"));
    let csrf = closed.guard(&cookie, "/").await;
    let out = closed.form(&cookie, "/logout", &[("csrf", csrf.as_str())]).await;
    assert_eq!(location(&out), "/login");
    assert!(out.headers()["set-cookie"].to_str().unwrap().contains("Max-Age=0"));
    assert_eq!(location(&closed.page(&cookie, "/").await), "/login?next=%2F", "also with the old cookie");
}

#[tokio::test]
async fn pages_lead_to_the_login_and_back_to_themselves_only() {
    let closed = Closed::start().await;
    let answer = closed.page("stoker_session=made-up", "/jobs?phase=dead&text=a%20b").await;
    assert_eq!(answer.status(), StatusCode::SEE_OTHER);
    assert_eq!(location(&answer), "/login?next=%2Fjobs%3Fphase%3Ddead%26text%3Da%2520b");
    let form = closed.request(Method::GET, "/login?next=//evil.example/").send().await.unwrap();
    assert!(form.text().await.unwrap().contains("name=\"next\" value=\"/\""));
    for elsewhere in ["//evil.example", "/\\evil.example", "https://evil.example", "/\t/evil.example"] {
        let sent = closed.request(Method::POST, "/login").header("origin", closed.origin());
        let answer = sent.filled(&[("token", closed.read.as_str()), ("next", elsewhere)]).send().await.unwrap();
        assert_eq!(location(&answer), "/", "{elsewhere:?}");
    }
    // A link in a chat: the browser holds a strict cookie back until a page of ours asks.
    let link = closed.request(Method::GET, "/jobs").header("accept", "text/html");
    let link = link.header("sec-fetch-site", "cross-site").header("sec-fetch-mode", "navigate");
    let answer = link.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(answer.text().await.unwrap().contains("http-equiv=\"refresh\" content=\"0; url=/login?next=%2Fjobs\""));
    let cookie = closed.log_in(&closed.read).await;
    assert_eq!(location(&closed.page(&cookie, "/login?next=%2Fjobs").await), "/jobs", "no second login");
}

#[tokio::test]
async fn forms_of_a_session_bring_its_guard() {
    let closed = Closed::start().await;
    let dead = Story::conflict("dead");
    closed.server.tell(&dead.events).await;
    closed.server.tell(&[host_started("h-01")]).await;
    let (cookie, other) = (closed.log_in(&closed.admin).await, closed.log_in(&closed.admin).await);
    let path = format!("/jobs/{}/retry", dead.id);
    let foreign = closed.guard(&other, "/dead").await;
    let before = closed.server.broker.keys().len();
    for fields in [&[][..], &[("csrf", "")], &[("csrf", "made-up")], &[("csrf", foreign.as_str())]] {
        problem(closed.form(&cookie, &path, fields).await, 403).await;
        problem(closed.form(&cookie, "/hosts/h-01/drain", fields).await, 403).await;
    }
    // A form may also call itself plain text, or nothing.
    for kind in ["text/plain", "multipart/form-data; boundary=x", ""] {
        let request = closed.request(Method::POST, &format!("/v1{path}")).header("cookie", &cookie);
        let request = request.header("origin", closed.origin()).header("content-type", kind);
        problem(request.send().await.unwrap(), 403).await;
    }
    assert_eq!(closed.server.broker.keys().len(), before, "nothing was done");

    let csrf = closed.guard(&cookie, "/dead").await;
    let done = closed.form(&cookie, &path, &[("csrf", csrf.as_str())]).await;
    assert_eq!(location(&done), format!("/jobs/{}", dead.id));
    let drained = closed.form(&cookie, "/hosts/h-01/drain", &[("csrf", csrf.as_str())]).await;
    assert_eq!(location(&drained), "/hosts");
    let all = [("csrf", csrf.as_str()), ("action", "cancel-all"), ("filter", "phase=retrying"), ("confirmed", "1")];
    assert_eq!(closed.form(&cookie, "/jobs/act", &all).await.status(), StatusCode::OK);
    assert_eq!(closed.server.broker.keys().len(), before + 3);
    // A script of our own pages sends JSON, which no form can.
    let json = closed.request(Method::POST, "/v1/jobs").header("cookie", &cookie).header("origin", closed.origin());
    let answer = json.json(&json!({"image": "golden"})).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
}

#[tokio::test]
async fn pages_of_other_sites_cannot_use_a_session() {
    let closed = Closed::start().await;
    let cookie = closed.log_in(&closed.admin).await;
    let csrf = closed.guard(&cookie, "/").await;
    let evil = [("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")];
    let foreign = |method: Method, path: &str| {
        let request = closed.request(method, path).header("cookie", &cookie);
        evil.iter().fold(request, |request, (name, value)| request.header(*name, *value))
    };
    problem(foreign(Method::GET, "/v1/jobs").send().await.unwrap(), 403).await;
    let job = json!({"image": "golden"});
    problem(foreign(Method::POST, "/v1/jobs").json(&job).send().await.unwrap(), 403).await;
    let form = foreign(Method::POST, "/jobs/act").filled(&[("csrf", csrf.as_str())]);
    problem(form.send().await.unwrap(), 403).await;
    let nowhere = closed.request(Method::POST, "/v1/jobs").header("cookie", &cookie).json(&job);
    problem(nowhere.send().await.unwrap(), 403).await;
    let login = closed.request(Method::POST, "/login").header("origin", "https://evil.example");
    let login = login.filled(&[("token", closed.read.as_str())]).send().await.unwrap();
    assert_eq!(login.status(), StatusCode::FORBIDDEN, "nobody is logged in as somebody else");
    assert!(closed.server.broker.keys().is_empty());
    // Under another name, with a token: programs and proxies may.
    let named = closed.request(Method::GET, "/v1/jobs").bearer_auth(&closed.read).header("host", "stoker.example");
    assert_eq!(named.send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_token_that_is_taken_out_of_the_file_ends_with_its_sessions() {
    let closed = Closed::start().await;
    let (cookie, stays) = (closed.log_in(&closed.read).await, closed.log_in(&closed.admin).await);
    let path = closed.dir.path().join("tokens.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let others = text.rfind("[[token]]").and_then(|last| text[..last].find("[[token]]\nname = \"hand\""));
    std::fs::write(&path, &text[others.unwrap()..]).unwrap();
    let begun = std::time::Instant::now();
    while closed.with(&closed.read, Method::GET, "/v1/jobs").await.status() != StatusCode::UNAUTHORIZED {
        assert!(begun.elapsed() < SOON, "the file is not read again");
    }
    assert_eq!(closed.page(&cookie, "/").await.status(), StatusCode::SEE_OTHER);
    assert_eq!(closed.page(&stays, "/").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn wrong_tokens_are_slowed_down_and_right_ones_are_not() {
    let closed = Closed::start().await;
    let mut statuses = Vec::new();
    for _ in 0..20 {
        statuses.push(closed.with("wrong", Method::GET, "/v1/jobs").await.status());
    }
    assert_eq!(statuses[0], StatusCode::UNAUTHORIZED);
    assert_eq!(statuses.last(), Some(&StatusCode::TOO_MANY_REQUESTS), "{statuses:?}");
    let (headers, _) = problem(closed.with("wrong", Method::GET, "/v1/jobs").await, 429).await;
    let wait: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    let form = closed.request(Method::POST, "/login").header("origin", closed.origin()).filled(&[("token", "wrong")]);
    assert_eq!(form.send().await.unwrap().status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(closed.with(&closed.read, Method::GET, "/v1/jobs").await.status(), StatusCode::OK);
    closed.log_in(&closed.read).await;
}

#[tokio::test]
async fn a_token_in_a_loop_leaves_room_for_others() {
    let closed = Closed::start().await;
    let path = format!("/v1/jobs/{}/cancel", Story::of("none").id);
    let begun = std::time::Instant::now();
    let refused = loop {
        let answer = closed.with(&closed.operate, Method::POST, &path).await;
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            break answer;
        }
        assert!(begun.elapsed() < 6 * SOON, "no limit was met");
    };
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(closed.with(&closed.operate, Method::GET, "/v1/jobs").await.status(), StatusCode::OK, "may still look");
    assert_eq!(closed.with(&closed.admin, Method::POST, &path).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn large_forms_are_refused() {
    let closed = Closed::start().await;
    let cookie = closed.log_in(&closed.admin).await;
    let spec = "x".repeat(http::MAX_FORM_BYTES);
    let fields = [("spec", spec.as_str())];
    assert_eq!(closed.form(&cookie, "/jobs/act", &fields).await.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let open = Server::start().await;
    let sent = closed.http.post(open.url("/jobs/act")).filled(&fields).send().await.unwrap();
    assert_eq!(sent.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn other_machines_are_served_only_with_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.toml");
    let secret = Fingerprint::of("x");
    std::fs::write(&path, format!("[[token]]\nname = \"a\"\nrole = \"read\"\nsha256 = \"{secret}\"\n")).unwrap();
    let everywhere = "0.0.0.0:0".parse().unwrap();
    let refused = http::bind(everywhere, &Access::Open).await.unwrap_err().to_string();
    assert!(refused.contains("stoker token new") && refused.contains("--tokens"), "{refused}");
    // Names nobody: 192.0.2.0/24 is for documentation, so binding fails after the rule let it pass.
    let documented = "192.0.2.1:0".parse().unwrap();
    let passed = http::bind(documented, &Access::from_file(&path).unwrap()).await.unwrap_err();
    assert!(matches!(passed, http::ServeError::Bind { .. }), "{passed}");
}

#[tokio::test]
async fn without_tokens_everything_is_as_on_ones_own_machine() {
    let server = Server::start().await;
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10));
    let http = http.redirect(redirect::Policy::none()).build().unwrap();
    assert_eq!(location(&http.get(server.url("/login")).send().await.unwrap()), "/");
    let page = http.get(server.url("/")).header("accept", "text/html").send().await.unwrap().text().await.unwrap();
    assert!(!page.contains("csrf") && !page.contains("/logout"));
    let answer = http.post(server.url("/v1/jobs")).json(&json!({"image": "golden"})).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
}
