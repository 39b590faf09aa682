//! Which check a failed attempt got stuck at.

use stoker_schemas::diagnosis::Cause;

use super::checks::{Check, CheckStatus, Step};

/// Where a cause shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blame {
    /// At this check, or at the first one after it that has not passed.
    At(Step),
    /// At the units that the job waits for.
    Units,
    /// At the first check after the last one reached.
    Next,
}

/// Every cause decides: a new one does not compile without.
const fn blame(cause: Cause) -> Blame {
    match cause {
        Cause::ImageInvalid => Blame::At(Step::Image),
        Cause::HypervisorRefused | Cause::HypervisorNotStarted => Blame::At(Step::Spawned),
        Cause::GuestSilent => Blame::At(Step::Kernel),
        // The tap was on the bridge when the network was made: the lease is what does not come.
        Cause::NoDhcpRequest | Cause::DhcpUnanswered | Cause::TapNotBridged => Blame::At(Step::Dhcp),
        Cause::AgentNotListening | Cause::AddressUnreachable | Cause::ConflictingNetwork => Blame::At(Step::Tcp),
        Cause::AgentUnhealthy | Cause::WrongBody | Cause::AgentHanging => Blame::At(Step::Http),
        Cause::WrongVm | Cause::AddressInUse => Blame::At(Step::Identity),
        Cause::UnitFailed | Cause::UnitMissing => Blame::Units,
        Cause::HostResource
        | Cause::Interrupted
        | Cause::KernelPanic
        | Cause::GuestOutOfMemory
        | Cause::EmergencyMode
        | Cause::GuestExited
        | Cause::HypervisorCrashed
        | Cause::GuestDiskFull
        | Cause::ClockWrong
        | Cause::SlowBoot
        | Cause::Unknown => Blame::Next,
    }
}

/// The last check that a cause itself proves to have passed, whatever was marked.
pub(super) const fn proven(cause: Cause) -> Option<Step> {
    match cause {
        Cause::UnitMissing => Some(Step::Identity),
        Cause::WrongVm => Some(Step::Http),
        Cause::AgentUnhealthy | Cause::WrongBody | Cause::AgentHanging => Some(Step::Tcp),
        // The guest's packets, or its words on the console.
        Cause::ConflictingNetwork
        | Cause::NoDhcpRequest
        | Cause::DhcpUnanswered
        | Cause::AddressUnreachable
        | Cause::AgentNotListening
        | Cause::UnitFailed
        | Cause::KernelPanic
        | Cause::GuestOutOfMemory
        | Cause::GuestDiskFull
        | Cause::ClockWrong
        | Cause::EmergencyMode => Some(Step::Kernel),
        Cause::TapNotBridged
        | Cause::AddressInUse
        | Cause::GuestSilent
        | Cause::SlowBoot
        | Cause::GuestExited
        | Cause::HypervisorCrashed => Some(Step::Spawned),
        Cause::HypervisorRefused | Cause::HypervisorNotStarted => Some(Step::Network),
        // The image is checked before the host makes anything for it.
        Cause::HostResource => Some(Step::Image),
        Cause::ImageInvalid | Cause::Interrupted | Cause::Unknown => None,
    }
}

/// Marks the check at which the attempt got stuck. What is not decided yet is pending, in the
/// order of [`Step`], the units behind. A unit that the console reports as failed stays failed.
pub(super) fn settle(cause: Cause, reached: Option<Step>, steps: &mut [Check], units: &mut [Check]) {
    let has_failed_unit = units.iter().any(|unit| unit.status == CheckStatus::Failed);
    let next = reached.map_or(0, |step| step as usize + 1);
    let at = match blame(cause) {
        Blame::At(step) => first_pending(steps, next.max(step as usize)),
        Blame::Next | Blame::Units if has_failed_unit => return,
        Blame::Units if cause == Cause::UnitMissing && fail_missing(units) => return,
        Blame::Next | Blame::Units => None,
    };
    let stuck = match (at.or_else(|| first_pending(steps, next)), first_pending(units, 0)) {
        (Some(step), _) => steps.get_mut(step),
        (None, _) if has_failed_unit => None,
        (None, Some(unit)) => units.get_mut(unit),
        // It passed everything and failed all the same: the last check did not hold.
        (None, None) => steps.iter_mut().rfind(|check| check.status == CheckStatus::Passed),
    };
    if let Some(check) = stuck {
        check.status = CheckStatus::Failed;
    }
}

fn first_pending(checks: &[Check], from: usize) -> Option<usize> {
    (from..checks.len()).find(|i| checks.get(*i).is_some_and(|check| check.status == CheckStatus::Pending))
}

/// All units that never started are what the attempt waited for.
fn fail_missing(units: &mut [Check]) -> bool {
    let missing = units.iter_mut().filter(|unit| unit.status == CheckStatus::Pending);
    missing.map(|unit| (unit.status, unit.note) = (CheckStatus::Failed, "never started".to_owned())).count() > 0
}
