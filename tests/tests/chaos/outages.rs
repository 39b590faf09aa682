//! A client enqueues over HTTP while RabbitMQ is stopped, killed, frozen and out of memory: every
//! 202 is kept, and every other answer is clear and comes in bounded time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest::{Client, Response, StatusCode, header};
use serde_json::{Value, json};
use stoker_schemas::{JobId, Phase};
use stoker_tests::{harness, setting};
use stoker_worker::supervisor::Capacity;
use tokio::{sync::watch, task::JoinSet};

use crate::{PATIENCE, host::SimHost, node::Node, server::Server};

const TEST: &str = "every_202_is_kept_whatever_becomes_of_the_broker";
/// Clients that enqueue at once.
const CLIENTS: usize = 4;
/// Jobs accepted between two troubles.
const JOBS_BETWEEN: usize = 40;
/// Refusals that each trouble must show: more than one client's, so that those that were waiting
/// for a confirm are among them.
const REFUSALS: usize = 2 * CLIENTS;
/// Longest that an answer may take: the deadline of a confirm, and as long again for a busy machine.
const BOUND: Duration = Duration::from_secs(10);

/// What happens to the broker.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    Stopped,
    Killed,
    Frozen,
    OutOfMemory,
}

impl Trouble {
    async fn begin(self, node: &Node) {
        match self {
            Self::Stopped => node.stop().await,
            Self::Killed => node.kill_9().await,
            Self::Frozen => node.freeze().await,
            Self::OutOfMemory => node.allow_memory("1MiB").await,
        }
    }

    async fn end(self, node: &Node) {
        match self {
            Self::Stopped | Self::Killed => node.start_again().await,
            Self::Frozen => node.thaw().await,
            Self::OutOfMemory => node.allow_memory("768MiB").await,
        }
    }
}

/// What the clients saw.
#[derive(Default)]
struct Seen {
    accepted: watch::Sender<Vec<JobId>>,
    refused: watch::Sender<usize>,
    slowest_ms: AtomicUsize,
    stop: AtomicBool,
}

impl Seen {
    fn took(&self, begun: Instant) {
        let took = begun.elapsed();
        assert!(took <= BOUND, "an answer took {took:?}");
        self.slowest_ms.fetch_max(usize::try_from(took.as_millis()).unwrap(), Ordering::Relaxed);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    async fn accepts(&self, more: usize) {
        let mut accepted = self.accepted.subscribe();
        let wanted = accepted.borrow().len() + more;
        let reached = tokio::time::timeout(PATIENCE, accepted.wait_for(|jobs| jobs.len() >= wanted)).await.is_ok();
        assert!(reached, "stuck at {} of {wanted} jobs", self.accepted.borrow().len());
    }

    async fn refuses(&self, more: usize) {
        let mut refused = self.refused.subscribe();
        let wanted = *refused.borrow() + more;
        let reached = tokio::time::timeout(PATIENCE, refused.wait_for(|n| *n >= wanted)).await.is_ok();
        assert!(reached, "stuck at {} of {wanted} refusals", *self.refused.borrow());
    }
}

/// Enqueues one job after another. One that was refused is asked for again under the same key:
/// whether it had arrived or not, it is one job in the end.
async fn enqueue(http: Client, base: String, seen: Arc<Seen>, client: usize) {
    for n in 0.. {
        let job = json!({"image": "simulated", "kernel_args": "sim.healthy-ms=20"});
        while !seen.stopped() {
            let begun = Instant::now();
            let request =
                http.post(format!("{base}/v1/jobs")).header("idempotency-key", format!("client-{client}-{n}"));
            let answer = request.json(&job).send().await.unwrap();
            seen.took(begun);
            if answer.status() == StatusCode::ACCEPTED {
                let answer: Value = answer.json().await.unwrap();
                let id = serde_json::from_value(answer["jobs"][0]["id"].clone()).unwrap();
                seen.accepted.send_modify(|jobs| jobs.push(id));
                break;
            }
            says_why(answer).await;
            seen.refused.send_modify(|n| *n += 1);
            // Sooner than the answer asks for, or it would take minutes; later than at once, as the
            // node needs this machine to start.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if seen.stopped() {
            return;
        }
    }
}

/// A refusal says what is wrong, what to do, and when to come again.
async fn says_why(answer: Response) {
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/problem+json");
    let after: u64 = answer.headers()[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&after));
    let problem: Value = answer.json().await.unwrap();
    for field in ["type", "title", "detail", "hint"] {
        assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "no {field} in {problem}");
    }
}

/// Reads pages meanwhile: what is known is shown, whatever the broker does.
async fn read(http: Client, base: String, seen: Arc<Seen>) {
    for path in ["/", "/v1/jobs?limit=5", "/health", "/retries", "/v1/counts"].into_iter().cycle() {
        if seen.stopped() {
            return;
        }
        let begun = Instant::now();
        let answer = http.get(format!("{base}{path}")).send().await.unwrap();
        seen.took(begun);
        let may_say_no = path == "/health" && answer.status() == StatusCode::SERVICE_UNAVAILABLE;
        assert!(answer.status().is_success() || may_say_no, "{path}: {}", answer.status());
        // Whole, or an error in the middle would go unseen.
        answer.bytes().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_202_is_kept_whatever_becomes_of_the_broker() {
    let Some(programs) = setting(TEST, "STOKER_TEST_BIN_DIR") else { return };
    let Some(node) = Node::start(TEST).await else { return };
    let dir = tempfile::tempdir().unwrap();
    let config = harness::config(dir.path(), |config| {
        config.capacity = Capacity { slots: 60_000, vcpus: 60_000, memory_mib: 60_000 * 256 };
    });
    let host = SimHost::start(&config, &node.url).await;
    node.knows_its_streams().await;
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(&programs.join("stoker"), &node.url, data.path()).await;

    let (http, seen) = (Client::builder().no_proxy().build().unwrap(), Arc::new(Seen::default()));
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        clients.spawn(enqueue(http.clone(), server.base.clone(), seen.clone(), client));
    }
    clients.spawn(read(http.clone(), server.base.clone(), seen.clone()));
    let troubles = async {
        for trouble in [Trouble::Stopped, Trouble::Killed, Trouble::Frozen, Trouble::OutOfMemory] {
            seen.accepts(JOBS_BETWEEN).await;
            let before = *seen.refused.borrow();
            trouble.begin(&node).await;
            seen.refuses(REFUSALS).await;
            trouble.end(&node).await;
            eprintln!("{trouble:?}: {} refused", *seen.refused.borrow() - before);
        }
        seen.accepts(JOBS_BETWEEN).await;
    };
    // A client that ends meanwhile has failed: its words are better than "stuck".
    tokio::select! {
        () = troubles => {}
        Some(ended) = clients.join_next() => panic!("a client ended early: {ended:?}"),
    }
    seen.stop.store(true, Ordering::Relaxed);
    tokio::time::timeout(PATIENCE, clients.join_all()).await.expect("a client hangs");

    let jobs = seen.accepted.borrow().clone();
    let mut open = jobs.clone();
    let last = Instant::now() + PATIENCE;
    host.until("every accepted job is ready", PATIENCE, |host| {
        open.retain(|id| host.state(*id).phase() != Phase::Ready);
        if Instant::now() >= last {
            for id in &open {
                eprintln!("not ready: {:#?}", host.state(*id));
            }
        }
        open.is_empty()
    })
    .await;
    for id in &jobs {
        let state = host.state(*id);
        assert_eq!(state.attempts.len(), 1, "{state:#?}");
    }
    all_are_shown(&http, &server.base, &jobs).await;
    eprintln!(
        "{} accepted, {} refused, slowest answer {} ms",
        jobs.len(),
        *seen.refused.borrow(),
        seen.slowest_ms.load(Ordering::Relaxed)
    );
    host.end(PATIENCE).await;
}

/// The server's own rows have them, too: read from the history, over all its reconnections.
async fn all_are_shown(http: &Client, base: &str, jobs: &[JobId]) {
    let shown = async {
        loop {
            let counts: Value = http.get(format!("{base}/v1/counts")).send().await.unwrap().json().await.unwrap();
            if counts["phases"]["ready"].as_u64() >= Some(jobs.len() as u64) {
                return;
            }
            // Another process: all one can do is ask again.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, shown).await.expect("not every job is shown as ready");
    for id in jobs {
        let answer = http.get(format!("{base}/v1/jobs/{id}")).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{id}");
    }
}
