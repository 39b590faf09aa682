//! Hosts, health and metrics.

use std::fmt::Write;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use stoker_schemas::Time;
use stoker_schemas::event::DeadLetterReason;
use stoker_worker::ports::broker::{BrokerStatus, HistoryStatus, Offset};

use super::{Api, Problem};
use crate::readmodel::{Counts, HostStatus, HostView, Undecodable, WarmView};

/// The broker is asked how many dead letters wait for no longer than this.
const DEPTH_WITHIN: Duration = Duration::from_secs(1);
/// Entries shown of what could not be decoded.
const MAX_UNDECODABLE: usize = 100;

/// How the front is.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Health {
    /// Whether jobs are taken.
    pub ok: bool,
    /// This Stoker's version.
    pub version: String,
    /// The broker.
    pub broker: BrokerHealth,
    /// The broker's history, which pages are made from.
    #[serde(default)]
    pub history: HistoryHealth,
    /// Next entry of the history to be read.
    pub next_offset: Option<u64>,
    /// When the history last said something, since the process began.
    pub heard_at: Option<Time>,
}

/// How the broker is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "state", content = "reason", rename_all = "snake_case")]
pub enum BrokerHealth {
    /// Usable.
    Connected,
    /// Takes no messages.
    Blocked(String),
    /// Not connected.
    Down(String),
}

/// How the history is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "state", content = "reason", rename_all = "snake_case")]
pub enum HistoryHealth {
    /// It takes what is published.
    #[default]
    Available,
    /// It does not: work goes on, and what is shown lags.
    Away(String),
}

/// Told when requests may be sent here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Ready {
    /// Always.
    pub ready: bool,
    /// What needs a person although jobs are taken, in words.
    #[serde(default)]
    pub needs: Vec<String>,
}

/// `GET /v1/hosts`
pub async fn hosts(State(api): State<Api>) -> Result<Json<Vec<HostView>>, Problem> {
    Ok(Json(api.model.hosts()?))
}

/// `GET /v1/counts`
pub async fn counts(State(api): State<Api>) -> Json<Counts> {
    Json(api.model.counts())
}

/// `GET /v1/undecodable`
pub async fn undecodable(State(api): State<Api>) -> Result<Json<Vec<Undecodable>>, Problem> {
    Ok(Json(api.model.undecodable(MAX_UNDECODABLE)?))
}

/// `GET /health`
pub async fn health(State(api): State<Api>) -> Response {
    let broker = match api.submitter.broker().status().borrow().clone() {
        BrokerStatus::Connected => BrokerHealth::Connected,
        BrokerStatus::Blocked(why) => BrokerHealth::Blocked(why),
        BrokerStatus::Down(why) => BrokerHealth::Down(why),
    };
    let history = match api.submitter.broker().history_status().borrow().clone() {
        HistoryStatus::Available => HistoryHealth::Available,
        HistoryStatus::Away(why) => HistoryHealth::Away(why),
    };
    let ok = broker == BrokerHealth::Connected;
    let next_offset = match api.model.next_offset() {
        Offset::First => None,
        from => Some(from.next()),
    };
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let health = Health { ok, version, broker, history, next_offset, heard_at: api.model.heard_at() };
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health)).into_response()
}

/// `GET /ready`: rows are current and jobs are taken. Nothing is asked of the broker here: what it
/// last was is known, so that the answer comes at once, however it is.
pub async fn ready(State(api): State<Api>) -> Result<Json<Ready>, Problem> {
    if let Some(why) = api.broker_trouble() {
        let hint = "check the broker's address and that it runs; what is shown may be old, nothing is taken";
        return Err(Problem::not_ready(format!("the broker takes nothing: {why}"), hint));
    }
    if !api.model.is_caught_up() {
        let detail = format!("the history is being read: {} events so far", api.model.next_seq());
        return Err(Problem::not_ready(detail, "wait; what is shown is old until then"));
    }
    let needs = needs(&api.model.hosts()?);
    Ok(Json(Ready { ready: true, needs }))
}

/// A label's value as Prometheus reads it.
fn label(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

/// What needs a person. Who asks may be anybody, so no host or queue is named.
fn needs(hosts: &[HostView]) -> Vec<String> {
    let refused = hosts.iter().filter(|host| !host.refusals.is_empty()).count();
    let of = if refused == 1 { "1 host".to_owned() } else { format!("{refused} hosts") };
    let sentence = format!("queues refuse messages of {of}, whose jobs wait; the overview and /v1/hosts say which");
    (refused > 0).then_some(sentence).into_iter().collect()
}

/// Dead letters that wait at the broker; `None` when it does not say in time.
async fn dead_depth(api: &Api) -> Option<u64> {
    let broker = api.submitter.broker();
    if matches!(*broker.status().borrow(), BrokerStatus::Down(_)) {
        return None;
    }
    tokio::time::timeout(DEPTH_WITHIN, broker.dead_depth()).await.ok()?.ok()
}

/// `GET /metrics`, as Prometheus reads it.
pub async fn metrics(State(api): State<Api>) -> Result<Response, Problem> {
    let counts = api.model.counts();
    let hosts = api.model.hosts()?;
    let mut out = String::new();
    let mut gauge = |name: &str, help: &str, rows: Vec<(String, u64)>| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (labels, value) in rows {
            let _ = writeln!(out, "{name}{labels} {value}");
        }
    };
    let phases = counts.phases.iter().map(|(p, n)| (format!("{{phase=\"{p}\"}}"), *n)).collect();
    gauge("stoker_jobs", "Jobs by phase.", phases);
    let causes = counts.causes.iter().map(|(c, n)| (format!("{{cause=\"{c}\"}}"), *n)).collect();
    gauge("stoker_jobs_failing", "Failing, retrying and dead jobs by the cause of their last failure.", causes);
    let of = |status| u64::try_from(hosts.iter().filter(|h| h.status == status).count()).unwrap_or(u64::MAX);
    let all = [HostStatus::Up, HostStatus::DrainRequested, HostStatus::Draining, HostStatus::Stopped];
    let by_status = all.map(|s| (format!("{{status=\"{}\"}}", s.as_str().replace(' ', "_")), of(s)));
    gauge("stoker_hosts", "Hosts by status.", by_status.to_vec());
    let kept =
        |of: fn(&WarmView) -> u32| hosts.iter().flat_map(|h| &h.warm).map(|kind| u64::from(of(kind))).sum::<u64>();
    let warm = [
        ("ready", kept(|kind| kind.ready)),
        ("booting", kept(|kind| kind.booting)),
        ("wanted", kept(|kind| kind.wanted)),
    ];
    let warm = warm.map(|(state, n)| (format!("{{state=\"{state}\"}}"), n)).to_vec();
    gauge("stoker_warm_vms", "VMs kept up for jobs to come, and how many are wanted.", warm);
    let letters = DeadLetterReason::ALL.map(|reason| {
        let open = counts.dead_letters.get(&reason).copied().unwrap_or(0);
        (format!("{{reason=\"{}\"}}", reason.as_str()), open)
    });
    gauge(
        "stoker_dead_letters",
        "Open dead letters (messages that no worker could work on) by reason.",
        letters.to_vec(),
    );
    if let Some(depth) = dead_depth(&api).await {
        let help = "Dead letters at the broker that no control plane has read.";
        gauge("stoker_dead_letter_queue_messages", help, vec![(String::new(), depth)]);
    }
    let refused = |h: &HostView| h.refusals.iter().map(|refusal| refusal.messages).sum();
    let refused = hosts.iter().map(|h| (format!("{{host=\"{}\"}}", label(&h.name)), refused(h))).collect();
    let help = "Messages that a host keeps because their queue refuses them, as the host last said.";
    gauge("stoker_outbox_refused_messages", help, refused);
    let connected = matches!(*api.submitter.broker().status().borrow(), BrokerStatus::Connected);
    gauge("stoker_broker_up", "Whether the broker takes messages.", vec![(String::new(), u64::from(connected))]);
    let undecodable = vec![(String::new(), counts.undecodable)];
    gauge("stoker_history_undecodable_entries", "History entries that are not events we know.", undecodable);
    gauge("stoker_events_known", "Events in the read model.", vec![(String::new(), api.model.next_seq())]);
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], out).into_response())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn host(name: &str, refusals: serde_json::Value) -> HostView {
        let view = json!({
            "name": name, "status": "up", "since": null, "slots": 1, "booting": 0, "ready": 0, "vcpus": 1,
            "memory_mib": 512, "labels": {}, "pools": [], "hypervisor": "", "version": "", "warm": [],
            "refusals": refusals,
        });
        serde_json::from_value(view).unwrap()
    }

    #[test]
    fn what_needs_a_person_is_counted_and_named_to_nobody() {
        let refusal = json!([{"queue": "q", "reason": "full", "messages": 3, "oldest": "2026-01-01T00:00:00Z"}]);
        assert!(needs(&[host("h-01", json!([]))]).is_empty());
        let needs = needs(&[host("h-01", refusal.clone()), host("h-02", json!([])), host("h-03", refusal)]);
        assert!(needs.len() == 1 && needs[0].contains("2 hosts") && !needs[0].contains("h-0"), "{needs:?}");
    }

    #[test]
    fn a_label_is_escaped() {
        assert_eq!(label("a\"b\\c\nd"), r#"a\"b\\c\nd"#);
    }
}
