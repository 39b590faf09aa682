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
    /// Number of that event, too.
    #[serde(default)]
    drain_requested_seq: u64,
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

pub(super) fn latest<T: Ord + Clone>(slot: &mut Latest<T>, at: Time, value: &T) -> bool {
    let told = (at, value.clone());
    let is_news = slot.as_ref().is_none_or(|known| told > *known);
    if is_news {
        *slot = Some(told);
    }
    is_news
}

impl HostState {
    /// Adds one event; `seq` is its number in the order of arrival here.
    pub fn apply(&mut self, event: &Event, seq: u64) {
        match &event.data {
            EventData::HostStarted(e) => {
                if latest(&mut self.started, event.time, e) {
                    self.started_seq = seq;
                }
            }
            EventData::HostDrainRequested(e) => {
                if latest(&mut self.drain_requested, event.time, e) {
                    self.drain_requested_seq = seq;
                }
            }
            EventData::HostHypervisorChanged(e) => drop(latest(&mut self.hypervisor_changed, event.time, e)),
            EventData::HostDraining(e) => drop(latest(&mut self.draining, event.time, e)),
            EventData::HostStopped(e) => drop(latest(&mut self.stopped, event.time, e)),
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

    /// Whether it takes jobs, and since when. Its own events are compared by its own clock; a request to drain, by the
    /// order of arrival: it is another machine's.
    pub fn status(&self) -> (HostStatus, Option<Time>) {
        let started = self.started_at();
        let since_then = |told: Option<Time>| told.filter(|at| started.is_none_or(|started| *at >= started));
        let requested = self.drain_requested.as_ref().filter(|_| self.drain_requested_seq > self.started_seq);
        // The later one in a host's life counts.
        let stages = [
            (since_then(self.stopped.as_ref().map(|t| t.0)), HostStatus::Stopped),
            (since_then(self.draining.as_ref().map(|t| t.0)), HostStatus::Draining),
            (requested.map(|t| t.0), HostStatus::DrainRequested),
            (started, HostStatus::Up),
        ];
        let last = stages.into_iter().find_map(|(at, status)| Some((status, Some(at?))));
        last.unwrap_or((HostStatus::Stopped, None))
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
