//! The OpenAPI document against a running server: Schemathesis asks every operation what it promises
//! and what it must refuse, with a fixed seed. What it is told beyond the document, and why, is in
//! `schemathesis/schemathesis.toml`.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use stoker_tests::front::{Front, PANICS};
use stoker_tests::setting;
use tokio::process::Command;

/// Longest run: a bound for a machine that is busy, many times what it takes on one that is not.
const WITHIN: Duration = Duration::from_secs(300);

const SECRET: &str = "a bearer token for deliveries";

/// One source of webhooks, so that deliveries are there to be asked for.
fn hooks() -> String {
    format!(
        "[[source]]\nname = \"ci\"\nkind = \"bearer\"\nsecrets = [\"{SECRET}\"]\n[source.job]\nimage = \"simulated\"\n"
    )
}

/// Some jobs of each fate.
async fn busy(front: &Front) {
    front.enqueue("sim.healthy-ms=10", 1, "web").await;
    front.enqueue(PANICS, 1, "web").await;
    let delivery = reqwest::Client::new().post(format!("{}/hooks/ci", front.base)).bearer_auth(SECRET);
    let answer = delivery.header("content-type", "application/json").body("{}").send().await.unwrap();
    assert_eq!(answer.status(), 202, "{}", answer.text().await.unwrap());
}

async fn schemathesis(program: &Path, front: &Front, more: &[&str]) -> Output {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemathesis/schemathesis.toml");
    // It leaves a folder of its own where it runs.
    let place = tempfile::tempdir().unwrap();
    let mut command = Command::new(program);
    command.arg("--config-file").arg(config).arg("run").arg(format!("{}/v1/openapi.json", front.base));
    command.args(["--no-color", "--warnings=off"]).args(more).current_dir(place.path());
    command.env("SCHEMATHESIS_HOOKS", "").env("NO_PROXY", "127.0.0.1").kill_on_drop(true);
    tokio::time::timeout(WITHIN, command.output()).await.expect("Schemathesis ends in time").unwrap()
}

fn program(test: &str) -> Option<PathBuf> {
    setting(test, "STOKER_TEST_SCHEMATHESIS")
}

/// What it said belongs into the test's output, also when all is well: how many cases there were.
fn judge(output: &Output) {
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let cases = said.lines().skip_while(|line| !line.starts_with("Test cases")).take(2);
    eprintln!("{}", cases.collect::<Vec<_>>().join(" "));
}

#[tokio::test]
async fn the_api_does_what_its_document_says() {
    let test = "the_api_does_what_its_document_says";
    let Some(program) = program(test) else { return };
    let Some(front) = Front::start_as(test, &[], Some(&hooks())).await else { return };
    busy(&front).await;
    judge(&schemathesis(&program, &front, &[]).await);
}

/// With tokens it is the same API. Only reading is asked once more: what a write takes and answers
/// does not depend on who sends it. (That nothing is told without a token is tested by itself: wrong
/// ones are soon too many for a program that tries them by the hundred.)
#[tokio::test]
async fn with_a_token_it_is_the_same_api() {
    let test = "with_a_token_it_is_the_same_api";
    let Some(program) = program(test) else { return };
    let Some(front) = Front::start_as(test, &[("ops", "operate")], Some(&hooks())).await else { return };
    busy(&front).await;
    let bearer = format!("Authorization: Bearer {}", front.tokens[0]);
    // Fewer than a token may ask (else it is told so, with 429).
    let reading =
        ["--header", &bearer, "--include-method", "GET", "--exclude-path", "/v1/events", "--rate-limit", "60/s"];
    judge(&schemathesis(&program, &front, &[&reading[..], &["--exclude-checks", "ignored_auth"]].concat()).await);
}
