//! More than one VM for a job: which of them are to go.
//!
//! A worker cannot see this, because it only knows its own tries. The control plane sees every
//! host's events, and tells the hosts named here with `attempt.superseded`.

use super::{Attempt, JobState};
use crate::event::DeadReason;
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

/// The VMs of a job that are to go, and were not told to yet.
///
/// Of several that are up, the one ready earliest stays, because somebody may be using it. Whether it
/// was is read off events that do not change, with ties broken by epoch, host and VM: so all readers
/// say the same, and clocks that differ may choose the other one, but never none. Nothing is told of a
/// VM that still boots beside one that is up: only when it is up, too, do all readers know both times.
///
/// Attempts older than one asked for by hand never stay (its host might be waiting for them to go), nor do
/// those that a stop was about which another host has carried out, nor anything of a job that has ended
/// without them.
pub fn duplicates(state: &JobState) -> Vec<Duplicate> {
    let kept = survivor(state);
    let is_closed = state.phase().is_closed();
    let (overtaken, settled) = (state.asked_attempt.max(state.stopped_below()), settled_without(state));
    let goes = |epoch: Epoch, a: &Attempt| {
        let has_ended = is_closed && (a.is_up() || epoch.attempt <= settled);
        epoch.attempt < overtaken || has_ended || (kept.is_some() && a.is_up())
    };
    let untold = state.tries().filter(|(_, a)| a.has_vm() && a.superseded.is_none());
    let superfluous = untold.filter(|(epoch, a)| goes(*epoch, a)).filter_map(|(epoch, a)| named(epoch, a, kept));
    superfluous.filter(|d| (d.kept != Some(d.vm)) != seeded::is_on(Bug::SupersedeWrongVm)).collect()
}

/// The latest attempt at which the job ended though a host may still be booting that attempt: cancelled, or
/// dead without a failure (expired, say). 0 for never. One that is dead because it failed is another thing: the
/// same attempt may yet succeed on a host that has it, too.
fn settled_without(state: &JobState) -> u32 {
    let failed = |reason| matches!(reason, DeadReason::AttemptsExhausted | DeadReason::NotRetryable);
    let dead = state.dead.iter().filter(|(_, dead)| !failed(dead.value.reason)).map(|(attempt, _)| attempt);
    dead.chain(state.cancelled.keys()).max().copied().unwrap_or(0)
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
    let overtaken = state.asked_attempt.max(state.stopped_below());
    let up = state.tries().filter(|(epoch, a)| epoch.attempt >= overtaken && a.is_up() && a.superseded.is_none());
    let named = up.filter_map(|(epoch, a)| {
        let started = &a.started.as_ref()?.value;
        Some((a.ready.as_ref()?.at, epoch, started.host.clone(), started.vm))
    });
    named.min().map(|(_, _, _, vm)| vm)
}
