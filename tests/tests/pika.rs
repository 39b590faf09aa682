//! Another language enqueues: Python's pika, by the published schemas alone.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a failed expectation is a failed test")]

#[path = "chaos/host.rs"]
mod host;

use std::{path::Path, process::Stdio};

use host::SimHost;
use stoker_schemas::{JobId, Phase};
use stoker_tests::{DEADLINE, harness, setting, skipped, within};
use tokio::process::Command;

/// Debian's Python first: its packages are not seen by one that was installed beside it.
const PYTHONS: [&str; 2] = ["/usr/bin/python3", "python3"];

async fn python_with_pika() -> Option<&'static str> {
    for python in PYTHONS {
        let tried = Command::new(python).args(["-c", "import pika"]).stderr(Stdio::null()).status().await;
        if tried.is_ok_and(|status| status.success()) {
            return Some(python);
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_program_enqueues_by_the_published_schemas() {
    let test = "a_python_program_enqueues_by_the_published_schemas";
    let Some(url) = setting(test, "STOKER_TEST_AMQP_URL") else { return };
    let Some(python) = python_with_pika().await else {
        return skipped(test, "Python has no pika (Debian: python3-pika)");
    };
    let url = url.to_str().unwrap();
    // Names of its own on a broker that other tests use too.
    let name = format!("pika-{}", &uuid::Uuid::now_v7().simple().to_string()[20..]);
    let dir = tempfile::tempdir().unwrap();
    let config = harness::config(dir.path(), |config| {
        config.host = name.parse().unwrap();
        config.pools = vec![name.parse().unwrap()];
    });
    let host = SimHost::start(&config, url).await;

    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(python);
    command.arg(here.join("tests/pika_enqueue.py")).arg(here.join("../schemas/json")).arg(&name);
    let output = within("enqueued", command.env("AMQP_URL", url).kill_on_drop(true).output()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let id: JobId = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();

    host.until("the job is ready", DEADLINE, |host| host.state(id).phase() == Phase::Ready).await;
    assert_eq!(host.world.stats().boots, 1);
    host.end(DEADLINE).await;
}
