//! The warm VMs of one host: which there are, which are wanted, which goes when there is no room.
//! Counting only; who starts and ends them is the [supervisor](super).

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use stoker_schemas::diagnosis::Diagnosis;
use stoker_schemas::event::WarmGoneWhy;
use stoker_schemas::retry::{Jitter, delay};
use stoker_schemas::spec::RetryPolicy;
use stoker_schemas::{JobSpec, Time, VmId};

use crate::attempt::Running;
use crate::boots::Booting;
use crate::images::Image;
use crate::supervisor::Capacity;

/// After one that did not come up, the next waits; an image that never comes up costs a boot a minute.
const FIRST_REST_MS: u64 = 1_000;
const LONGEST_REST_MS: u64 = 60_000;
const REST_JITTER_PERCENT: u8 = 20;

/// Parts of what is wanted are compared as integers of this scale.
const PART_SCALE: usize = 1 << 20;

/// VMs of one kind to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warm {
    /// What each boots, and how it is proven.
    pub spec: JobSpec,
    /// How many.
    pub count: u32,
}

/// How far one is.
#[derive(Debug)]
pub(super) enum Stage {
    Booting,
    Ready,
    /// It was ordered to go.
    Going(WarmGoneWhy, Option<Box<Diagnosis>>),
}

/// One of them.
#[derive(Debug)]
pub(super) struct WarmVm {
    pub(super) vm: VmId,
    pub(super) kind: usize,
    pub(super) spec: JobSpec,
    pub(super) need: Capacity,
    pub(super) address: Option<Ipv4Addr>,
    /// As it was when it booted; `None`: it was not there, which the boot then says.
    pub(super) image: Option<Arc<Image>>,
    pub(super) started_at: Time,
    pub(super) stage: Stage,
    /// Its place among those that boot, until it is up or gone.
    pub(super) boot: Option<Booting>,
    /// Once its first fact is on disk.
    pub(super) running: Option<Running>,
}

#[derive(Debug)]
struct Kind {
    wanted: Warm,
    failures: u32,
    rests_until: Time,
}

/// All of them, in the order in which they were started.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct Stock {
    kinds: Vec<Kind>,
    vms: Vec<WarmVm>,
}

impl Stock {
    pub(in crate::supervisor) fn new(wanted: Vec<Warm>) -> Self {
        let kind = |wanted| Kind { wanted, failures: 0, rests_until: Time::from_unix_micros(0) };
        Self { kinds: wanted.into_iter().map(kind).collect(), vms: Vec::new() }
    }

    /// Nothing is wanted and nothing is there: the common host.
    pub(in crate::supervisor) fn is_unused(&self) -> bool {
        self.kinds.is_empty() && self.vms.is_empty()
    }

    pub(in crate::supervisor) fn is_empty(&self) -> bool {
        self.vms.is_empty()
    }

    pub(in crate::supervisor) fn len(&self) -> u32 {
        u32::try_from(self.vms.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn booting(&self) -> u32 {
        let booting = self.vms.iter().filter(|vm| matches!(vm.stage, Stage::Booting)).count();
        u32::try_from(booting).unwrap_or(u32::MAX)
    }

    pub(super) fn kinds(&self) -> usize {
        self.kinds.len()
    }

    pub(super) fn wanted(&self, kind: usize) -> Option<&Warm> {
        self.kinds.get(kind).map(|kind| &kind.wanted)
    }

    /// The kinds that lack some and do not rest, the one first that has the smallest part of what it wants: a
    /// large kind does not keep a small one waiting. Of equals the first in the settings.
    pub(super) fn lacking(&self, now: Time) -> Vec<usize> {
        let part = |(index, kind): (usize, &Kind)| {
            let there = self.vms.iter().filter(|vm| vm.kind == index && !matches!(vm.stage, Stage::Going(..))).count();
            let wanted = kind.wanted.count as usize;
            (there < wanted && kind.rests_until <= now).then(|| (there * PART_SCALE / wanted, index))
        };
        let mut lacking: Vec<_> = self.kinds.iter().enumerate().filter_map(part).collect();
        lacking.sort_unstable();
        lacking.into_iter().map(|(_, index)| index).collect()
    }

    pub(super) fn add(&mut self, vm: WarmVm) {
        self.vms.push(vm);
    }

    pub(super) fn get_mut(&mut self, vm: VmId) -> Option<&mut WarmVm> {
        self.vms.iter_mut().find(|known| known.vm == vm)
    }

    pub(super) fn ids(&self) -> Vec<VmId> {
        self.vms.iter().map(|vm| vm.vm).collect()
    }

    /// Those waiting whose image is not what it was when they booted.
    pub(super) fn outdated(&self, kind: usize, now: Option<&Image>) -> Vec<VmId> {
        let waits = |vm: &&WarmVm| vm.kind == kind && matches!(vm.stage, Stage::Ready);
        let manifest = now.map(|image| &image.manifest);
        let changed = |vm: &&WarmVm| vm.image.as_ref().map(|image| &image.manifest) != manifest;
        self.vms.iter().filter(waits).filter(changed).map(|vm| vm.vm).collect()
    }

    pub(super) fn remove(&mut self, vm: VmId) -> Option<WarmVm> {
        let at = self.vms.iter().position(|known| known.vm == vm)?;
        Some(self.vms.remove(at))
    }

    /// The one that has been there longest, of those that the job can have now.
    pub(super) fn ready_for<'a>(&'a self, job: &'a JobSpec) -> Option<&'a WarmVm> {
        self.fitting(job).find(|vm| matches!(vm.stage, Stage::Ready))
    }

    /// One that the job could have is on its way.
    pub(super) fn comes_for(&self, job: &JobSpec) -> bool {
        self.fitting(job).any(|vm| matches!(vm.stage, Stage::Booting))
    }

    fn fitting<'a>(&'a self, job: &'a JobSpec) -> impl Iterator<Item = &'a WarmVm> {
        self.vms.iter().filter(|vm| job.fits_warm(&vm.spec))
    }

    /// The youngest that boots.
    pub(super) fn youngest_booting(&self) -> Option<VmId> {
        self.vms.iter().rev().find(|vm| matches!(vm.stage, Stage::Booting)).map(|vm| vm.vm)
    }

    /// One that had not come up is going, and its place with it.
    pub(super) fn gives_place_up(&self) -> bool {
        self.vms.iter().any(|vm| vm.boot.is_some() && matches!(vm.stage, Stage::Going(..)))
    }

    /// Which must go so that `need` fits besides what is `free`, the youngest first; none are named when
    /// those that go already are enough. `None`: not even all of them are.
    pub(super) fn victims(&self, need: Capacity, free: Capacity, address: bool) -> Option<Vec<VmId>> {
        let mut room = free;
        let mut addresses = usize::from(!address);
        let mut make = |vm: &WarmVm| {
            room.slots += vm.need.slots;
            room.vcpus += vm.need.vcpus;
            room.memory_mib += vm.need.memory_mib;
            addresses += 1;
            need.fits(room) && addresses > 0
        };
        let (going, staying): (Vec<_>, Vec<_>) = self.vms.iter().partition(|vm| matches!(vm.stage, Stage::Going(..)));
        if going.into_iter().any(&mut make) {
            return Some(Vec::new());
        }
        let mut victims = Vec::new();
        for vm in staying.into_iter().rev() {
            victims.push(vm.vm);
            if make(vm) {
                return Some(victims);
            }
        }
        None
    }

    /// One of this kind came up.
    pub(super) fn note_success(&mut self, kind: usize) {
        if let Some(kind) = self.kinds.get_mut(kind) {
            kind.failures = 0;
        }
    }

    /// One of this kind did not; how long the kind rests. Several that fail together failed once.
    pub(super) fn note_failure(&mut self, kind: usize, now: Time, jitter: Jitter) -> Duration {
        let Some(kind) = self.kinds.get_mut(kind) else { return Duration::ZERO };
        if kind.rests_until > now {
            return kind.rests_until.since(now);
        }
        kind.failures = kind.failures.saturating_add(1);
        let policy = RetryPolicy {
            max_attempts: u32::MAX,
            base_ms: FIRST_REST_MS,
            cap_ms: LONGEST_REST_MS,
            jitter_percent: REST_JITTER_PERCENT,
            per_cause: Default::default(),
        };
        let rest = delay(&policy, kind.failures, jitter);
        kind.rests_until = now.plus(rest);
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> JobSpec {
        serde_json::from_str(text).unwrap()
    }

    fn stock(wanted: &[(&str, u32)]) -> Stock {
        Stock::new(wanted.iter().map(|(image, count)| Warm { spec: spec(image), count: *count }).collect())
    }

    fn add(stock: &mut Stock, kind: usize, number: u128, stage: Stage) -> VmId {
        let vm = VmId(uuid::Uuid::from_u128(number));
        let spec = stock.wanted(kind).unwrap().spec.clone();
        let need = Capacity::of(&spec);
        let started_at = Time::from_unix_micros(0);
        let (address, image, boot, running) = (None, None, None, None);
        stock.add(WarmVm { vm, kind, spec, need, address, image, started_at, stage, boot, running });
        vm
    }

    const SMALL: &str = r#"{"image":"small"}"#;
    const LARGE: &str = r#"{"image":"large","vcpus":4,"memory_mib":2048}"#;

    #[test]
    fn a_kind_of_which_less_is_there_is_made_first_and_what_failed_rests() {
        let mut stock = stock(&[(LARGE, 50), (SMALL, 1)]);
        let now = Time::from_unix_micros(1_000_000);
        assert_eq!(stock.lacking(now), [0, 1], "of equals the first");
        let large = add(&mut stock, 0, 1, Stage::Booting);
        assert_eq!(stock.lacking(now), [1, 0], "a large kind does not keep a small one waiting");
        stock.get_mut(large).unwrap().stage = Stage::Going(WarmGoneWhy::Outdated, None);
        assert_eq!(stock.lacking(now), [0, 1], "one that goes is none");
        let rest = stock.note_failure(0, now, Jitter::from_random(0));
        assert_eq!(stock.lacking(now), [1]);
        add(&mut stock, 1, 3, Stage::Ready);
        assert_eq!(stock.lacking(now), Vec::<usize>::new());
        assert_eq!(stock.lacking(now.plus(rest)), [0]);
        assert_eq!(stock.note_failure(0, now, Jitter::from_random(0)), rest, "those that fail together fail once");
        let later = now.plus(rest);
        let longer = stock.note_failure(0, later, Jitter::from_random(0));
        assert!(longer > rest, "{longer:?} after {rest:?}");
        stock.note_success(0);
        assert_eq!(stock.note_failure(0, later.plus(longer), Jitter::from_random(0)), rest);
    }

    #[test]
    fn a_job_gets_the_oldest_that_is_ready() {
        let mut stock = stock(&[(SMALL, 3), (LARGE, 1)]);
        add(&mut stock, 0, 1, Stage::Booting);
        let oldest = add(&mut stock, 0, 2, Stage::Ready);
        add(&mut stock, 0, 3, Stage::Ready);
        assert_eq!(stock.ready_for(&spec(SMALL)).map(|vm| vm.vm), Some(oldest));
        assert!(stock.ready_for(&spec(LARGE)).is_none());
        assert!(!stock.comes_for(&spec(LARGE)));
        add(&mut stock, 1, 4, Stage::Booting);
        assert!(stock.comes_for(&spec(LARGE)));
        let own = spec(r#"{"image":"small","kernel_args":"quiet"}"#);
        assert!(stock.ready_for(&own).is_none(), "what it asks of its boot, no other one has");
    }

    #[test]
    fn no_more_go_than_must() {
        let mut stock = stock(&[(SMALL, 3)]);
        let [_, second, third] = [1, 2, 3].map(|number| add(&mut stock, 0, number, Stage::Ready));
        let room = |slots, vcpus, memory_mib| Capacity { slots, vcpus, memory_mib };
        let need = room(1, 2, 512);
        assert_eq!(stock.victims(need, room(1, 1, 512), false), Some(vec![third]));
        assert_eq!(stock.victims(need, room(1, 0, 512), false), Some(vec![third, second]));
        assert_eq!(stock.victims(room(1, 9, 512), room(1, 0, 512), false), None, "not for nothing");
        assert_eq!(stock.victims(need, room(9, 9, 9_999), true), Some(vec![third]), "for its address");
        stock.get_mut(third).unwrap().stage = Stage::Going(WarmGoneWhy::Evicted, None);
        assert_eq!(stock.victims(need, room(1, 1, 512), false), Some(Vec::new()));
        assert_eq!(stock.victims(need, room(1, 0, 512), false), Some(vec![second]));
    }
}
