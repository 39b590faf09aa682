//! The control plane's parsers of bytes from outside, for the fuzzers; see [`stoker_schemas::fuzz`].
#![allow(clippy::expect_used, reason = "a broken promise ends the fuzzer; no product code calls this")]

use std::path::Path;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use stoker_schemas::Time;
use stoker_schemas::fuzz::{Target, deep_toml, texts};

use crate::cli::input;
use crate::hooks::HooksConfig;
use crate::hooks::mapping::Facts;
use crate::hooks::verify;
use crate::http::access::{cross_site, tokens};
use crate::http::list::ListQuery;
use crate::http::many::token::Promises;
use crate::readmodel::{packed, query};

/// The parsers of this crate.
pub const TARGETS: [Target; 8] = [
    Target { name: "job-file", run: job_file, samples: job_files },
    Target { name: "webhook-payload", run: payload, samples: payloads },
    Target { name: "webhook-signature", run: signature, samples: signatures },
    Target { name: "hooks-config", run: hooks_config, samples: hooks_configs },
    Target { name: "token-file", run: token_file, samples: token_files },
    Target { name: "list-query", run: list_query, samples: list_queries },
    Target { name: "cursor", run: cursor, samples: cursors },
    Target { name: "packed-row", run: packed_row, samples: packed_rows },
];

/// One source of each kind, with a mapping that looks into its payload.
const HOOKS: &str = r#"
[[source]]
name = "standard"
kind = "standard"
secrets = ["whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="]
[source.job]
image = "golden"

[[source]]
name = "github"
kind = "github"
secrets = ["0123456789abcdef"]
when = "event == 'push' and payload.ref == 'refs/heads/main'"
[source.job]
image = "golden"
labels = { commit = "{{ payload.after | default('none') }}", who = "{{ payload.pusher.name }}" }

[[source]]
name = "hmac"
kind = "hmac"
header = "x-signature"
prefix = "sha256="
encoding = "base64"
secrets = ["0123456789abcdef"]
[source.job]
image = "{{ payload.image }}"
vcpus = "{{ payload.n * 2 }}"
ttl_s = "{{ payload.ttl | default(none) }}"
labels = { all = "{% for item in payload.items %}{{ item }}-{% endfor %}" }

[[source]]
name = "bearer"
kind = "bearer"
id_header = "x-id"
secrets = ["0123456789abcdef"]
[source.job]
image = "golden"
"#;

fn job_files() -> Vec<Vec<u8>> {
    let mut files = texts(&[
        "image: golden\nlabels: {team: web}\n---\nimage: golden@7\nvcpus: 2\n",
        "- &a\n  image: golden\n- <<: *a\n  ttl_s: 60\n- *a\n",
        r#"[{"image":"golden"},{"image":"golden","vcpus":2}]"#,
    ]);
    let deep = [("[", "]"), ("{a: ", "}"), ("- ", "x"), ("? ", "x"), ("{\"a\":", "}"), ("!!seq [", "]"), ("&a [", "]")];
    files.extend(deep.map(|(open, close)| format!("{}{}", open.repeat(10_000), close.repeat(10_000)).into_bytes()));
    files
}

/// What a job file of a user of the command line holds is refused or read, never more.
fn job_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err(why) = input::parse(text) {
        assert!(!why.is_empty(), "a refusal says why");
    }
}

fn hooks() -> HooksConfig {
    HooksConfig::parse(HOOKS, Path::new("."), &|_| None).expect("settings that are right")
}

fn payloads() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"image":"golden","n":2,"ttl":60,"items":["a","b"]}"#,
        r#"{"ref":"refs/heads/main","after":"018f6f0e","pusher":{"name":"ada"},"type":"push"}"#,
        r#"{"image":"golden@7","n":9007199254740993,"items":{"a":1}}"#,
    ])
}

/// Whatever a payload holds, each mapping ends within its bounds.
fn payload(body: &[u8]) {
    let headers = [("x-from".to_owned(), "ci".to_owned())].into();
    for (name, source) in &hooks().sources {
        let facts = Facts { source: name, delivery: "d-1", event: None, headers: &headers };
        if let Err(error) = source.mapping.apply(facts, body, "key") {
            assert!(!error.to_string().is_empty(), "a refusal says why");
        }
    }
}

fn signatures() -> Vec<Vec<u8>> {
    texts(&[
        "webhook-id: m-1\nwebhook-timestamp: 0\nwebhook-signature: v1,aGVsbG8= v1a,x v1,\n\n{}",
        "x-hub-signature-256: sha256=00ff\nx-github-delivery: 72d3162e\nx-github-event: push\n\n{}",
        "x-signature: sha256=aGVsbG8=\n\n{}",
        "authorization: Bearer 0123456789abcdef\nx-id: 7\n\n{}",
    ])
}

/// Lines of headers, an empty line, the body. Only the right bearer token is let in: nobody guesses the others.
fn signature(bytes: &[u8]) {
    let split = bytes.windows(2).position(|two| two == b"\n\n").unwrap_or(bytes.len());
    let (head, body) = (&bytes[..split], bytes.get(split + 2..).unwrap_or_default());
    let mut headers = HeaderMap::new();
    for line in head.split(|byte| *byte == b'\n').take(64) {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default().trim_ascii();
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    for (name, source) in &hooks().sources {
        if let Ok(verified) = verify::verify(source, &headers, body, Time::UNIX_EPOCH) {
            assert_eq!(name, "bearer", "a signature was guessed: {verified:?}");
            assert!(verified.id.len() <= verify::MAX_ID_BYTES, "an id of {} bytes", verified.id.len());
        }
    }
}

fn hooks_configs() -> Vec<Vec<u8>> {
    let callbacks = "[callbacks]\nsecrets = [\"whsec_MDEyMzQ1Njc4OWFiY2RlZg==\"]\nallow = [\"10.0.0.0/8\"]\n";
    vec![HOOKS.as_bytes().to_vec(), callbacks.as_bytes().to_vec(), deep_toml()]
}

/// Files that it names are not there.
fn hooks_config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err(errors) = HooksConfig::parse(text, Path::new("/nonexistent"), &|_| None) {
        assert!(!errors.to_string().is_empty(), "a refusal says why");
    }
}

fn token_files() -> Vec<Vec<u8>> {
    let digest = "0".repeat(64);
    let file = format!(
        "[[token]]\nname = \"ada\"\nrole = \"admin\"\nsha256 = \"{digest}\"\nexpires = \"2027-01-01T00:00:00Z\"\n\
         [[token]]\nname = \"ci\"\nrole = \"operate\"\nsha256 = \"{digest}\"\nexpires = 2027-01-01\n"
    );
    vec![file.into_bytes(), deep_toml()]
}

fn token_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err(errors) = tokens::parse(text) {
        assert!(!errors.to_string().is_empty(), "a refusal says why");
    }
}

fn list_queries() -> Vec<Vec<u8>> {
    texts(&[
        "phase=failing,dead&cause=agent_not_listening&label=team%3Dweb&limit=50",
        "since=2026-11-23T16:00:00Z&until=2026-11-24T16:00:00%2B02:00&text=golden&host=h-1&pool=default&image=golden",
        "cursor=0123456789abcdef0123456789abcdef0123456789abcdef",
    ])
}

fn list_query(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = cross_site::is_own_path(&text);
    let Ok(mut query) = ListQuery::from_address(&text) else { return };
    let _ = query.filter();
    query.forget_empty();
    let _ = query.filter();
}

fn cursors() -> Vec<Vec<u8>> {
    texts(&["0123456789abcdef0123456789abcdef0123456789abcdef", "AAAAAAAAAAcAAAAAAAAAAQ"])
}

/// A cursor that is taken is one of ours; a token of nobody's promises nothing.
fn cursor(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(tail) = query::decode_cursor(&text) {
        assert_eq!(query::encode_cursor(&tail), text.to_ascii_lowercase(), "written as it was read");
    }
    assert_eq!(Promises::default().read("retry {}", &text), None, "a token was guessed");
}

fn packed_rows() -> Vec<Vec<u8>> {
    [&b"{}"[..], br#"{"image":"golden","host":"h-1"}"#].map(packed::pack).to_vec()
}

/// A row of the largest size is the most that a damaged one may become.
fn packed_row(bytes: &[u8]) {
    let Ok(text) = packed::unpack(bytes) else { return };
    assert_eq!(packed::unpack(&packed::pack(&text)).ok(), Some(text), "packed again it is the same");
}
