//! The dashboard in a real Chromium: what an operator does at 3 a.m., click by click.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a failed expectation is a failed test")]

#[path = "dashboard/browser.rs"]
mod browser;

use std::{path::Path, process::Stdio};

use browser::Browser;
use serde_json::{Value, json};
use stoker_tests::{setting, within};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

/// A guest that panics soon, and before its agent would answer.
const PANICS: &str = "sim.panic-ms=30 sim.healthy-ms=60000";

/// `stoker up` with simulated VMs.
struct Server {
    base: String,
    /// Secrets of the tokens `ops` and `guest`; none where everybody on this machine may come in.
    tokens: Vec<String>,
    _process: Child,
    _data: tempfile::TempDir,
}

impl Server {
    async fn start(test: &str) -> Option<Self> {
        Self::start_for(test, &[]).await
    }

    /// For holders of tokens with these names and roles only.
    async fn start_for(test: &str, team: &[(&str, &str)]) -> Option<Self> {
        let program = Path::new(&setting(test, "STOKER_TEST_BIN_DIR")?).join("stoker");
        let data = tempfile::tempdir().unwrap();
        let (mut entries, mut tokens) = (Vec::new(), Vec::new());
        for (name, role) in team {
            let made =
                Command::new(&program).args(["token", "new", "--name", name, "--role", role]).output().await.unwrap();
            let said = String::from_utf8(made.stderr).unwrap();
            tokens.push(said.split_whitespace().find(|word| word.starts_with("stk_")).unwrap().to_owned());
            entries.extend(made.stdout);
        }
        let mut command = Command::new(&program);
        if !team.is_empty() {
            let file = data.path().join("tokens.toml");
            std::fs::write(&file, entries).unwrap();
            command.env("STOKER_TOKENS", file);
        }
        command.args(["up", "--driver", "simulated", "--no-vm", "--listen", "127.0.0.1:0", "--host", "h-01", "--data"]);
        command.arg(data.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let base = within("the dashboard's address", async {
            loop {
                let line = lines.next_line().await.unwrap().expect("stoker up ended");
                if let Some((_, rest)) = line.split_once("http://") {
                    break format!("http://{}", rest.split('/').next().unwrap());
                }
            }
        })
        .await;
        // What else it says is read, or it would stop at a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Some(Self { base, tokens, _process: process, _data: data })
    }

    /// Enqueues a job; its id.
    async fn enqueue(&self, kernel_args: &str, attempts: u32, label: &str) -> String {
        let retry = json!({"max_attempts": attempts, "base_ms": 200, "cap_ms": 60_000});
        self.enqueue_with(kernel_args, &retry, label).await
    }

    async fn enqueue_with(&self, kernel_args: &str, retry: &Value, label: &str) -> String {
        let job = json!({"image": "simulated", "kernel_args": kernel_args, "labels": {"team": label}, "retry": retry});
        let mut request = reqwest::Client::new().post(format!("{}/v1/jobs", self.base)).json(&job);
        if let Some(token) = self.tokens.first() {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 202, "{}", answer.text().await.unwrap());
        let answer: Value = answer.json().await.unwrap();
        answer["jobs"][0]["id"].as_str().unwrap().to_owned()
    }
}

async fn open(test: &str) -> Option<(Server, Browser)> {
    let server = Server::start(test).await?;
    let browser = Browser::open(test, &server.base).await?;
    Some((server, browser))
}

#[tokio::test]
async fn a_failed_boot_is_seen_understood_mended_and_ready() {
    let Some((server, browser)) = open("a_failed_boot_is_seen_understood_mended_and_ready").await else { return };
    browser.go("/").await;
    browser.sees(&["No jobs yet", "stoker enqueue golden"]).await;
    browser.page.execute("window.same = true", Vec::new()).await.unwrap();
    let id = server.enqueue(PANICS, 1, "web").await;

    // It arrives by itself: nobody reloads.
    browser.sees(&["Needs you", "1 dead letter: kernel panic", "kernel panic"]).await;
    let same = browser.page.execute("return window.same === true", Vec::new()).await.unwrap();
    assert_eq!(same, json!(true), "the page was loaded anew");

    browser.click(&format!("main a[href='/jobs/{id}']")).await;
    browser.sees(&["Attempt 1", "failed", "kernel panic", "the guest's kernel panicked", "look at the console"]).await;
    browser.press("Edit and retry").await;

    // A mistake in the form loses nothing and names the field.
    let spec = browser.value("#spec-edit").await;
    browser.write("#spec-edit", &spec.replace(PANICS, "ip=10.0.0.9")).await;
    browser.press("Retry with this spec").await;
    browser.sees(&["kernel_args", "DHCP"]).await;
    assert!(browser.value("#spec-edit").await.contains("ip=10.0.0.9"), "what was written is gone");

    browser.write("#spec-edit", &spec.replace(PANICS, "sim.healthy-ms=300")).await;
    browser.press("Retry with this spec").await;
    browser.sees(&["ready", "READY in", "Attempt 2", "answered 200"]).await;
    browser.close().await;
}

#[tokio::test]
async fn all_that_match_are_redriven_after_their_number_was_seen() {
    let Some((server, browser)) = open("all_that_match_are_redriven_after_their_number_was_seen").await else { return };
    for _ in 0..3 {
        server.enqueue(PANICS, 1, "web").await;
    }
    server.enqueue("sim.dhcp=none sim.healthy-ms=10", 1, "other").await;
    browser.go("/dead").await;
    browser.sees(&["kernel panic", "Redrive 3"]).await;
    browser.press("Redrive 3…").await;
    browser.sees(&["Retry 3 jobs?", "cause=kernel_panic"]).await;
    browser.press("Retry 3 jobs").await;
    browser.sees(&["3 retried"]).await;
    browser.press("Back").await;
    browser.sees(&["Dead letters"]).await;

    // Ticked rows are counted, and the buttons that need them wake up.
    browser.sees(&["Redrive 3"]).await;
    browser.click("thead input[data-all]").await;
    browser.sees(&["3 selected"]).await;
    browser.press("Cancel selected").await;
    // Dead jobs cannot be cancelled: said for each, and nothing happens to them.
    browser.sees(&["0 cancelled", "3 left as they are"]).await;
    browser.close().await;
}

#[tokio::test]
async fn keys_lead_through_the_pages() {
    let Some((server, browser)) = open("keys_lead_through_the_pages").await else { return };
    let id = server.enqueue("sim.healthy-ms=10", 1, "web").await;
    browser.go("/").await;
    browser.keys("gj").await;
    browser.sees(&["Jobs", "simulated"]).await;
    browser.keys("j").await;
    let focused = browser.page.execute("return document.activeElement.getAttribute('href')", Vec::new()).await.unwrap();
    assert_eq!(focused, json!(format!("/jobs/{id}")));
    browser.keys("x").await;
    browser.sees(&["1 selected"]).await;
    browser.keys("/").await;
    let focused = browser.page.execute("return document.activeElement.id", Vec::new()).await.unwrap();
    assert_eq!(focused, json!("search"));
    browser.write("#search", &id).await;
    browser.write("#search", &format!("{id}\u{e007}")).await;
    browser.sees(&["Attempt 1", "READY in"]).await;
    browser.close().await;
}

#[tokio::test]
async fn a_team_logs_in_and_does_what_its_roles_allow() {
    let test = "a_team_logs_in_and_does_what_its_roles_allow";
    let Some(server) = Server::start_for(test, &[("ops", "operate"), ("guest", "read")]).await else { return };
    let Some(browser) = Browser::open(test, &server.base).await else { return };
    let id = server.enqueue(PANICS, 1, "web").await;
    let job = format!("/jobs/{id}");

    // Without a token there is nothing but the login, and it knows where one wanted to go.
    browser.go(&job).await;
    browser.is_at("/login").await;
    browser.write("#token", "stk_wrong").await;
    browser.click("form.login button").await;
    browser.click("form.login [role=alert]").await;
    browser.write("#token", &server.tokens[1]).await;
    browser.click("form.login button").await;
    browser.is_at(&job).await;

    // Who may only read sees the reason for a no.
    browser.sees(&["dead", "kernel panic"]).await;
    browser.press("Retry").await;
    browser.sees(&["operate"]).await;
    browser.go("/").await;
    browser.click("form[action='/logout'] button").await;
    browser.is_at("/login").await;

    // Going on before the answer is there would leave without the cookie.
    browser.write("#token", &server.tokens[0]).await;
    browser.click("form.login button").await;
    browser.is_at("/").await;
    browser.go(&job).await;
    browser.press("Retry").await;
    browser.sees(&["Attempt 2"]).await;
    let events = reqwest::Client::new().get(format!("{}/v1{job}/events", server.base));
    assert_eq!(events.try_clone().unwrap().send().await.unwrap().status(), 401);
    let told = events.bearer_auth(&server.tokens[1]).send().await.unwrap().text().await.unwrap();
    assert!(told.contains("token:ops"), "{told}");
    browser.close().await;
}

#[tokio::test]
async fn every_page_fits_light_dark_and_phone() {
    let Some((server, browser)) = open("every_page_fits_light_dark_and_phone").await else { return };
    let ready = server.enqueue("sim.healthy-ms=200", 1, "web").await;
    let dead = server.enqueue(PANICS, 2, "a-rather-long-label-value").await;
    let patient = json!({"max_attempts": 5, "base_ms": 3_600_000, "cap_ms": 3_600_000});
    server.enqueue_with(PANICS, &patient, "retrying").await;
    browser.go(&format!("/jobs/{ready}")).await;
    browser.sees(&["READY in"]).await;
    browser.go(&format!("/jobs/{dead}")).await;
    browser.sees(&["DEAD after 2 attempts"]).await;
    for (name, path) in [
        ("overview", "/".to_owned()),
        ("jobs", "/jobs".to_owned()),
        ("job-ready", format!("/jobs/{ready}")),
        ("job-dead", format!("/jobs/{dead}")),
        ("edit", format!("/jobs/{dead}/edit")),
        ("retries", "/retries".to_owned()),
        ("dead", "/dead".to_owned()),
        ("hosts", "/hosts".to_owned()),
        ("webhooks", "/webhooks".to_owned()),
        ("log", "/log".to_owned()),
        ("missing", "/nowhere".to_owned()),
    ] {
        browser.shoot(name, &path).await;
    }
    browser.close().await;
}
