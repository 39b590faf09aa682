//! What the agent knows about its guest, and how `/health` and `/metrics` show it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// Milestones of a boot, in the order in which they are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The agent's first instruction.
    Init,
    /// The drivers are loaded.
    Modules,
    /// The port is listening.
    Listening,
    /// The interface is up.
    Link,
    /// The DHCP server gave an address, and it is set.
    Address,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Modules => "modules",
            Self::Listening => "listening",
            Self::Link => "link",
            Self::Address => "address",
        }
    }
}

/// Counters and timings, shared between the threads of the agent.
#[derive(Debug)]
pub struct Status {
    /// Unset while a template waits for it.
    vm_id: OnceLock<String>,
    stages: Mutex<BTreeMap<Stage, Duration>>,
    requests: AtomicU64,
    refused: AtomicU64,
}

/// The body of `/health`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Health<'a> {
    status: &'a str,
    timestamp: String,
    /// The minimal guest runs no browser, so it has no sessions.
    active_sessions: u32,
    vm_id: &'a str,
    uptime: f64,
}

impl Status {
    /// A guest that has reached nothing yet.
    pub fn new(vm_id: &str) -> Self {
        Self { vm_id: vm_id.to_owned().into(), ..Self::without_id() }
    }

    /// A template, which does not know yet who it will be.
    pub fn without_id() -> Self {
        Self {
            vm_id: OnceLock::new(),
            stages: Mutex::default(),
            requests: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Who this is, once and for all.
    pub fn becomes(&self, vm_id: &str) {
        self.vm_id.get_or_init(|| vm_id.to_owned());
    }

    /// Who this is; empty for a template.
    pub fn vm_id(&self) -> &str {
        self.vm_id.get().map_or("", String::as_str)
    }

    /// Notes that a milestone is reached; only the first time counts.
    pub fn reached(&self, stage: Stage) {
        self.stages().entry(stage).or_insert_with(uptime);
    }

    /// Counts an answered request.
    pub fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection that was turned away.
    pub fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The JSON of `/health`.
    pub fn health(&self, healthy: bool) -> String {
        let health = Health {
            status: if healthy { "ok" } else { "unhealthy" },
            timestamp: format!("{:.3}", jiff::Timestamp::now()),
            active_sessions: 0,
            vm_id: self.vm_id(),
            uptime: uptime().as_secs_f64(),
        };
        // Strings and numbers always serialise.
        serde_json::to_string(&health).unwrap_or_default()
    }

    /// The text of `/metrics`, in the Prometheus exposition format.
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        metric(
            &mut text,
            "stoker_agent_uptime_seconds",
            "gauge",
            "Time since the guest's kernel started.",
            &[(String::new(), uptime().as_secs_f64())],
        );
        let stages: Vec<_> = self
            .stages()
            .iter()
            .map(|(stage, at)| (format!("{{stage=\"{}\"}}", stage.name()), at.as_secs_f64()))
            .collect();
        metric(&mut text, "stoker_agent_boot_stage_seconds", "gauge", "Kernel start to the given milestone.", &stages);
        let count = |value: &AtomicU64| value.load(Ordering::Relaxed) as f64;
        metric(
            &mut text,
            "stoker_agent_http_requests_total",
            "counter",
            "Requests answered.",
            &[(String::new(), count(&self.requests))],
        );
        metric(
            &mut text,
            "stoker_agent_http_refused_total",
            "counter",
            "Connections turned away.",
            &[(String::new(), count(&self.refused))],
        );
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        for (field, name, help) in [
            ("MemTotal", "stoker_agent_memory_total_bytes", "Memory of the guest."),
            ("MemAvailable", "stoker_agent_memory_available_bytes", "Memory that programs can still get."),
        ] {
            if let Some(bytes) = meminfo_bytes(&meminfo, field) {
                metric(&mut text, name, "gauge", help, &[(String::new(), bytes as f64)]);
            }
        }
        text
    }

    /// A thread that panicked while it held the map cannot have left it half changed.
    fn stages(&self) -> std::sync::MutexGuard<'_, BTreeMap<Stage, Duration>> {
        self.stages.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Time since the kernel started, including time spent suspended.
pub fn uptime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::try_from(now).unwrap_or_default()
}

fn metric(out: &mut String, name: &str, kind: &str, help: &str, samples: &[(String, f64)]) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in samples {
        let _ = writeln!(out, "{name}{labels} {value}");
    }
}

fn meminfo_bytes(meminfo: &str, field: &str) -> Option<u64> {
    meminfo.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let kibibytes: u64 = value.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        (name == field).then_some(kibibytes * 1024)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_names_the_vm_and_has_a_utc_timestamp() {
        let body = Status::new("vm-\"7").health(true);
        let json: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(json["status"], "ok");
        assert_eq!(json["vmId"], "vm-\"7");
        assert_eq!(json["activeSessions"], 0);
        assert!(json["uptime"].as_f64().unwrap() > 0.0);
        let timestamp = json["timestamp"].as_str().unwrap();
        timestamp.parse::<jiff::Timestamp>().unwrap();
        assert!(timestamp.ends_with('Z') && timestamp.len() == "2025-11-04T19:20:42.755Z".len());
    }

    #[test]
    fn metrics_show_each_milestone_once() {
        let status = Status::new("vm");
        status.reached(Stage::Init);
        let first = status.metrics();
        status.reached(Stage::Init);
        status.reached(Stage::Address);
        let text = status.metrics();
        let line = |text: &str| text.lines().find(|l| l.contains("stage=\"init\"")).map(str::to_owned);
        assert!(line(&text).is_some());
        assert_eq!(line(&text), line(&first));
        assert_eq!(text.matches("stage=").count(), 2);
    }

    #[test]
    fn reads_meminfo() {
        let text = "MemTotal:         107840 kB\nMemFree: x\nMemAvailable:  80 kB\n";
        assert_eq!(meminfo_bytes(text, "MemTotal"), Some(107_840 * 1024));
        assert_eq!(meminfo_bytes(text, "MemAvailable"), Some(80 * 1024));
        assert_eq!(meminfo_bytes(text, "MemFree"), None);
        assert_eq!(meminfo_bytes(text, "SwapTotal"), None);
    }
}
