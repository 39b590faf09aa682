//! More than one VM for a job: which of them are to go.
//!
//! A worker cannot see this, because it only knows its own tries. The control plane sees every
//! host's events, and tells the hosts named here with `attempt.superseded`.

use super::{Attempt, JobState};
use crate::id::{Epoch, HostName, VmId};
use crate::seeded::{self, Bug};

/// A VM that is to go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duplicate {
    /// Of which try.
    pub epoch: Epoch,
    /// Where it is.
    pub host: HostName,
    /// Which.
    pub vm: VmId,
    /// The VM that stays; none when the job has ended or waits for a newer one.
    pub kept: Option<VmId>,
}

/// The VMs of a job that are to go, and were not told to yet. While the job is open, nothing is
/// superfluous before one is up: until then any of them may be the one that makes it. The one
/// ready earliest stays, because somebody may be using it. Attempts older than one asked for by
/// hand never stay (its host might be waiting for them to go), nor does anything of a job that has
/// ended.
pub fn duplicates(state: &JobState) -> Vec<Duplicate> {
    let kept = survivor(state);
    let is_closed = state.phase().is_closed();
    let (asked, cancelled) = (state.asked_attempt(), state.cancelled.keys().next_back().copied().unwrap_or(0));
    let goes = |epoch: Epoch, a: &Attempt| {
        let has_ended = is_closed && (a.is_up() || epoch.attempt <= cancelled);
        epoch.attempt < asked || has_ended || kept.is_some()
    };
    let untold = state.tries().filter(|(_, a)| a.has_vm() && a.superseded.is_none());
    let superfluous = untold.filter(|(epoch, a)| goes(*epoch, a)).filter_map(|(epoch, a)| named(epoch, a, kept));
    superfluous.filter(|d| (d.kept != Some(d.vm)) != seeded::is_on(Bug::SupersedeWrongVm)).collect()
}

fn named(epoch: Epoch, attempt: &Attempt, kept: Option<VmId>) -> Option<Duplicate> {
    let started = &attempt.started.as_ref()?.value;
    Some(Duplicate { epoch, host: started.host.clone(), vm: started.vm, kept })
}

/// The VM that stays.
fn survivor(state: &JobState) -> Option<VmId> {
    if state.phase().is_closed() {
        return None;
    }
    let asked = state.asked_attempt();
    let up = state.tries().filter(|(epoch, a)| epoch.attempt >= asked && a.is_up() && a.superseded.is_none());
    let named = up.filter_map(|(epoch, a)| {
        let started = &a.started.as_ref()?.value;
        Some((a.ready.as_ref()?.at, epoch, started.host.clone(), started.vm))
    });
    named.min().map(|(_, _, _, vm)| vm)
}
