//! The worker's parsers of bytes from outside, for the fuzzers; see [`stoker_schemas::fuzz`].
#![allow(clippy::expect_used, reason = "a broken promise ends the fuzzer; no product code calls this")]

pub(crate) mod broker;

use std::time::Duration;

use reqwest::StatusCode;
use stoker_schemas::fuzz::{Target, deep_toml, texts};
use stoker_schemas::id::Mac;
use stoker_schemas::limits::MAX_TEXT_BYTES;
use stoker_schemas::{Epoch, HostName, JobId, JobSpec, VmId};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

use crate::config::{Config, Flags, RawConfig};
use crate::console::{ConsoleEvent, Parser};
use crate::log::record;
use crate::net::dhcp::words;
use crate::ports::probe::{Answer, ProbeTarget};
use crate::probe::outcome::{self, Identity};
use crate::toml_text;
use crate::vm::firecracker::{api, metrics};
use crate::vm::qemu::qmp::Qmp;

/// The parsers of this crate.
pub const TARGETS: [Target; 11] = [
    broker::TARGETS[0],
    broker::TARGETS[1],
    broker::TARGETS[2],
    Target { name: "dhcp-words", run: dhcp, samples: dhcp_lines },
    Target { name: "console", run: console, samples: consoles },
    Target { name: "probe-answer", run: probe, samples: answers },
    Target { name: "firecracker-answer", run: firecracker, samples: firecracker_answers },
    Target { name: "firecracker-counters", run: counters, samples: counter_lines },
    Target { name: "qmp", run: qmp, samples: qmp_talks },
    Target { name: "log-record", run: log_record, samples: log_records },
    Target { name: "worker-config", run: config, samples: configs },
];

/// Events that one console may cause: what `console` promises.
const MAX_CONSOLE_EVENTS: usize = 576;

fn dhcp_lines() -> Vec<Vec<u8>> {
    texts(&[
        "dnsmasq-dhcp[25065]: DHCPDISCOVER(st0) 02:00:00:00:00:01 no address available",
        "dnsmasq-dhcp[25065]: DHCPACK(st0) 192.168.100.2 02:00:00:00:00:01 golden-vm",
        "dnsmasq-dhcp[25065]: DHCPNAK(st0) 192.168.100.7 02:00:00:00:00:01 wrong address",
        "dnsmasq-dhcp[25065]: DHCPRELEASE(st0) 192.168.100.2 02:00:00:00:00:01 ",
        "dnsmasq-dhcp[1]: DHCP, sockets bound exclusively to interface st0",
        "dnsmasq-dhcp[1]: read /run/x/reservations",
    ])
}

fn dhcp(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    text.lines().for_each(|line| drop(words::understand(line)));
}

fn consoles() -> Vec<Vec<u8>> {
    texts(&[
        "[    0.000000] Linux version 6.1\r\n[\x1b[0;32m  OK  \x1b[0m] Started foo.service - Network Configuration.\r\n",
        "[FAILED] Failed to start X Virtual Frame Buffer.\n[DEPEND] Dependency failed for Openbox.\n",
        "IP-Config: Complete:\n     device=eth0, addr=192.168.100.2, mask=255.255.255.0\n",
        "         Starting Name Resolution...\nKernel panic - not syncing: VFS\nOut of memory: Killed process 1\n",
        "x: No space left on device\n\x1b]0;title\x07certificate has expired\nYou are in emergency mode\n",
    ])
}

/// The same bytes give the same events however they are cut, and no more than are allowed.
fn console(bytes: &[u8]) {
    let whole = console_events([bytes]);
    let piece = bytes.first().map_or(1, |first| usize::from(*first) % 7 + 1);
    assert_eq!(console_events(bytes.chunks(piece)), whole, "cut into pieces of {piece}");
    assert!(whole.len() <= MAX_CONSOLE_EVENTS + 1, "{} events", whole.len());
    for event in whole {
        let bound = match &event {
            ConsoleEvent::UnitStarting(text)
            | ConsoleEvent::UnitStarted(text)
            | ConsoleEvent::UnitFailed(text)
            | ConsoleEvent::KernelPanic(text)
            | ConsoleEvent::OutOfMemory(text)
            | ConsoleEvent::DiskFull(text)
            | ConsoleEvent::ClockWrong(text) => text.len(),
            ConsoleEvent::KernelStarted | ConsoleEvent::EmergencyMode | ConsoleEvent::IpConfig { .. } => 0,
        };
        assert!(bound <= MAX_TEXT_BYTES, "a text of {bound} bytes");
    }
}

fn console_events<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<ConsoleEvent> {
    let (mut parser, mut events) = (Parser::default(), Vec::new());
    pieces.into_iter().for_each(|piece| parser.feed(piece, &mut |event| events.push(event)));
    parser.finish(&mut |event| events.push(event));
    events
}

fn answers() -> Vec<Vec<u8>> {
    texts(&[r#"{"status":"healthy","uptime":2.0,"vmId":"018f6f0e-0a52-7c0e-9d1c-7a4b3b0d5e11"}"#, r#"{"vmId":null}"#])
}

fn probe(bytes: &[u8]) {
    let readiness = JobSpec::from_value(&serde_json::json!({
        "image": "golden", "readiness": {"http": {"body_contains": "healthy"}}
    }));
    let host: HostName = "h-1".parse().expect("a host's name");
    let target = ProbeTarget {
        vm: VmId::derive(JobId(uuid::Uuid::nil()), Epoch::first(1), &host),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        agent: ([127, 0, 0, 1], 8080).into(),
        readiness: readiness.expect("a job").readiness,
    };
    let vm_id = outcome::vm_id(bytes);
    let body = String::from_utf8_lossy(bytes).into_owned();
    let identity = vm_id.clone().map_or(Identity::Unknown, Identity::Named);
    let answer = Answer { status: 200, body: body.clone(), latency: Duration::ZERO, vm_id };
    drop(outcome::of_answer(&target, answer, &body, &identity));
}

fn firecracker_answers() -> Vec<Vec<u8>> {
    texts(&[r#"{"fault_message":"The kernel file cannot be opened: No such file"}"#, r#"{"error":"no"}"#, "plain\r\n"])
}

fn firecracker(bytes: &[u8]) {
    let message = api::error_message(StatusCode::BAD_REQUEST, bytes);
    assert!(message.len() <= api::MAX_MESSAGE_BYTES && !message.is_empty(), "{} bytes", message.len());
    assert!(!message.contains(char::is_control), "no control characters: {message:?}");
}

fn counter_lines() -> Vec<Vec<u8>> {
    texts(&["{\"net\":{\"rx_bytes_count\":7,\"tx_bytes_count\":18446744073709551615},\"vcpu\":{\"failures\":\"x\"}}\n"])
}

fn counters(bytes: &[u8]) {
    let (totals, mut lines) = (metrics::Totals::default(), metrics::Lines::default());
    lines.feed(bytes, &totals);
    lines.feed(bytes, &totals);
    lines.feed(b"\n", &totals);
    assert!(totals.counters().len() <= 16, "counters are those we know");
}

fn qmp_talks() -> Vec<Vec<u8>> {
    texts(&[
        "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n{\"return\": {}}\r\n{\"event\": \"RESUME\"}\r\n\
         {\"return\": {\"status\": \"running\", \"running\": true}}\r\n",
        "{\"QMP\": {}}\n{\"return\": {}}\n{\"return\": {\"status\": \"inmigrate\"}}\n{\"event\": \"RESUME\"}\n",
        "{\"QMP\": {}}\n{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n",
    ])
}

/// All that QEMU says comes at once and then nothing more: each exchange ends with it.
fn qmp(bytes: &[u8]) {
    const PATIENCE: Duration = Duration::from_secs(5);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        // The reader may give up before all of it is written.
        let talk = async {
            let _ = theirs.write_all(bytes).await;
            let _ = theirs.shutdown().await;
            std::future::pending::<()>().await
        };
        let ask = async {
            let Ok(mut qmp) = Qmp::open(ours, PATIENCE).await else { return };
            if qmp.running().await.is_ok() {
                let _ = qmp.execute("quit").await;
            }
        };
        tokio::select! { () = talk => {}, () = ask => {} }
    });
}

fn log_records() -> Vec<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes.extend([0; 4]);
    bytes.extend(5_u32.to_be_bytes());
    bytes.extend([0; 56]);
    bytes.extend(b"hello");
    let crc = crc32c::crc32c(&bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_be_bytes());
    vec![bytes]
}

/// A record that is taken is the bytes it was read from.
fn log_record(bytes: &[u8]) {
    let Ok((record, length)) = record::decode(bytes) else { return };
    let mut written = Vec::new();
    record.encode(&mut written);
    assert_eq!(written, bytes[..length], "written as it was read");
}

fn configs() -> Vec<Vec<u8>> {
    let mut configs = texts(&[
        "host = \"h-1\"\npools = [\"default\", \"gpu\"]\ndriver = \"simulated\"\ndata = \"/var/lib/stoker\"\nslots = 4\n\
         vcpus = 8\nmemory_mib = 4096\nmax_booting = 2\nhold_ms = 500\nbroker = \"amqp://localhost\"\n\
         cgroup_parent = \"stoker\"\njailer_uid_base = 10000\n[labels]\nzone = \"a\"\n\
         [network]\nmode = \"bridge\"\nbridge = \"st-br0\"\ngateway = \"192.168.100.1\"\nprefix = 24\n",
        "[[warm]]\nimage = \"golden\"\ncount = 2\nvcpus = 1\nmemory_mib = 512\n",
    ]);
    configs.push(deep_toml());
    configs
}

fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(file) = toml_text::parse::<RawConfig>(text) else { return };
    if let Err(errors) = Config::merge(file, Flags::default()) {
        assert!(!errors.to_string().is_empty(), "a refusal says why");
    }
}
