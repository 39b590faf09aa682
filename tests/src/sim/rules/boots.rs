//! How many VMs boot at once on each host, as its log tells it.

use std::collections::BTreeMap;

use stoker_schemas::event::JOB_LEVEL;
use stoker_schemas::{Epoch, Event, EventData, Time, VmId};

/// What boots: an attempt of a job, or a warm VM.
type Boot = (String, Epoch, Option<VmId>);

/// Boots of all hosts: when each began, and when it had ended.
#[derive(Default)]
pub struct Boots(BTreeMap<String, BTreeMap<Boot, (Time, Option<Time>)>>);

impl Boots {
    /// A host has written this.
    pub fn see(&mut self, event: &Event, host: &str) {
        let boots = self.0.entry(host.to_owned()).or_default();
        let boot = match event.data.warm_vm() {
            Some(vm) => (String::new(), JOB_LEVEL, Some(vm)),
            None => (event.subject.clone(), event.epoch, None),
        };
        match &event.data {
            EventData::AttemptStarted(started) => {
                // One that takes over a warm VM boots nothing.
                let warm = (String::new(), JOB_LEVEL, Some(started.vm));
                if !boots.contains_key(&warm) {
                    boots.entry(boot).or_insert((event.time, None));
                }
            }
            EventData::WarmStarted(_) => drop(boots.entry(boot).or_insert((event.time, None))),
            EventData::AttemptReady(_)
            | EventData::AttemptFailed(_)
            | EventData::VmGone(_)
            | EventData::WarmReady(_)
            | EventData::WarmGone(_) => {
                if let Some((_, end @ None)) = boots.get_mut(&boot) {
                    *end = Some(event.time);
                }
            }
            _ => {}
        }
    }

    /// A worker has ended: what booted is another's from now on, if anybody's.
    pub fn worker_ended(&mut self, host: &str) {
        self.0.remove(host);
    }

    /// The most that booted at once on a host.
    pub fn most(&self, host: &str) -> usize {
        let Some(boots) = self.0.get(host) else { return 0 };
        // What fails at once takes a place for no time.
        let boots = || boots.values().filter(|(begin, end)| *end != Some(*begin));
        let begins = boots().map(|(begin, _)| (*begin, true));
        let ends = boots().filter_map(|(_, end)| *end).map(|end| (end, false));
        let mut moments: Vec<_> = begins.chain(ends).collect();
        // What ends at the moment when another begins has made room for it.
        moments.sort_unstable();
        let (mut now, mut most) = (0_usize, 0);
        for (_, begins) in moments {
            now = if begins { now + 1 } else { now.saturating_sub(1) };
            most = most.max(now);
        }
        most
    }
}
