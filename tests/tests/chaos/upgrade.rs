//! From RabbitMQ 3 to 4 with jobs inside, as "Upgrading RabbitMQ" in the README says: a new node beside the old one, what
//! waits is moved over by shovels, and everything that was seen stays seen.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use stoker_tests::{setting, skipped};
use tokio::time::{sleep, timeout};

use crate::{
    PATIENCE,
    node::Node,
    server::Server,
    table::{Outcome, Row},
    worker::Worker,
};

const TEST: &str = "what_waits_on_rabbitmq_3_boots_through_rabbitmq_4";
/// Folder of the release that is upgraded to.
const NEXT: &str = "STOKER_RABBITMQ_NEXT";
/// Jobs in each part of it.
const JOBS: usize = 30;
/// Between two looks at another process.
const LOOK: Duration = Duration::from_millis(250);
/// Its first attempt fails; the second waits in a delay queue for longer than the move takes.
const RETRIED: u64 = 25_000;

/// Enqueues jobs of a kind, as a client does: refused ones again.
async fn enqueue(server: &Server, args: &str, jobs: usize) -> BTreeSet<String> {
    let job = json!({
        "image": "simulated", "kernel_args": args,
        "retry": {"max_attempts": 2, "base_ms": RETRIED, "cap_ms": RETRIED, "jitter_percent": 0}
    });
    let mut ids = BTreeSet::new();
    let enqueued = async {
        while ids.len() < jobs {
            let request = reqwest::Client::new().post(format!("{}/v1/jobs", server.base)).json(&job);
            let key = format!("{}-{}", args.replace(' ', "-"), ids.len());
            let answer = request.header("idempotency-key", key).send().await.unwrap();
            match answer.status().as_u16() {
                202 => {
                    let answer: Value = answer.json().await.unwrap();
                    ids.insert(answer["jobs"][0]["id"].as_str().unwrap().to_owned());
                }
                503 => sleep(LOOK).await,
                status => panic!("{status}: {}", answer.text().await.unwrap()),
            }
        }
    };
    timeout(PATIENCE, enqueued).await.expect("jobs are refused");
    ids
}

async fn job(server: &Server, id: &str) -> Value {
    reqwest::get(format!("{}/v1/jobs/{id}", server.base)).await.unwrap().json().await.unwrap()
}

/// Those of which something does not hold in time, by the server's rows.
async fn missing(server: &Server, jobs: &BTreeSet<String>, holds: impl Fn(&Value) -> bool) -> BTreeSet<String> {
    let mut open = jobs.clone();
    let all = async {
        while !open.is_empty() {
            for id in open.clone() {
                if holds(&job(server, &id).await) {
                    open.remove(&id);
                }
            }
            sleep(LOOK).await;
        }
    };
    let _ = timeout(PATIENCE, all).await;
    for id in &open {
        eprintln!("missing: {:#}", job(server, id).await);
    }
    open
}

fn was_ready(job: &Value) -> bool {
    job["attempts"].as_array().is_some_and(|all| all.iter().any(|attempt| attempt["proof"].is_object()))
}

/// Everything that waits in the old node's queues is published to the new one, as it was published first: with a queue
/// for its destination, a delayed message would forget where it is to go when its time has come.
async fn shovel(old: &Node, new: &Node) {
    for (n, queue) in old.queues_in_use().await.into_iter().enumerate() {
        let shovel = json!({
            "src-protocol": "amqp091", "src-uri": old.url, "src-queue": queue, "src-delete-after": "queue-length",
            "dest-protocol": "amqp091", "dest-uri": new.url, "ack-mode": "on-confirm"
        });
        new.ctl(&["set_parameter", "shovel", &format!("upgrade-{n}"), &shovel.to_string()]).await;
    }
    let moved = async {
        while !old.queues_in_use().await.is_empty() {
            sleep(LOOK).await;
        }
    };
    timeout(PATIENCE, moved).await.expect("not everything is moved");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs another RabbitMQ; scripts/dev chaos runs it"]
async fn what_waits_on_rabbitmq_3_boots_through_rabbitmq_4() {
    let (Some(next), Some(programs)) = (setting(TEST, NEXT), setting(TEST, "STOKER_TEST_BIN_DIR")) else { return };
    if std::env::var_os("STOKER_RABBITMQ_ROOT").is_some() {
        skipped(TEST, "upgrades from the host's own RabbitMQ");
        return;
    }
    let Some(old) = Node::start(TEST).await else { return };
    let mut row = Row::new("RabbitMQ 3.10 replaced by 4.0, jobs inside (blue-green, shovels)");
    let data = tempfile::tempdir().unwrap();
    let rows = data.path().join("rows");
    let worker = |url: &str| {
        let (program, log) = (programs.join("stoker-worker"), data.path().join("log"));
        Worker::start(&program, url, "w-1", data.path().join("w-1"), log)
    };
    let serve = async |url: &str| Server::start(&programs.join("stoker"), url, Path::new(&rows)).await;

    let (server, first) = (serve(&old.url).await, worker(&old.url));
    let seen = enqueue(&server, "sim.healthy-ms=20", JOBS).await;
    let retried = enqueue(&server, "sim.crash-ms=50 sim.healthy-ms=9000", 3).await;
    assert_eq!(missing(&server, &seen, was_ready).await, BTreeSet::new());
    assert_eq!(missing(&server, &retried, |job| job["phase"] == "retrying").await, BTreeSet::new());
    first.end().await;
    let waiting = enqueue(&server, "sim.healthy-ms=21", JOBS).await;
    // What it does not know by now it would have to learn from a history that is left behind.
    assert_eq!(missing(&server, &waiting, |job| job["phase"] == "queued").await, BTreeSet::new());
    server.end().await;

    let begun = Instant::now();
    let environment = [("STOKER_RABBITMQ_ROOT", next.to_str().unwrap()), ("STOKER_BROKER_PLUGINS", "rabbitmq_shovel")];
    let new = old.beside(&environment).await;
    let (server, second) = (serve(&new.url).await, worker(&new.url));
    // They make its queues.
    assert_eq!(missing(&server, &enqueue(&server, "sim.healthy-ms=22", 1).await, was_ready).await, BTreeSet::new());
    shovel(&old, &new).await;
    let lost = missing(&server, &waiting, was_ready).await;
    row.recovered(lost.is_empty().then(|| begun.elapsed()));
    let twice = |job: &Value| job["phase"] == "dead" && job["attempts"].as_array().unwrap().len() == 2;
    let not_retried = missing(&server, &retried, twice).await;
    let forgotten = missing(&server, &seen, was_ready).await;
    let mut doubled = 0;
    for id in waiting.iter().chain(&seen) {
        let job = job(&server, id).await;
        doubled += usize::from(job["attempts"].as_array().is_some_and(|attempts| attempts.len() > 1));
    }
    let kept = new.kept_messages(PATIENCE).await;
    second.end().await;
    server.end().await;
    row.end(Outcome {
        jobs: seen.len() + retried.len() + waiting.len(),
        lost: lost.len() + forgotten.len(),
        doubled,
        leaked: 0,
        stuck: not_retried.len() + kept,
        repeated: 0,
    });
}
