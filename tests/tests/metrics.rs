//! What Prometheus is given: by the rules of its format, and by its own `promtool`.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a failed expectation is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Write};
use std::process::{Command, Stdio};

use serde_json::json;
use stoker_schemas::Phase;
use stoker_tests::control::Control;
use stoker_tests::harness::{Life, config, rig};
use stoker_tests::skipped;
use stoker_worker::clock::Clock;
use stoker_worker::metrics_file::Counted;
use stoker_worker::outbox::{Progress, Refusal};
use stoker_worker::vm::simulated::SimWorld;
use tokio::sync::watch;

/// What a worker and a control plane say after a job that became ready and one that failed.
async fn both() -> [(&'static str, String); 2] {
    let dir = tempfile::tempdir().unwrap();
    let world = SimWorld::new();
    let life = Life::begin(&config(dir.path(), |_| {}), &world);
    let control = Control::start(life.broker.clone()).await;
    let good = life.enqueue(json!({"image": "simulated", "kernel_args": "sim.healthy-ms=1"})).await;
    let retry = json!({"max_attempts": 1});
    let bad = json!({"image": "simulated", "kernel_args": "sim.boot=refused", "retry": retry});
    let bad = life.enqueue(bad).await;
    life.reaches(good, Phase::Ready).await;
    life.reaches(bad, Phase::Dead).await;
    for (id, phase) in [(good, "ready"), (bad, "dead")] {
        control.until("both are seen", &format!("/v1/jobs/{id}"), |job| job["phase"] == phase).await;
    }
    let refusal = Refusal {
        queue: "a \"queue\" \\ of\nours".to_owned(),
        reason: "full".to_owned(),
        messages: 3,
        oldest: Clock::system().now(),
    };
    let (_told, progress) = watch::channel(Progress { refusals: vec![refusal], ..Progress::default() });
    let outbox = Some((life.log.clone(), progress));
    let of_worker = Counted { hypervisor: rig(&world).hypervisor, outbox, clock: Clock::system() }.text();
    let of_control = control.text("/metrics").await;
    control.end().await;
    drop(life.drain().await);
    [("worker", of_worker), ("control plane", of_control)]
}

/// Name and labels of a series, and the metric that it is part of.
fn series(line: &str, histograms: &BTreeSet<&str>) -> (String, String) {
    let (series, value) = line.rsplit_once(' ').unwrap();
    assert!(value.parse::<f64>().is_ok_and(|value| value >= 0.0), "{line}");
    let name = series.split('{').next().unwrap();
    let suffixes = ["_bucket", "_sum", "_count"];
    let whole = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix).filter(|name| histograms.contains(name)));
    (series.to_owned(), whole.unwrap_or(name).to_owned())
}

/// The rules of the format that a reader may rely on.
fn is_well_formed(whose: &str, text: &str) {
    let types: BTreeMap<_, _> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let histograms: BTreeSet<_> = types.iter().filter(|(_, kind)| **kind == "histogram").map(|(n, _)| *n).collect();
    let (mut described, mut seen, mut now) = (BTreeSet::new(), BTreeSet::new(), "");
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            assert!(described.insert(name), "{whose}: {name} twice");
            assert!(help.ends_with('.'), "{whose}: {line}");
            let kind = lines.next().and_then(|line| line.strip_prefix(&format!("# TYPE {name} ")));
            let kind = kind.unwrap_or_else(|| panic!("{whose}: {name} has no type"));
            assert_eq!(kind == "counter", name.ends_with("_total"), "{whose}: {name}");
            assert!(kind != "histogram" || name.ends_with("_seconds"), "{whose}: {name}");
            now = name;
            continue;
        }
        let (series, metric) = series(line, &histograms);
        assert_eq!(metric, now, "{whose}: {line} is not below its name");
        assert!(seen.insert(series), "{whose}: {line} twice");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_say_what_would_have_shown_a_fault_and_promtool_finds_nothing_wrong() {
    let [(_, worker), (_, control)] = &both().await;
    for (whose, text) in [("worker", worker), ("control plane", control)] {
        is_well_formed(whose, text);
        for line in [
            "stoker_attempts_total{outcome=\"ready\",cause=\"none\"} 1\n",
            "stoker_attempts_total{outcome=\"failed\",cause=\"",
            "stoker_boot_duration_seconds_bucket{le=\"+Inf\"} 1\n",
            "stoker_boot_stage_duration_seconds_count{stage=\"agent_healthy\"} 1\n",
            "stoker_queue_wait_seconds_count 2\n",
            "stoker_slots{state=\"total\"}",
            "stoker_vms{state=\"ready\"} 1\n",
        ] {
            assert!(text.contains(line), "{whose}: {line}: {text}");
        }
    }
    let of_worker = [
        "stoker_log_append_duration_seconds_count",
        "stoker_delivery_credit ",
        "stoker_deliveries_unacknowledged{source=\"jobs\"} 0\n",
        "stoker_outbox_refused_messages{queue=\"a \\\"queue\\\" \\\\ of\\nours\"} 3\n",
    ];
    assert!(of_worker.iter().all(|line| worker.contains(line)), "{worker}");
    let of_control = [
        "stoker_jobs_enqueued_total 2\n",
        "stoker_jobs_republished_total{by=\"reconciler\"} 0\n",
        "stoker_work_stalled{reason=\"nothing_starts\"} 0\n",
    ];
    assert!(of_control.iter().all(|line| control.contains(line)), "{control}");
    for text in [worker, control] {
        promtool(text);
    }
}

/// Prometheus' own opinion.
fn promtool(text: &str) {
    let mut command = Command::new("promtool");
    let command = command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = match command.stderr(Stdio::piped()).spawn() {
        Ok(running) => running,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return skipped("promtool", "needs promtool (Debian: prometheus)");
        }
        Err(error) => panic!("promtool: {error}"),
    };
    running.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = running.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}
