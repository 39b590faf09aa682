//! The prober against servers that misbehave in one way each, then behave.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use stoker_schemas::{VmId, id::Mac, spec::Readiness};
use stoker_tests::{DEADLINE, conformance::net::some_vm};
use stoker_worker::{
    net::Namespace,
    ports::probe::{ProbeLog, ProbeOutcome, ProbeTarget, Prober, WrongAnswer},
    probe::HttpProber,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket},
    time::timeout,
};

/// What the server does with its connections, one after the other; the last one for all further.
#[derive(Clone)]
enum Turn {
    Answer(String),
    /// Takes the request and says no more.
    Hang,
    /// Closes without an answer.
    Close,
    /// A body without end.
    Endless,
    /// An answer without end, a byte now and then.
    Drip,
}

fn ok(body: &str) -> Turn {
    Turn::Answer(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
}

fn healthy(vm: VmId) -> Turn {
    ok(&format!(r#"{{"status":"healthy","vmId":"{vm}"}}"#))
}

fn status(line: &str) -> Turn {
    Turn::Answer(format!("HTTP/1.1 {line}\r\ncontent-length: 0\r\n\r\n"))
}

async fn serve(listener: TcpListener, turns: Vec<Turn>) {
    for nth in 0.. {
        let (mut stream, _) = listener.accept().await.unwrap();
        let turn = turns[nth.min(turns.len() - 1)].clone();
        tokio::spawn(async move {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            match turn {
                Turn::Answer(text) => drop(stream.write_all(text.as_bytes()).await),
                Turn::Hang => std::future::pending().await,
                Turn::Close => {}
                Turn::Drip => {
                    let mut pace = tokio::time::interval(Duration::from_millis(50));
                    for byte in b"HTTP/1.1 200 OK\r\nx: ".iter().chain(std::iter::repeat(&b'x')) {
                        pace.tick().await;
                        if stream.write_all(&[*byte]).await.is_err() {
                            return;
                        }
                    }
                }
                Turn::Endless => {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhealthy ").await;
                    while stream.write_all(&[b'x'; 8192]).await.is_ok() {}
                }
            }
        });
    }
}

async fn server(turns: Vec<Turn>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, turns));
    address
}

fn target(vm: VmId, agent: SocketAddr) -> ProbeTarget {
    let readiness = Readiness {
        port: agent.port(),
        path: "/health".to_owned(),
        expected_status: 200,
        body_contains: Some("healthy".to_owned()),
        check_identity: true,
        deadline_ms: 60_000,
        units: Vec::new(),
    };
    ProbeTarget { vm, mac: vm.mac(), agent, readiness }
}

fn prober() -> HttpProber {
    HttpProber::new(Namespace::host().unwrap(), None).unwrap()
}

/// One try at a server that only does this.
async fn once(vm: VmId, turn: Turn) -> ProbeOutcome {
    let agent = server(vec![turn]).await;
    timeout(DEADLINE, prober().once(&target(vm, agent))).await.unwrap()
}

#[tokio::test]
async fn each_way_to_fail_has_its_name() {
    let vm = some_vm();
    let why = async |turn| match once(vm, turn).await {
        ProbeOutcome::Wrong(_, why) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(why(status("503 Service Unavailable")).await, WrongAnswer::Status);
    assert_eq!(why(status("302 Found\r\nlocation: http://127.0.0.1:1/health")).await, WrongAnswer::Status);
    assert_eq!(why(ok("starting")).await, WrongAnswer::Body);
    let other = some_vm();
    assert_eq!(why(healthy(other)).await, WrongAnswer::Identity(other.to_string()));
    let outcome = once(vm, Turn::Close).await;
    assert!(matches!(outcome, ProbeOutcome::Reset(_)), "{outcome:?}");
    let outcome = once(vm, Turn::Answer("SSH-2.0-OpenSSH\r\n".to_owned())).await;
    assert!(matches!(outcome, ProbeOutcome::Reset(_)), "{outcome:?}");
    assert_eq!(once(vm, Turn::Hang).await, ProbeOutcome::ReadTimeout);
    assert_eq!(once(vm, Turn::Drip).await, ProbeOutcome::ReadTimeout);
}

#[tokio::test]
async fn a_body_without_end_is_read_in_part() {
    // On loopback each VM has its own port, so an answer without a vmId is its own.
    match once(some_vm(), Turn::Endless).await {
        ProbeOutcome::Ready(answer) => {
            assert!(answer.body.starts_with("healthy") && answer.body.len() <= 1024, "{} bytes", answer.body.len());
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn nobody_listening_is_told_from_nobody_there() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
    let vm = some_vm();
    assert_eq!(prober().once(&target(vm, free)).await, ProbeOutcome::Refused);
    // A listener whose backlog is full does not answer SYNs: as a guest that is not up yet.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let full = socket.listen(1).unwrap();
    let agent = full.local_addr().unwrap();
    let mut held = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(100), tokio::net::TcpStream::connect(agent)).await {
        held.push(stream.unwrap());
    }
    assert_eq!(prober().once(&target(vm, agent)).await, ProbeOutcome::ConnectTimeout);
}

#[tokio::test]
async fn an_answer_without_an_id_is_judged_by_its_mac() {
    let Some(sandbox) = crate::sandbox::Sandbox::open("an_answer_without_an_id_is_judged_by_its_mac").await else {
        return;
    };
    // Not a loopback address, though on `lo`: as good as another machine's, and only inside.
    sandbox.ip(&["address", "add", "10.9.0.1/32", "dev", "lo"]);
    let listener = sandbox.namespace.within(TcpListener::bind("10.9.0.1:8080")).await.unwrap();
    sandbox.namespace.spawn(serve(listener, vec![ok("healthy")]));
    let vm = some_vm();
    let asked = target(vm, "10.9.0.1:8080".parse().unwrap());
    let seen_at = async |mac: Option<Mac>| {
        let lookup: stoker_worker::net::bridge::NeighbourLookup = Arc::new(move |_| Box::pin(async move { mac }));
        HttpProber::new(sandbox.namespace.clone(), Some(lookup)).unwrap().once(&asked).await
    };
    assert!(matches!(seen_at(Some(vm.mac())).await, ProbeOutcome::Ready(_)));
    for stranger in [Some(some_vm().mac()), None] {
        let outcome = seen_at(stranger).await;
        assert!(matches!(outcome, ProbeOutcome::Wrong(_, WrongAnswer::Identity(_))), "{outcome:?}");
    }
}

#[tokio::test]
async fn until_ready_goes_through_it_all() {
    let vm = some_vm();
    let turns = vec![status("503 Service Unavailable"), Turn::Close, ok("starting"), healthy(some_vm()), healthy(vm)];
    let agent = server(turns).await;
    let log = ProbeLog::default();
    let answer = timeout(DEADLINE, prober().until_ready(&target(vm, agent), &log)).await.unwrap();
    assert_eq!((answer.status, answer.vm_id), (200, Some(vm.to_string())));
    let summary = log.summary();
    assert_eq!((summary.tries, summary.kinds.len()), (5, 5), "{summary:?}");
    assert!(summary.connected_after.is_some());
}

#[tokio::test]
async fn a_try_that_is_given_up_leaves_how_long_it_waited() {
    let log = ProbeLog::default();
    let agent = server(vec![Turn::Close, Turn::Hang]).await;
    let given_up = timeout(Duration::from_millis(500), prober().until_ready(&target(some_vm(), agent), &log)).await;
    assert!(given_up.is_err());
    let summary = log.summary();
    // One that never got a connection would have been given up, and noted, long before.
    assert!(summary.unanswered.is_some_and(|waited| waited > Duration::from_millis(20)), "{summary:?}");
    assert_eq!(summary.tries, 1);

    let unbound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
    let log = ProbeLog::default();
    let _ = timeout(Duration::from_millis(50), prober().until_ready(&target(some_vm(), unbound), &log)).await;
    assert_eq!(log.summary().unanswered, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_answer_is_seen_within_milliseconds() {
    const ROUNDS: usize = 20;
    let prober = Arc::new(prober());
    let mut waits = Vec::new();
    for _ in 0..ROUNDS {
        let vm = some_vm();
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
        let (asker, log) = (Arc::clone(&prober), Arc::new(ProbeLog::default()));
        let seen = Arc::clone(&log);
        let asking = tokio::spawn(async move {
            let answer = asker.until_ready(&target(vm, free), &seen).await;
            (answer, Instant::now())
        });
        // Into its steady pace first.
        while log.summary().tries < 12 {
            tokio::task::yield_now().await;
        }
        let listener = TcpListener::bind(free).await.unwrap();
        let up = Instant::now();
        let serving = tokio::spawn(serve(listener, vec![healthy(vm)]));
        let (_, seen_at) = timeout(DEADLINE, asking).await.unwrap().unwrap();
        waits.push(seen_at - up);
        serving.abort();
    }
    waits.sort();
    eprintln!("first answer seen after: median {:?}, worst {:?}", waits[ROUNDS / 2], waits[ROUNDS - 1]);
    // The pace is 5 ms; the rest is for a busy machine.
    assert!(waits[ROUNDS / 2] < Duration::from_millis(50), "{waits:?}");
}
