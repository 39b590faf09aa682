//! What is known of a pool: what was said of it last, who serves it, and what its jobs do.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use stoker_schemas::event::PoolConfigured;
use stoker_schemas::{Event, EventData, HostName, Phase, PoolName, Time};

use super::hosts::{HostState, HostStatus, Latest, latest};
use super::summary::Counters;

/// What was said of one pool, the latest of it by its own time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolState {
    configured: Latest<PoolConfigured>,
    /// Number of that event, in the order of arrival here.
    #[serde(default)]
    seq: u64,
}

impl PoolState {
    /// Adds one event. What is retold to one host is the same word with the same time.
    /// `seq` is its number in the order of arrival here.
    pub fn apply(&mut self, event: &Event, seq: u64) {
        if let EventData::PoolConfigured(rule) = &event.data {
            self.seq = self.seq.max(seq);
            latest(&mut self.configured, event.time, &PoolConfigured { host: None, ..rule.clone() });
        }
    }

    /// What was said last, and when.
    pub fn rule(&self) -> Option<&(Time, PoolConfigured)> {
        self.configured.as_ref()
    }
}

/// One pool in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct PoolView {
    /// Its name.
    pub name: String,
    /// No new attempt starts; what boots or is up stays.
    pub paused: bool,
    /// VMs of the pool that each host may have at once; none for as many as fit.
    pub max_per_host: Option<u32>,
    /// Since when that holds; none when nobody ever said anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Who said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why, in their words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Hosts that take its jobs.
    pub hosts: Vec<String>,
    /// Its jobs by phase; every phase is there.
    pub jobs: BTreeMap<Phase, u64>,
    /// Messages that wait at the broker; none when it did not say in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<u64>,
}

impl PoolView {
    fn of(name: &str, state: Option<&PoolState>, hosts: &[(String, HostState)], counters: &Counters) -> Self {
        let rule = state.and_then(PoolState::rule);
        let takes = |host: &HostState| host.status().0 == HostStatus::Up && host.pools().iter().any(|p| p == name);
        Self {
            name: name.to_owned(),
            paused: rule.is_some_and(|(_, rule)| rule.paused),
            max_per_host: rule.and_then(|(_, rule)| rule.max_per_host),
            since: rule.map(|(at, _)| *at),
            by: rule.map(|(_, rule)| rule.by.clone()),
            reason: rule.map(|(_, rule)| rule.reason.clone()).unwrap_or_default(),
            hosts: hosts.iter().filter(|(_, host)| takes(host)).map(|(name, _)| name.clone()).collect(),
            jobs: Phase::ALL.into_iter().map(|phase| (phase, counters.in_pool(name, phase))).collect(),
            waiting: None,
        }
    }
}

/// Every pool that a rule, a host or a job names, by name.
pub(super) fn views(
    rules: &BTreeMap<String, PoolState>,
    hosts: &[(String, HostState)],
    counters: &Counters,
    limit: usize,
) -> Vec<PoolView> {
    let of_hosts = hosts.iter().flat_map(|(_, host)| host.pools().iter().cloned());
    let mut names: BTreeSet<_> = rules.keys().cloned().chain(of_hosts).collect();
    names.extend(counters.pools());
    names.iter().take(limit).map(|name| PoolView::of(name, rules.get(name), hosts, counters)).collect()
}

/// A word about a pool that a host may not have heard: it began after it was said.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unheard {
    /// Which host.
    pub host: HostName,
    /// When it began.
    pub started: Time,
    /// Which pool.
    pub pool: PoolName,
    /// When it was said.
    pub said: Time,
    /// What was said.
    pub rule: PoolConfigured,
}

/// What hosts that take jobs may not have heard, because the history tells of their beginning after it. (A
/// host has its queue for such words before it says that it began. The times of both are of two machines.)
pub(super) fn unheard(rules: &BTreeMap<String, PoolState>, hosts: &[(String, HostState)]) -> Vec<Unheard> {
    let mut all = Vec::new();
    for (name, host) in hosts {
        let (Some(started), Ok(name)) = (host.started_at(), name.parse::<HostName>()) else { continue };
        if host.status().0 == HostStatus::Stopped {
            continue;
        }
        for pool in host.pools() {
            let Some(state) = rules.get(pool) else { continue };
            let Some((said, rule)) = state.rule() else { continue };
            let Ok(pool) = pool.parse::<PoolName>() else { continue };
            if host.started_seq() > state.seq {
                all.push(Unheard { host: name.clone(), started, pool, said: *said, rule: rule.clone() });
            }
        }
    }
    all
}
