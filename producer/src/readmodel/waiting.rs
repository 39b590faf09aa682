//! Pools in which jobs wait, with what their hosts have room for: what [`crate::work`] judges.

use std::collections::{BTreeMap, BTreeSet};

use super::hosts::{HostStatus, HostView};
use super::totals::Totals;
use super::{MAX_POOLS, PoolView, ReadModel, ReadModelError};
use crate::work::PoolNow;
use stoker_schemas::Phase;

impl ReadModel {
    /// What was counted since the rows began.
    pub fn totals(&self) -> Totals {
        self.live().meta.totals.clone()
    }

    /// Pools in which jobs wait that any host may take. `due` are those that wait for another attempt and whose
    /// time has come, by pool: which those are, the rows alone do not say.
    pub fn waiting(&self, due: &BTreeMap<String, u64>) -> Result<Vec<PoolNow>, ReadModelError> {
        let queued = self.live().meta.counters.waiting();
        let names: BTreeSet<_> = queued.keys().chain(due.keys()).cloned().collect();
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let (pools, hosts) = (self.pools()?, self.hosts()?);
        let live = self.live();
        let of = |counted: &BTreeMap<String, u64>, name: &str| counted.get(name).copied().unwrap_or(0);
        let now = |name: String| {
            let pool = pools.iter().find(|pool| pool.name == name)?;
            let serving = hosts.iter().filter(|host| takes(host, &name));
            Some(PoolNow {
                waiting: of(&queued, &name) + of(due, &name),
                is_paused: pool.paused,
                hosts: count(serving.clone()),
                with_room: with_room(pool, count(serving.filter(|host| has_room(host)))),
                answered: live.meta.totals.answered(&name),
                name,
            })
        };
        Ok(names.into_iter().take(MAX_POOLS).filter_map(now).collect())
    }
}

fn count<'a>(hosts: impl Iterator<Item = &'a HostView>) -> u64 {
    u64::try_from(hosts.count()).unwrap_or(u64::MAX)
}

fn takes(host: &HostView, pool: &str) -> bool {
    host.status == HostStatus::Up && host.pools.iter().any(|name| name == pool)
}

/// Whether it may begin another boot now. Warm VMs give way. Of a worker that does not say how many it boots at once, only
/// one that boots none is known to have room. Memory and vCPUs are not compared: a host that lacks those
/// takes jobs and puts them back with that reason, which is an answer.
fn has_room(host: &HostView) -> bool {
    let is_free = host.booting + host.ready < u64::from(host.slots);
    is_free && host.booting < host.max_booting.map_or(1, u64::from)
}

/// Hosts with room that the pool's limit leaves: where all its VMs could be on these, none of them may begin another.
fn with_room(pool: &PoolView, hosts: u64) -> u64 {
    let Some(limit) = pool.max_per_host else { return hosts };
    let on = |phase| pool.jobs.get(&phase).copied().unwrap_or(0);
    let is_below = on(Phase::Booting) + on(Phase::Ready) < hosts * u64::from(limit);
    if is_below { hosts } else { 0 }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn host(slots: u32, booting: u64, ready: u64, max_booting: Option<u32>) -> HostView {
        let view = json!({
            "name": "h-01", "status": "up", "since": null, "slots": slots, "booting": booting, "ready": ready,
            "vcpus": 1, "memory_mib": 512, "max_booting": max_booting, "labels": {}, "pools": ["a"],
            "hypervisor": "", "version": "", "warm": [],
        });
        serde_json::from_value(view).unwrap()
    }

    #[test]
    fn a_host_has_room_where_another_boot_may_begin() {
        assert!(has_room(&host(4, 1, 2, Some(2))));
        assert!(!has_room(&host(4, 2, 2, Some(8))), "no slot");
        assert!(!has_room(&host(9, 2, 2, Some(2))), "no boot more at once");
        assert!(has_room(&host(4, 0, 2, None)) && !has_room(&host(4, 1, 2, None)), "an older worker");
    }

    #[test]
    fn only_a_host_that_is_up_and_serves_the_pool_takes_its_jobs() {
        let up = host(4, 0, 0, None);
        assert!(takes(&up, "a") && !takes(&up, "b"));
        for status in [HostStatus::DrainRequested, HostStatus::Draining, HostStatus::Stopped] {
            assert!(!takes(&HostView { status, ..up.clone() }, "a"));
        }
    }

    #[test]
    fn a_limit_of_the_pool_leaves_no_room_where_its_vms_may_fill_it() {
        let pool = |limit: Option<u32>| {
            let jobs = json!({"booting": 1, "ready": 3});
            let view = json!({"name": "a", "paused": false, "max_per_host": limit, "hosts": [], "jobs": jobs});
            serde_json::from_value::<PoolView>(view).unwrap()
        };
        assert_eq!([None, Some(1), Some(2), Some(3)].map(|limit| with_room(&pool(limit), 2)), [2, 0, 0, 2]);
    }
}
