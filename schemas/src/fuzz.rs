//! Parsers of bytes from outside, each as a function of bytes, for the fuzzers. Such a function
//! panics where a promise is broken; whatever it returns, no input may make it panic, hang or grow.
#![allow(clippy::expect_used, reason = "a broken promise ends the fuzzer; no product code calls this")]

use std::collections::BTreeMap;

use crate::event::{Event, samples};
use crate::image::ImageManifest;
use crate::letter::{Death, GivenUpBy, Letter, dead_lettered};
use crate::limits::{MAX_EVENT_BYTES, clip};
use crate::spec::{JobSpec, kernel_args};
use crate::{HostName, ImageName, PoolName, Time};

/// A parser under test.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, also that of its folder of inputs.
    pub name: &'static str,
    /// Feeds it. Panics when a promise is broken.
    pub run: fn(&[u8]),
    /// Valid inputs to start from.
    pub samples: fn() -> Vec<Vec<u8>>,
}

/// The parsers of this crate.
pub const TARGETS: [Target; 5] = [
    Target { name: "event", run: event, samples: events },
    Target { name: "job-spec", run: job_spec, samples: specs },
    Target { name: "kernel-args", run: kernel_line, samples: kernel_lines },
    Target { name: "dead-letter-body", run: letter, samples: events },
    Target { name: "image-manifest", run: manifest, samples: manifests },
];

const RECEIVED: Time = Time::UNIX_EPOCH;

/// Inputs written as text.
pub fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// TOML that nests where its parser does not count: keys of many parts within brackets.
pub fn deep_toml() -> Vec<u8> {
    let key = ["a"; 79].join(".");
    format!("{}1{}", format!("{key} = {{").repeat(78), "}".repeat(78)).into_bytes()
}

fn events() -> Vec<Vec<u8>> {
    samples().iter().filter_map(|event| event.encode().ok()).collect()
}

/// What was read can be written and reads back the same. A job near the limit may be too large to write
/// with its defaults spelled out; that is a refusal like any other.
fn event(bytes: &[u8]) {
    let Ok(event) = Event::decode(bytes, RECEIVED) else { return };
    let Ok(written) = event.encode() else { return };
    let again = Event::decode(&written, RECEIVED).expect("what was written can be read");
    assert_eq!(again, event, "what was written reads back the same");
    assert_eq!(again.id(), event.id(), "one fact, one id");
}

fn specs() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"image":"golden@7"}"#,
        r#"{"image":"golden","vcpus":2,"memory_mib":512,"disk_mib":64,"kernel_args":"quiet loglevel=3",
            "network":{"static":{"address":"10.0.0.2","prefix":24,"gateway":"10.0.0.1"}},
            "readiness":{"http":{"port":8080,"path":"/health","expected_status":200,"body_contains":"ok"},
            "check_identity":true,"deadline_ms":60000,"units":["Network Configuration"]},
            "retry":{"max_attempts":3,"base_ms":100,"cap_ms":1000,"jitter_percent":20,
            "per_cause":{"agent_not_listening":5}},"ttl_s":60,"priority":"high","pool":"gpu",
            "labels":{"team":"web"},"host_labels":{"gpu":"yes"},"callback_url":"https://example.org/done",
            "idempotency_key":"deploy-1"}"#,
        r#"{"image":"golden","network":"dhcp"}"#,
    ])
}

fn job_spec(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(bytes) else { return };
    match JobSpec::from_value(&value) {
        Ok(spec) => {
            let written = serde_json::to_value(&spec).expect("a job can be written");
            let again = JobSpec::from_value(&written).expect("a valid job stays valid");
            assert_eq!(again, spec, "what was written reads back the same");
        }
        Err(errors) => assert!(!errors.0.is_empty(), "a refusal says why"),
    }
}

fn kernel_lines() -> Vec<Vec<u8>> {
    texts(&["quiet loglevel=3", "ip=192.168.100.2::192.168.100.1:255.255.255.0::eth0:on", "\"ip=dhcp\" root=/dev/vda"])
}

/// No line that is taken gives the guest's network an owner of its own.
fn kernel_line(bytes: &[u8]) {
    let line = String::from_utf8_lossy(bytes);
    if kernel_args::check("kernel_args", &line).is_empty() {
        let owns = line.split_ascii_whitespace().any(|word| word.trim_matches('"').starts_with("ip="));
        assert!(!owns, "taken: {line}");
    }
    for text in line.split_ascii_whitespace().take(8) {
        let _ = (text.parse::<ImageName>(), text.parse::<PoolName>(), text.parse::<HostName>(), text.parse::<Time>());
    }
    assert!(clip(&line, 40).len() <= 40, "text is cut to its bound");
}

/// Whatever a dead message was, the event about it can be written.
fn letter(body: &[u8]) {
    let words = String::from_utf8_lossy(body);
    let (queue, exchange, routing_key) = (clip(&words, 300), words.to_string(), words.to_string());
    for by in [GivenUpBy::Worker(words.to_string()), GivenUpBy::Broker(clip(&words, 40)), GivenUpBy::Publisher] {
        let (queue, exchange, routing_key) = (queue.clone(), exchange.clone(), routing_key.clone());
        let death = Death { by, queue, exchange, routing_key, count: body.len() as u64, at: None };
        let letter = Letter { death: &death, message_id: Some(&words), content_type: Some(&words), body };
        written(&dead_lettered(letter, "/producers/fuzz", RECEIVED));
    }
}

/// Checks that an event made from outside input fits on the wire.
pub fn written(event: &Event) {
    let bytes = event.encode().expect("an event of our own can be written");
    assert!(bytes.len() <= MAX_EVENT_BYTES, "within its bound");
    assert_eq!(&Event::decode(&bytes, RECEIVED).expect("and read"), event, "and reads back the same");
}

fn manifests() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"schema":"dev.stoker.image.v1","name":"golden","drivers":["firecracker","qemu"],"kernel":"vmlinux","rootfs":"rootfs.ext4",
        "kernel_args":"console=ttyS0","network":"dhcp","allow_static":true,"agent_port":8080,"units":["Network Configuration"],
        "min_memory_mib":32,"reach":{"host":true},"digests":{"vmlinux":"sha256:5ecd"}}"#,
    ])
}

fn manifest(bytes: &[u8]) {
    let Ok(manifest) = serde_json::from_slice::<ImageManifest>(bytes) else { return };
    let spec = JobSpec::from_value(&serde_json::json!({"image": "golden"})).expect("a valid job");
    let _ = manifest.check_job(&spec);
    let _: BTreeMap<String, serde_json::Value> =
        serde_json::from_value(serde_json::to_value(&manifest).expect("it can be written")).expect("as an object");
}
