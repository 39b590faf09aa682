//! The dashboard in a real Chromium: what an operator does at 3 a.m., click by click.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a failed expectation is a failed test")]

#[path = "dashboard/axe.rs"]
mod axe;
#[path = "dashboard/browser.rs"]
mod browser;

use axe::Axe;
use browser::Browser;
use serde_json::json;
use stoker_tests::control::Control;
use stoker_tests::front::{Front, PANICS};
use stoker_tests::harness::{Life, config};
use stoker_worker::clock::Clock;
use stoker_worker::ports::broker::{About, Parked};
use stoker_worker::vm::simulated::SimWorld;

async fn open(test: &str) -> Option<(Front, Browser)> {
    let server = Front::start(test).await?;
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

/// What a stranger published to a job queue, on a control plane in this process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_no_worker_can_work_on_is_seen_and_dismissed() {
    let test = "a_message_that_no_worker_can_work_on_is_seen_and_dismissed";
    let dir = tempfile::tempdir().unwrap();
    let life = Life::begin(&config(dir.path(), |_| {}), &SimWorld::new());
    let control = Control::start(life.broker.clone()).await;
    let Some(browser) = Browser::open(test, &control.base).await else { return };
    let about = About { queue: "stoker.jobs.default.normal".to_owned(), ..About::default() };
    let (routing_key, reason) = ("job.enqueued.default.normal".to_owned(), "not a CloudEvent".to_owned());
    let (at, body) = (Clock::system().now(), "<b>not json</b>".into());
    browser.go("/").await;
    life.broker.park(Parked { routing_key, reason, at, about, body }).await.unwrap();
    // It arrives by itself.
    browser.sees(&["Needs you", "1 message no worker could work on: cannot be read"]).await;
    browser.go("/dead").await;
    browser.sees(&["Messages that no worker could work on", "not a CloudEvent", "stoker.jobs.default.normal"]).await;
    let axe = Axe::open(test);
    assert_eq!(browser.shoot("dead-message", "/dead", axe.as_ref()).await, Vec::<String>::new());
    browser.go("/dead").await;
    browser.click("main a.mono[href^='/dead-letters/']").await;
    browser.sees(&["<b>not json</b>", "What to do", "SHA-256", "job.enqueued.default.normal"]).await;
    browser.press("Redrive").await;
    browser.sees(&["Not possible now", "it still cannot be worked on", "stoker enqueue"]).await;
    browser.go("/dead-letters").await;
    browser.click("main a.mono[href^='/dead-letters/']").await;
    browser.press("Dismiss").await;
    browser.sees(&["dismissed by"]).await;
    browser.go("/dead-letters?state=done").await;
    browser.sees(&["not a CloudEvent", "dismissed by"]).await;
    browser.close().await;
    control.end().await;
    life.drain().await;
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
async fn a_job_takes_a_vm_that_was_kept_for_it() {
    let test = "a_job_takes_a_vm_that_was_kept_for_it";
    let Some(server) = Front::start_warm(test, "simulated=2").await else { return };
    let Some(browser) = Browser::open(test, &server.base).await else { return };
    browser.go("/hosts").await;
    browser.sees(&["Warm VMs", "simulated", "2/2", "never"]).await;
    let id = server.enqueue("", 1, "web").await;
    browser.go(&format!("/jobs/{id}")).await;
    browser.sees(&["READY in", "taken from the warm pool"]).await;
    browser.go("/log").await;
    browser.sees(&["warm.started", "warm.ready", "warm.taken"]).await;
    browser.close().await;
}

#[tokio::test]
async fn a_team_logs_in_and_does_what_its_roles_allow() {
    let test = "a_team_logs_in_and_does_what_its_roles_allow";
    let Some(server) = Front::start_as(test, &[("ops", "operate"), ("guest", "read")], None).await else { return };
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
async fn every_page_fits_and_keeps_nobody_out_light_dark_and_phone() {
    let test = "every_page_fits_and_keeps_nobody_out_light_dark_and_phone";
    let Some(server) = Front::start_warm(test, "simulated=2").await else { return };
    let Some(browser) = Browser::open(test, &server.base).await else { return };
    let axe = Axe::open(test);
    if let Some(axe) = &axe {
        eprintln!("axe-core {}", axe.version(&browser.page).await);
    }
    let ready = server.enqueue("sim.healthy-ms=200", 1, "web").await;
    let dead = server.enqueue(PANICS, 2, "a-rather-long-label-value").await;
    let patient = json!({"max_attempts": 5, "base_ms": 3_600_000, "cap_ms": 3_600_000});
    server.enqueue_with(PANICS, &patient, "retrying").await;
    browser.go(&format!("/jobs/{ready}")).await;
    browser.sees(&["READY in"]).await;
    browser.go(&format!("/jobs/{dead}")).await;
    browser.sees(&["DEAD after 2 attempts"]).await;
    let mut found = Vec::new();
    for (name, path) in [
        ("overview", "/".to_owned()),
        ("jobs", "/jobs".to_owned()),
        ("job-ready", format!("/jobs/{ready}")),
        ("job-dead", format!("/jobs/{dead}")),
        ("edit", format!("/jobs/{dead}/edit")),
        ("retries", "/retries".to_owned()),
        ("dead", "/dead".to_owned()),
        ("messages", "/dead-letters".to_owned()),
        ("hosts", "/hosts".to_owned()),
        ("webhooks", "/webhooks".to_owned()),
        ("log", "/log".to_owned()),
        ("missing", "/nowhere".to_owned()),
    ] {
        found.extend(browser.shoot(name, &path, axe.as_ref()).await);
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    browser.close().await;
}

#[tokio::test]
async fn the_login_page_fits_and_keeps_nobody_out() {
    let test = "the_login_page_fits_and_keeps_nobody_out";
    let Some(front) = Front::start_as(test, &[("ops", "operate")], None).await else { return };
    let Some(browser) = Browser::open(test, &front.base).await else { return };
    assert_eq!(browser.shoot("login", "/login", Axe::open(test).as_ref()).await, Vec::<String>::new());
    browser.close().await;
}

/// The viewer is somebody else's program: it runs under a policy of its own, which must be enough.
#[tokio::test]
async fn the_api_can_be_read_and_tried() {
    let Some((_front, browser)) = open("the_api_can_be_read_and_tried").await else { return };
    browser.go("/").await;
    browser.click("a[href='/docs']").await;
    browser.sees(&["Stoker", "OAS 3.1", "/v1/jobs/{id}/retry", "Enqueues one job or several", "/metrics"]).await;
    browser.click("#operations-Server-getHealth button").await;
    browser.click("#operations-Server-getHealth .try-out__btn").await;
    browser.click("#operations-Server-getHealth .execute").await;
    browser.sees(&["\"state\": \"connected\""]).await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    browser.close().await;
}
