//! Hosts and health.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use stoker_schemas::Time;
use stoker_worker::ports::broker::{BrokerStatus, HistoryStatus, Offset};

use super::{Api, Problem};
use crate::readmodel::{Counts, HostView, Undecodable};
use crate::work::{Blocked, Why, Work};

/// Entries shown of what could not be decoded.
const MAX_UNDECODABLE: usize = 100;
/// Pools named in one sentence; the overview has all of them.
const MAX_POOLS_NAMED: usize = 3;

/// How the front is.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Health {
    /// Whether jobs are taken and started.
    pub ok: bool,
    /// This Stoker's version.
    pub version: String,
    /// The broker.
    pub broker: BrokerHealth,
    /// The broker's history, which pages are made from.
    #[serde(default)]
    pub history: HistoryHealth,
    /// The work itself.
    #[serde(default)]
    pub work: WorkHealth,
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

/// How the work is: whether jobs that wait are started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "state", content = "reason", rename_all = "snake_case")]
pub enum WorkHealth {
    /// Nothing waits without a reason.
    Flowing,
    /// Jobs wait, hosts have room, and nothing has started for too long.
    Stalled(String),
    /// Jobs wait in a pool that no host serves. Everything else goes on, so it is no failure of the whole.
    Unserved(String),
    /// Not known: the history is being read, or the broker or its history is away.
    #[default]
    Unknown,
}

impl WorkHealth {
    /// From what was seen. Who asks may be anybody where tokens are: pools are named only where all may see everything.
    fn of(work: &Work, is_named: bool) -> Self {
        let reason = |why| {
            let blocked: Vec<_> = work.blocked_by(why).collect();
            (!blocked.is_empty()).then(|| sentences(&blocked, is_named))
        };
        match (reason(Why::NothingStarts), reason(Why::NoHost)) {
            _ if !work.is_known => Self::Unknown,
            (Some(reason), _) => Self::Stalled(reason),
            (None, Some(reason)) => Self::Unserved(reason),
            (None, None) => Self::Flowing,
        }
    }

    /// In words, where it needs a person.
    fn reason(&self) -> Option<&str> {
        match self {
            Self::Stalled(reason) | Self::Unserved(reason) => Some(reason),
            Self::Flowing | Self::Unknown => None,
        }
    }
}

fn sentences(blocked: &[&Blocked], is_named: bool) -> String {
    let named: Vec<_> = blocked.iter().take(MAX_POOLS_NAMED).map(|blocked| blocked.sentence(is_named)).collect();
    let more = match blocked.len() - named.len() {
        0 => String::new(),
        1 => "; the same in 1 more pool".to_owned(),
        more => format!("; the same in {more} more pools"),
    };
    named.join("; ") + &more
}

/// Told when requests may be sent here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Ready {
    /// Always.
    pub ready: bool,
    /// What needs a person although jobs are taken, in words.
    #[serde(default)]
    pub needs: Vec<String>,
    /// The work itself. Requests may be sent here also while it is stalled: what is enqueued is kept, and the pages say
    /// what to do; `/health` fails.
    #[serde(default)]
    pub work: WorkHealth,
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
    let work = WorkHealth::of(&api.work(), !api.access.is_closed());
    let ok = broker == BrokerHealth::Connected && !matches!(work, WorkHealth::Stalled(_));
    let next_offset = match api.model.next_offset() {
        Offset::First => None,
        from => Some(from.next()),
    };
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let health = Health { ok, version, broker, history, work, next_offset, heard_at: api.model.heard_at() };
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
    let work = WorkHealth::of(&api.work(), !api.access.is_closed());
    let needs = work.reason().map(str::to_owned).into_iter().chain(needs(&api.model.hosts()?)).collect();
    Ok(Json(Ready { ready: true, needs, work }))
}

/// What needs a person. Who asks may be anybody, so no host or queue is named.
fn needs(hosts: &[HostView]) -> Vec<String> {
    let refused = hosts.iter().filter(|host| !host.refusals.is_empty()).count();
    let of = if refused == 1 { "1 host".to_owned() } else { format!("{refused} hosts") };
    let sentence = format!("queues refuse messages of {of}, whose jobs wait; the overview and /v1/hosts say which");
    (refused > 0).then_some(sentence).into_iter().collect()
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

    fn blocked(pool: &str, why: Why) -> Blocked {
        let lasts = std::time::Duration::from_secs(94);
        Blocked { pool: pool.to_owned(), why, waiting: 12, with_room: 3, lasts }
    }

    #[test]
    fn a_stall_outweighs_a_pool_without_hosts_and_is_told_of_some_pools() {
        assert_eq!(WorkHealth::of(&Work::default(), true), WorkHealth::Unknown);
        let of = |blocked| WorkHealth::of(&Work { is_known: true, blocked }, true);
        assert_eq!(of(Vec::new()), WorkHealth::Flowing);
        let unserved = of(vec![blocked("gpu", Why::NoHost)]);
        assert!(matches!(&unserved, WorkHealth::Unserved(reason) if reason.contains("pool gpu")), "{unserved:?}");
        let pools = ["a", "b", "c", "d", "e"].map(|pool| blocked(pool, Why::NothingStarts));
        let stalled = of(pools.into_iter().chain([blocked("gpu", Why::NoHost)]).collect());
        let WorkHealth::Stalled(reason) = &stalled else { panic!("{stalled:?}") };
        assert!(reason.contains("in pool c,") && reason.ends_with("; the same in 2 more pools"), "{reason}");
        assert!(!reason.contains("gpu"), "{reason}");
    }

    #[test]
    fn where_anybody_may_ask_no_pool_is_named() {
        for why in [Why::NothingStarts, Why::NoHost] {
            let work = WorkHealth::of(&Work { is_known: true, blocked: vec![blocked("gpu", why)] }, false);
            let reason = work.reason().unwrap();
            assert!(reason.contains("12 jobs wait") && !reason.contains("gpu"), "{reason}");
        }
    }
}
