//! The VMs that a host keeps up for jobs to come, as the sum of what it told of them in any order.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stoker_schemas::event::{WarmGone, WarmGoneWhy, WarmStarted};
use stoker_schemas::{Event, EventData, ImageName, JobId, Time, VmId};

use super::hosts::latest;

/// Ended ones remembered of each kind: the last failure and the last hand-over are among them, and what
/// is told late of one does not bring it back.
const ENDED_KEPT: usize = 8;
/// VMs remembered in all.
const MAX_KEPT: usize = 1_024;

type Kind = (ImageName, u32, u32);

/// All that is known of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WarmVms(BTreeMap<VmId, Vm>);

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Vm {
    started: Option<(Time, WarmStarted)>,
    ready: Option<(Time, ())>,
    taken: Option<(Time, JobId)>,
    gone: Option<(Time, WarmGone)>,
}

impl Vm {
    fn ended(&self) -> Option<Time> {
        let taken = self.taken.as_ref().map(|(at, _)| *at);
        taken.or(self.gone.as_ref().map(|(at, _)| *at))
    }

    fn kind(&self) -> Option<Kind> {
        self.started.as_ref().map(|(_, e)| (e.image.clone(), e.vcpus, e.memory_mib))
    }
}

/// Warm VMs of one kind on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct WarmView {
    /// What they boot.
    pub image: ImageName,
    /// Virtual CPUs of each.
    pub vcpus: u32,
    /// Memory of each, MiB.
    pub memory_mib: u32,
    /// How many the host keeps.
    pub wanted: u32,
    /// How many wait for a job.
    pub ready: u32,
    /// How many are on their way.
    pub booting: u32,
    /// When a job last took one.
    pub last_taken: Option<Time>,
    /// When one was last of no use, unless another has come up since.
    pub failed_at: Option<Time>,
    /// Why, in a sentence.
    pub failure: Option<String>,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl WarmVms {
    pub(super) fn apply(&mut self, event: &Event) {
        let Some(id) = event.data.warm_vm() else { return };
        let vm = self.0.entry(id).or_default();
        match &event.data {
            EventData::WarmStarted(e) => drop(latest(&mut vm.started, event.time, e)),
            EventData::WarmReady(_) => drop(latest(&mut vm.ready, event.time, &())),
            EventData::WarmTaken(e) => drop(latest(&mut vm.taken, event.time, &e.job)),
            EventData::WarmGone(e) => drop(latest(&mut vm.gone, event.time, e)),
            _ => {}
        }
        if vm.ended().is_some() {
            let kind = vm.kind();
            self.forget(kind.as_ref());
        }
        while self.0.len() > MAX_KEPT {
            // Ids of VMs say nothing of their age, their first facts do.
            let oldest = self.0.iter().min_by_key(|(_, vm)| vm.started.as_ref().map(|(at, _)| *at));
            let Some(oldest) = oldest.map(|(id, _)| *id) else { return };
            self.0.remove(&oldest);
        }
    }

    /// Ended ones of this kind beyond those that are kept.
    fn forget(&mut self, kind: Option<&Kind>) {
        let of_kind = self.0.iter().filter(|(_, vm)| vm.kind().as_ref() == kind);
        let mut ended: Vec<(Time, VmId)> = of_kind.filter_map(|(id, vm)| Some((vm.ended()?, *id))).collect();
        ended.sort_unstable();
        let beyond = ended.len().saturating_sub(ENDED_KEPT);
        for (_, id) in ended.into_iter().take(beyond) {
            self.0.remove(&id);
        }
    }

    /// By kind, of the host's life that began then; `None`: of all that is known.
    pub(super) fn views(&self, since: Option<Time>) -> Vec<WarmView> {
        let mut kinds: BTreeMap<Kind, (Time, WarmView)> = BTreeMap::new();
        for vm in self.0.values() {
            let (Some((at, started)), Some(kind)) = (&vm.started, vm.kind()) else { continue };
            if since.is_some_and(|since| *at < since) {
                continue;
            }
            let (told, view) = kinds.entry(kind).or_insert_with(|| (*at, empty(started)));
            if *at >= *told {
                (*told, view.wanted) = (*at, started.wanted);
            }
            view.count(vm);
        }
        let recovered = |view: &WarmView, came_up: Option<Time>| view.failed_at < came_up;
        kinds
            .into_iter()
            .map(|(kind, (_, mut view))| {
                if recovered(&view, self.last_ready(&kind)) {
                    (view.failed_at, view.failure, view.remedy) = (None, None, None);
                }
                view
            })
            .collect()
    }

    fn last_ready(&self, kind: &Kind) -> Option<Time> {
        let of_kind = self.0.values().filter(|vm| vm.kind().as_ref() == Some(kind));
        of_kind.filter_map(|vm| vm.ready.as_ref().map(|(at, ())| *at)).max()
    }
}

fn empty(started: &WarmStarted) -> WarmView {
    WarmView {
        image: started.image.clone(),
        vcpus: started.vcpus,
        memory_mib: started.memory_mib,
        wanted: started.wanted,
        ready: 0,
        booting: 0,
        last_taken: None,
        failed_at: None,
        failure: None,
        remedy: None,
    }
}

impl WarmView {
    fn count(&mut self, vm: &Vm) {
        match (&vm.taken, &vm.gone) {
            (Some((at, _)), _) => self.last_taken = self.last_taken.max(Some(*at)),
            (None, Some((at, gone))) if gone.why == WarmGoneWhy::Failed && self.failed_at < Some(*at) => {
                self.failed_at = Some(*at);
                let found = gone.diagnosis.as_ref();
                self.failure = Some(found.map_or_else(|| gone.why.as_str().to_owned(), |d| d.summary.clone()));
                self.remedy = found.map(|d| d.remedy.clone());
            }
            (None, Some(_)) => {}
            (None, None) if vm.ready.is_some() => self.ready += 1,
            (None, None) => self.booting += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use stoker_schemas::event::{JOB_LEVEL, WarmReady, WarmTaken};

    use super::*;

    fn at(seconds: i64) -> Time {
        Time::from_unix_micros(seconds * 1_000_000)
    }

    fn event(seconds: i64, data: EventData) -> Event {
        let (source, subject) = ("/hosts/h-1".to_owned(), "h-1".to_owned());
        Event { source, subject, time: at(seconds), epoch: JOB_LEVEL, traceparent: None, data }
    }

    fn vm(number: u64) -> VmId {
        VmId::warm(&"h-1".parse().unwrap(), at(0), number)
    }

    fn started(seconds: i64, number: u64) -> Event {
        let (image, address) = ("golden".parse().unwrap(), None);
        let data = WarmStarted { vm: vm(number), image, vcpus: 1, memory_mib: 256, address, wanted: 2 };
        event(seconds, EventData::WarmStarted(data))
    }

    fn ready(seconds: i64, number: u64) -> Event {
        event(seconds, EventData::WarmReady(WarmReady { vm: vm(number), agent: "10.0.0.2:8080".parse().unwrap() }))
    }

    fn taken(seconds: i64, number: u64) -> Event {
        event(seconds, EventData::WarmTaken(WarmTaken { vm: vm(number), job: JobId(uuid::Uuid::nil()) }))
    }

    fn failed(seconds: i64, number: u64) -> Event {
        let (why, diagnosis, detail) = (WarmGoneWhy::Failed, None, String::new());
        event(seconds, EventData::WarmGone(WarmGone { vm: vm(number), why, diagnosis, detail }))
    }

    fn of(events: &[Event]) -> WarmVms {
        let mut warm = WarmVms::default();
        events.iter().for_each(|event| warm.apply(event));
        warm
    }

    #[test]
    fn the_same_events_in_any_order_are_the_same_row() {
        let mut events =
            vec![started(1, 1), ready(2, 1), started(3, 2), taken(4, 1), failed(5, 2), started(6, 3), ready(7, 3)];
        let views = of(&events).views(None);
        assert_eq!(views.len(), 1);
        let view = &views[0];
        assert_eq!((view.ready, view.booting, view.wanted, view.last_taken), (1, 0, 2, Some(at(4))));
        assert_eq!(view.failed_at, None, "another has come up since");
        events.reverse();
        assert_eq!(of(&events).views(None), views);
    }

    #[test]
    fn a_failure_is_told_until_one_comes_up() {
        let events = [started(1, 1), ready(2, 1), started(3, 2), failed(5, 2)];
        let views = of(&events).views(None);
        assert_eq!((views[0].failed_at, views[0].failure.as_deref()), (Some(at(5)), Some("it was of no use")));
        assert_eq!(of(&events).views(Some(at(6))), [], "of a life before this one");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut warm = WarmVms::default();
        for number in 0..200 {
            let seconds = i64::try_from(number).unwrap();
            for event in [started(seconds, number), ready(seconds, number), taken(seconds, number)] {
                warm.apply(&event);
            }
        }
        assert_eq!(warm.0.len(), ENDED_KEPT);
        for number in 200..3_000 {
            warm.apply(&started(300 + i64::try_from(number).unwrap(), number));
        }
        assert_eq!(warm.0.len(), MAX_KEPT);
    }
}
