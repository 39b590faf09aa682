//! A job in one row: what lists show and filters ask for, and the counters it adds to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stoker_schemas::diagnosis::Cause;
use stoker_schemas::spec::Priority;
use stoker_schemas::state::AwaitedFrom;
use stoker_schemas::{JobId, JobState, Phase, Time};

use super::keys::Facet;
use crate::view::ms_between;

/// Beginning of the names of counters of jobs that wait for a host.
const WAITING: &str = "waiting:";

/// One job in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct JobSummary {
    /// Which.
    pub id: JobId,
    /// Where it stands.
    pub phase: Phase,
    /// Somebody asked to cancel it, and that is not settled yet.
    pub cancelling: bool,
    /// When it was enqueued (or first heard of).
    pub created: Time,
    /// When it last changed.
    pub changed: Time,
    /// Who enqueued it.
    pub by: String,
    /// What it boots.
    pub image: String,
    /// Where it may run.
    pub pool: String,
    /// Its lane.
    pub priority: Priority,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Attempts started or scheduled.
    pub attempts: u32,
    /// Where it runs, or last ran.
    pub host: Option<String>,
    /// Where its agent answered.
    pub agent: Option<String>,
    /// From taken to ready, ms.
    pub boot_ms: Option<u64>,
    /// Cause of the last failure; none once a later attempt is ready.
    pub cause: Option<Cause>,
    /// That failure in a sentence.
    pub problem: Option<String>,
    /// When the next attempt is due.
    pub not_before: Option<Time>,
    /// A host that had it put it back with a reason, and none has taken it since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deferred: bool,
    /// Who wanted it to wait so long; none for the retry policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snoozed_by: Option<String>,
    /// Events kept of it.
    pub events: u32,
}

impl JobSummary {
    /// The row of a job; `times` are those of its first and last event.
    pub fn of(state: &JobState, times: (Time, Time), events: u32) -> Self {
        let phase = state.phase();
        let spec = state.spec();
        // Of several VMs, the one that is up.
        let up = state.tries().filter(|(_, a)| a.is_up() && a.superseded.is_none()).max_by_key(|(epoch, _)| *epoch);
        let last = up.map(|(_, a)| a).or_else(|| state.attempts.values().next_back());
        let started = last.and_then(|a| a.started.as_ref());
        let ready = last.and_then(|a| a.ready.as_ref());
        let failed = match phase {
            Phase::Ready | Phase::Stopped => None,
            _ => state.attempts.values().rev().find_map(|a| a.failed.as_ref()),
        };
        let dead = state.dead.values().next_back().and_then(|d| d.value.diagnosis.as_ref());
        let diagnosis = failed.map(|f| &f.value.diagnosis).or(dead.filter(|_| phase == Phase::Dead));
        // A failure before says less than why no attempt follows.
        let given_up = state.dead.values().next_back().filter(|d| phase == Phase::Dead && !d.value.detail.is_empty());
        let due = state.due(state.last_attempt()).filter(|_| phase == Phase::Retrying);
        Self {
            id: state.id,
            phase,
            cancelling: state.pending_cancel().is_some(),
            created: state.enqueued_at().unwrap_or(times.0),
            changed: times.1,
            by: state.enqueued.as_ref().map(|e| e.value.by.clone()).unwrap_or_default(),
            image: spec.map(|s| s.image.to_string()).unwrap_or_default(),
            pool: spec.map(|s| s.pool.to_string()).unwrap_or_default(),
            priority: spec.map(|s| s.priority).unwrap_or_default(),
            labels: spec.map(|s| s.labels.clone()).unwrap_or_default(),
            attempts: state.last_attempt(),
            host: started.map(|s| s.value.host.to_string()),
            agent: ready.map(|r| r.value.agent.to_string()),
            boot_ms: started.zip(ready).map(|(s, r)| ms_between(s.at, r.at)),
            cause: diagnosis.map(|d| d.cause),
            problem: diagnosis.map(|d| d.summary.clone()).or(given_up.map(|d| d.value.detail.clone())),
            not_before: due,
            deferred: state.awaited().is_some_and(|awaited| awaited.from == AwaitedFrom::Deferral),
            snoozed_by: state.snooze(state.last_attempt()).filter(|_| due.is_some()).map(|s| s.value.by.clone()),
            events,
        }
    }

    /// What it can be found by.
    pub fn facets(&self) -> Vec<Facet<'_>> {
        let mut facets = vec![Facet::Pool(&self.pool), Facet::Image(&self.image)];
        facets.extend(self.image.split_once('@').map(|(name, _)| Facet::Image(name)));
        facets.extend(self.cause.map(Facet::Cause));
        facets.extend(self.host.as_deref().map(Facet::Host));
        for (key, value) in &self.labels {
            facets.extend([Facet::Label(key), Facet::LabelValue(key, value)]);
        }
        facets
    }

    /// Names of the counters that it adds one to.
    fn counters(&self) -> Vec<String> {
        let mut names = vec![format!("phase:{}", self.phase)];
        if let Some(cause) = self.cause {
            names.push(format!("cause:{cause}:{}", self.phase));
        }
        if let (Some(host), Phase::Booting | Phase::Ready | Phase::Retrying) = (&self.host, self.phase) {
            names.push(format!("host:{host}:{}", self.phase));
        }
        // Without a spec nobody knows the pool yet.
        if !self.pool.is_empty() {
            names.push(format!("pool:{}:{}", self.pool, self.phase));
            if self.phase == Phase::Queued && !self.deferred && !self.cancelling {
                names.push(format!("{WAITING}{}", self.pool));
            }
        }
        names
    }
}

/// Numbers kept up to date with every change, so that no page counts rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// Moves a job from one row to the next.
    pub fn moved(&mut self, from: Option<&JobSummary>, to: &JobSummary) {
        for name in from.map(JobSummary::counters).unwrap_or_default() {
            if let Some(n) = self.0.get_mut(&name) {
                *n -= 1;
                if *n == 0 {
                    self.0.remove(&name);
                }
            }
        }
        for name in to.counters() {
            *self.0.entry(name).or_default() += 1;
        }
    }

    /// Jobs in a phase.
    pub fn phase(&self, phase: Phase) -> u64 {
        self.get(&format!("phase:{phase}"))
    }

    /// VMs of a host in a phase.
    pub fn on_host(&self, host: &str, phase: Phase) -> u64 {
        self.get(&format!("host:{host}:{phase}"))
    }

    /// Jobs of a pool in a phase.
    pub fn in_pool(&self, pool: &str, phase: Phase) -> u64 {
        self.get(&format!("pool:{pool}:{phase}"))
    }

    /// Jobs by pool that wait for a host and were not put back by one.
    pub fn waiting(&self) -> BTreeMap<String, u64> {
        let named = self.0.range(WAITING.to_owned()..).map_while(|(name, n)| Some((name.strip_prefix(WAITING)?, *n)));
        named.map(|(pool, n)| (pool.to_owned(), n)).collect()
    }

    /// Pools that have jobs.
    pub fn pools(&self) -> impl Iterator<Item = String> + '_ {
        let named = self.0.range("pool:".to_owned()..).map_while(|(name, _)| name.strip_prefix("pool:"));
        named.filter_map(|name| Some(name.rsplit_once(':')?.0.to_owned()))
    }

    /// Jobs in a phase by the host that has, or last had, them.
    pub fn hosts(&self, phase: Phase) -> Vec<(String, u64)> {
        let (first, last) = ("host:".to_owned(), format!(":{phase}"));
        let of_hosts = self.0.range(first.clone()..).map_while(|(name, n)| Some((name.strip_prefix(&first)?, *n)));
        of_hosts.filter_map(|(name, n)| Some((name.strip_suffix(&last)?.to_owned(), n))).collect()
    }

    /// Jobs by the cause of their last failure, in the phases asked for.
    pub fn causes(&self, phases: &[Phase]) -> BTreeMap<Cause, u64> {
        let count = |cause: &Cause| phases.iter().map(|p| self.get(&format!("cause:{cause}:{p}"))).sum::<u64>();
        Cause::ALL.iter().map(|c| (*c, count(c))).filter(|(_, n)| *n > 0).collect()
    }

    fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }
}
