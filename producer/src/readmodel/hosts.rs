//! What is known of a host: the latest of each kind of event about it, whatever order they came in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stoker_schemas::event::{HostDraining, HostHypervisorChanged, HostStarted, HostStopped, Request};
use stoker_schemas::{Event, EventData, Time};

use super::refusals::{RefusalView, Refusals};
use super::warm::{WarmView, WarmVms};

/// The latest of one kind of event.
pub(super) type Latest<T> = Option<(Time, T)>;

/// One host, as the sum of its events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostState {
    started: Latest<HostStarted>,
    /// Number of that event, in the order of arrival here.
    #[serde(default)]
    started_seq: u64,
    #[serde(default)]
    hypervisor_changed: Latest<HostHypervisorChanged>,
    drain_requested: Latest<Request>,
    draining: Latest<HostDraining>,
    stopped: Latest<HostStopped>,
    #[serde(default)]
    warm: WarmVms,
    #[serde(default)]
    refusals: Refusals,
}

/// Whether a host takes jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostStatus {
    /// Takes jobs.
    Up,
    /// Was asked to take no more jobs and has not said yes.
    DrainRequested,
    /// Takes no more jobs.
    Draining,
    /// Its worker ended in order.
    Stopped,
}

impl HostStatus {
    /// For people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::DrainRequested => "drain requested",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }
}

/// One host in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct HostView {
    /// Its name.
    pub name: String,
    /// Whether it takes jobs.
    pub status: HostStatus,
    /// Since when.
    pub since: Option<Time>,
    /// VMs it may run at once.
    pub slots: u32,
    /// VMs booting on it.
    pub booting: u64,
    /// VMs up on it.
    pub ready: u64,
    /// vCPUs it may give out.
    pub vcpus: u32,
    /// Memory it may give out, MiB.
    pub memory_mib: u32,
    /// VMs it may boot at once, where its worker says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_booting: Option<u32>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Pools it serves.
    pub pools: Vec<String>,
    /// Its hypervisor.
    pub hypervisor: String,
    /// Version of its worker.
    pub version: String,
    /// VMs that it keeps up for jobs to come, by kind.
    pub warm: Vec<WarmView>,
    /// Queues that refuse what it publishes.
    #[serde(default)]
    pub refusals: Vec<RefusalView>,
}

pub(super) fn latest<T: Ord + Clone>(slot: &mut Latest<T>, at: Time, value: &T) {
    let told = (at, value.clone());
    if slot.as_ref().is_none_or(|known| told > *known) {
        *slot = Some(told);
    }
}

impl HostState {
    /// Adds one event; `seq` is its number in the order of arrival here.
    pub fn apply(&mut self, event: &Event, seq: u64) {
        match &event.data {
            EventData::HostStarted(e) => {
                latest(&mut self.started, event.time, e);
                self.started_seq = self.started_seq.max(seq);
            }
            EventData::HostHypervisorChanged(e) => latest(&mut self.hypervisor_changed, event.time, e),
            EventData::HostDrainRequested(e) => latest(&mut self.drain_requested, event.time, e),
            EventData::HostDraining(e) => latest(&mut self.draining, event.time, e),
            EventData::HostStopped(e) => latest(&mut self.stopped, event.time, e),
            EventData::HostPublishingRefused(_) | EventData::HostPublishingResumed(_) => self.refusals.apply(event),
            _ => self.warm.apply(event),
        }
    }

    /// When it last began, as far as is known.
    pub fn started_at(&self) -> Option<Time> {
        self.started.as_ref().map(|(at, _)| *at)
    }

    /// Number of the event that told of it.
    pub fn started_seq(&self) -> u64 {
        self.started_seq
    }

    /// Pools that it served when it last began.
    pub fn pools(&self) -> &[String] {
        self.started.as_ref().map_or(&[], |(_, started)| &started.pools)
    }

    /// Whether it takes jobs, and since when.
    pub fn status(&self) -> (HostStatus, Option<Time>) {
        let at = |told: Option<Time>, status| told.map(|at| (at, status));
        let told = [
            at(self.started.as_ref().map(|t| t.0), HostStatus::Up),
            at(self.drain_requested.as_ref().map(|t| t.0), HostStatus::DrainRequested),
            at(self.draining.as_ref().map(|t| t.0), HostStatus::Draining),
            at(self.stopped.as_ref().map(|t| t.0), HostStatus::Stopped),
        ];
        // At the same instant the later one in a host's life counts; all listed in that order.
        let last = told.into_iter().flatten().max_by_key(|(at, _)| *at);
        last.map_or((HostStatus::Stopped, None), |(at, status)| (status, Some(at)))
    }

    /// What its worker last said of its hypervisor.
    fn hypervisor(&self) -> String {
        let started = self.started.as_ref().map(|(at, e)| (*at, &e.hypervisor));
        let changed = self.hypervisor_changed.as_ref().map(|(at, e)| (*at, &e.hypervisor));
        started.into_iter().chain(changed).max_by_key(|(at, _)| *at).map_or_else(String::new, |(_, text)| text.clone())
    }

    /// The row of this host, with the VMs counted on it.
    pub fn view(&self, name: &str, booting: u64, ready: u64) -> HostView {
        let (status, since) = self.status();
        let started = self.started.as_ref().map(|(_, e)| e.clone());
        let Some(e) = started else {
            // Only a wish or a farewell is known: the history begins after its start.
            return HostView {
                name: name.to_owned(),
                status,
                since,
                booting,
                ready,
                slots: 0,
                vcpus: 0,
                memory_mib: 0,
                max_booting: None,
                labels: BTreeMap::new(),
                pools: Vec::new(),
                hypervisor: self.hypervisor(),
                version: String::new(),
                warm: self.warm.views(None),
                refusals: self.refusals.views(None),
            };
        };
        HostView {
            name: name.to_owned(),
            status,
            since,
            slots: e.slots,
            booting,
            ready,
            vcpus: e.vcpus,
            memory_mib: e.memory_mib,
            max_booting: e.max_booting,
            labels: e.labels,
            pools: e.pools,
            hypervisor: self.hypervisor(),
            version: e.version,
            warm: self.warm.views(self.started_at()),
            refusals: self.refusals.views(self.started_at()),
        }
    }
}
