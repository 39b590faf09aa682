//! What is checked in an attempt, in the order of a boot, and what came of it.

use serde::{Deserialize, Serialize};
use stoker_schemas::JobSpec;
use stoker_schemas::diagnosis::Cause;
use stoker_schemas::event::{Identity, Stage};

use crate::view::{AttemptView, Outcome};

/// The checks of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct AttemptChecks {
    /// Its number.
    pub attempt: u32,
    /// Which delivery of it.
    pub delivery: u32,
    /// The checks, in order.
    pub checks: Vec<Check>,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// What came of it.
    pub status: CheckStatus,
    /// When it passed, ms after the attempt's start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_ms: Option<u64>,
    /// More (the address, …).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    /// Seen.
    Passed,
    /// Where the attempt got stuck.
    Failed,
    /// After that.
    NotReached,
    /// Nobody looked, or it cannot be seen on this kind of network.
    NotChecked,
    /// The attempt is still under way.
    Pending,
}

const STAGES: [(&str, Stage); 7] = [
    ("disk overlay", Stage::DiskReady),
    ("network (tap, bridge)", Stage::NetworkReady),
    ("VMM spawned", Stage::Spawned),
    ("kernel started", Stage::KernelStarted),
    ("DHCP lease", Stage::DhcpAck),
    ("TCP to the agent", Stage::AgentConnected),
    ("HTTP answer", Stage::AgentHealthy),
];

/// The checks of an attempt.
pub fn of(a: &AttemptView, spec: Option<&JobSpec>) -> AttemptChecks {
    let mut checks: Vec<_> = STAGES.iter().map(|(name, stage)| stage_check(a, name, *stage)).collect();
    checks.push(identity(a));
    checks.extend(units(a, spec));
    if a.outcome == Outcome::Failed {
        blame(a, &mut checks);
    }
    AttemptChecks { attempt: a.attempt, delivery: a.delivery, checks }
}

fn unseen(outcome: Outcome) -> CheckStatus {
    match outcome {
        Outcome::Booting => CheckStatus::Pending,
        // It was ready without: it cannot be seen here (DHCP on a user network).
        Outcome::Ready | Outcome::WasReady => CheckStatus::NotChecked,
        Outcome::Failed | Outcome::Removed => CheckStatus::NotReached,
    }
}

fn stage_check(a: &AttemptView, name: &str, stage: Stage) -> Check {
    let seen = a.stages.iter().find(|s| s.name == stage.as_str());
    Check {
        name: name.to_owned(),
        status: if seen.is_some() { CheckStatus::Passed } else { unseen(a.outcome) },
        after_ms: seen.map(|s| s.begin_ms + s.took_ms),
        note: seen.map(|s| s.detail.clone()).unwrap_or_default(),
    }
}

fn identity(a: &AttemptView) -> Check {
    let after_ms = a.took_ms.filter(|_| a.proof.is_some());
    let (status, note) = match a.proof.as_ref().map(|p| p.identity) {
        Some(Identity::VmId) => (CheckStatus::Passed, "the answer carried the VM's id"),
        Some(Identity::Mac) => (CheckStatus::Passed, "the neighbour has the VM's MAC"),
        Some(Identity::ForwardedPort) => (CheckStatus::Passed, "the port belongs to this VMM alone"),
        Some(Identity::Unchecked) => (CheckStatus::NotChecked, "the job asked not to"),
        None => (unseen(a.outcome), ""),
    };
    Check { name: "identity".to_owned(), status, after_ms, note: note.to_owned() }
}

/// Units asked for, each; others that were seen are in the services section.
fn units(a: &AttemptView, spec: Option<&JobSpec>) -> Vec<Check> {
    let asked = spec.map(|s| s.readiness.units.as_slice()).unwrap_or_default();
    let check = |name: &String| {
        let seen = a.units.iter().find(|u| u.name == *name);
        let status = match seen {
            Some(u) if u.ok => CheckStatus::Passed,
            Some(_) => CheckStatus::Failed,
            None => unseen(a.outcome),
        };
        Check { name: format!("unit {name}"), status, after_ms: seen.map(|u| u.after_ms), note: String::new() }
    };
    asked.iter().map(check).collect()
}

/// Marks the check at which a failed attempt got stuck: the diagnosis knows where it names one,
/// else it is the first that was not reached.
fn blame(a: &AttemptView, checks: &mut [Check]) {
    let named = a.diagnosis.as_ref().and_then(|d| match d.cause {
        Cause::WrongVm => Some("identity"),
        Cause::AgentUnhealthy | Cause::WrongBody | Cause::AgentHanging => Some("HTTP answer"),
        Cause::AgentNotListening | Cause::AddressUnreachable | Cause::ConflictingNetwork => Some("TCP to the agent"),
        Cause::NoDhcpRequest | Cause::DhcpUnanswered => Some("DHCP lease"),
        Cause::UnitFailed | Cause::UnitMissing => Some("unit "),
        _ => None,
    });
    let position = match named {
        Some(name) => checks.iter().position(|c| c.name.starts_with(name) && c.status != CheckStatus::Passed),
        None if checks.iter().any(|c| c.status == CheckStatus::Failed) => None,
        None => checks.iter().position(|c| c.status == CheckStatus::NotReached),
    };
    if let Some(check) = position.and_then(|i| checks.get_mut(i)) {
        check.status = CheckStatus::Failed;
    }
}
