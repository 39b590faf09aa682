//! What is checked in an attempt, in the order of a boot, and the result of each check.

use serde::{Deserialize, Serialize};
use stoker_schemas::JobSpec;
use stoker_schemas::diagnosis::Cause;
use stoker_schemas::event::{Identity, Stage};
use stoker_schemas::image::Driver;

use super::blame;
use super::link::Link;
use crate::view::{AttemptView, Outcome, StageView};

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
    /// The result.
    pub status: CheckStatus,
    /// When it passed, ms after the attempt's start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_ms: Option<u64>,
    /// More (the address, the reason, …).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    /// Seen, or implied by a later check that passed.
    Passed,
    /// Where the attempt got stuck.
    Failed,
    /// The attempt ended before it.
    NotReached,
    /// Not looked at, or not seen although later checks passed.
    NotChecked,
    /// The job has no such part; the note says why.
    NotApplicable,
    /// The attempt is still under way.
    Pending,
}

/// The checks that every attempt has, in the order of a boot. Units follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The image is there and is what its manifest says.
    Image,
    /// The disk overlay.
    Disk,
    /// Tap and bridge, or the user network.
    Network,
    /// The VMM runs.
    Spawned,
    /// The first byte on the console.
    Kernel,
    /// The guest's address.
    Dhcp,
    /// A connection to the agent.
    Tcp,
    /// The agent's answer.
    Http,
    /// It was this VM that answered.
    Identity,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Self; 9] = [
        Self::Image,
        Self::Disk,
        Self::Network,
        Self::Spawned,
        Self::Kernel,
        Self::Dhcp,
        Self::Tcp,
        Self::Http,
        Self::Identity,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Disk => "disk",
            Self::Network => "network",
            Self::Spawned => "VMM spawned",
            Self::Kernel => "kernel started",
            Self::Dhcp => "DHCP lease",
            Self::Tcp => "TCP to the agent",
            Self::Http => "HTTP answer",
            Self::Identity => "identity",
        }
    }

    const fn stage(self) -> Option<Stage> {
        match self {
            Self::Image | Self::Identity => None,
            Self::Disk => Some(Stage::DiskReady),
            Self::Network => Some(Stage::NetworkReady),
            Self::Spawned => Some(Stage::Spawned),
            Self::Kernel => Some(Stage::KernelStarted),
            Self::Dhcp => Some(Stage::DhcpAck),
            Self::Tcp => Some(Stage::AgentConnected),
            Self::Http => Some(Stage::AgentHealthy),
        }
    }

    /// Said of a check that later ones have overtaken.
    const fn unseen(self) -> &'static str {
        match self {
            Self::Disk => "not recorded",
            Self::Dhcp => "no lease seen",
            _ => "not seen",
        }
    }
}

/// The checks of an attempt.
pub fn of(a: &AttemptView, spec: Option<&JobSpec>) -> AttemptChecks {
    let facts = Facts::of(a, spec);
    let mut steps: Vec<_> = Step::ALL.into_iter().map(|step| facts.check(step)).collect();
    let mut units = units(a, spec);
    if let (Outcome::Failed, Some(cause)) = (a.outcome, facts.cause) {
        blame::settle(cause, facts.reached, &mut steps, &mut units);
    }
    for (step, check) in Step::ALL.into_iter().zip(&mut steps).filter(|(_, c)| c.status == CheckStatus::Pending) {
        if a.outcome.was_proven() || facts.reached > Some(step) {
            (check.status, check.note) = (CheckStatus::NotChecked, step.unseen().to_owned());
        }
    }
    if a.outcome != Outcome::Booting {
        for check in steps.iter_mut().chain(&mut units).filter(|check| check.status == CheckStatus::Pending) {
            check.status = CheckStatus::NotReached;
        }
    }
    AttemptChecks { attempt: a.attempt, delivery: a.delivery, checks: steps.into_iter().chain(units).collect() }
}

/// What is known of an attempt.
struct Facts<'a> {
    a: &'a AttemptView,
    link: Link,
    cause: Option<Cause>,
    /// The job wants to know who answered.
    identity: bool,
    /// The last check that is known to be passed, units aside.
    reached: Option<Step>,
}

impl<'a> Facts<'a> {
    fn of(a: &'a AttemptView, spec: Option<&JobSpec>) -> Self {
        let mut facts = Self {
            a,
            link: Link::of(a, spec),
            cause: a.diagnosis.as_ref().map(|d| d.cause),
            identity: spec.is_none_or(|spec| spec.readiness.check_identity),
            reached: None,
        };
        let seen = |step: &Step| facts.mark(*step).is_some() && (*step != Step::Tcp || facts.absent(*step).is_none());
        let marked = Step::ALL.into_iter().filter(seen).max();
        let asked = stage(a, Stage::DhcpRequested).map(|_| Step::Kernel);
        let proof = a.proof.as_ref().map(|_| Step::Identity);
        facts.reached = marked.max(asked).max(proof).max(facts.proven());
        facts
    }

    fn mark(&self, step: Step) -> Option<&'a StageView> {
        stage(self.a, step.stage()?)
    }

    /// Why the attempt has no such part.
    fn absent(&self, step: Step) -> Option<&str> {
        match step {
            Step::Disk if self.a.driver == Some(Driver::Simulated) => Some("simulated guests have no disk"),
            Step::Disk => self.mark(step).filter(|disk| disk.absent).map(|disk| disk.detail.as_str()),
            Step::Dhcp => self.link.without_dhcp(),
            Step::Tcp => self.link.without_tcp(),
            _ => None,
        }
    }

    /// The check as far as it is known; pending where nothing is.
    fn check(&self, step: Step) -> Check {
        let mark = self.mark(step);
        let identity = self.a.proof.as_ref().filter(|_| step == Step::Identity).map(|proof| proof.identity);
        let (status, note) = if let Some(why) = self.absent(step) {
            (CheckStatus::NotApplicable, why.to_owned())
        } else if step == Step::Identity && (!self.identity || identity == Some(Identity::Unchecked)) {
            (CheckStatus::NotChecked, "the job asked not to".to_owned())
        } else if let Some(mark) = mark {
            (CheckStatus::Passed, mark.detail.clone())
        } else if let Some(how) = identity.map(described).or_else(|| self.implied(step)) {
            (CheckStatus::Passed, how.to_owned())
        } else {
            (CheckStatus::Pending, String::new())
        };
        let note = if step == Step::Network { self.network(status, note) } else { note };
        let at = mark.filter(|_| status == CheckStatus::Passed).map(|mark| mark.begin_ms + mark.took_ms);
        let proven = self.a.took_ms.filter(|_| identity.is_some());
        Check { name: step.name().to_owned(), status, after_ms: at.or(proven), note }
    }

    /// Which kind of network it is, before what was noted of it.
    fn network(&self, status: CheckStatus, note: String) -> String {
        let kind = match self.link {
            Link::User => "QEMU's user network".to_owned(),
            Link::Simulated { .. } => "simulated".to_owned(),
            Link::Dhcp | Link::Static if status != CheckStatus::Passed => String::new(),
            Link::Dhcp | Link::Static => self.a.tap.as_ref().map(|tap| format!("tap {tap}")).unwrap_or_default(),
        };
        [kind, note].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
    }

    /// The last check that the cause itself proves to have passed.
    fn proven(&self) -> Option<Step> {
        // What accepts or refuses a connection on a user network is QEMU.
        let by_qemu = matches!(self.cause, Some(Cause::AgentNotListening | Cause::AgentHanging));
        self.cause.filter(|_| !(by_qemu && self.link == Link::User)).and_then(blame::proven)
    }

    /// How a check that has no mark of its own is known to have passed.
    fn implied(&self, step: Step) -> Option<&'static str> {
        let healthy = self.mark(Step::Http).is_some() || self.a.proof.is_some();
        let (is_known, how) = match step {
            Step::Image => (self.reached >= Some(step), ""),
            // Another VM's answer says nothing about this VM's kernel.
            Step::Kernel if self.cause == Some(Cause::WrongVm) => (false, ""),
            Step::Network | Step::Spawned | Step::Kernel => (self.reached >= Some(step), "implied by what followed"),
            Step::Http if self.cause == Some(Cause::WrongVm) => (true, "another VM answered"),
            Step::Tcp => (healthy || self.proven() >= Some(step), "implied by the answer"),
            Step::Http => (healthy || self.proven() > Some(step), ""),
            Step::Identity => (healthy || self.proven() >= Some(step), "implied by the answer"),
            Step::Disk | Step::Dhcp => (false, ""),
        };
        is_known.then_some(how)
    }
}

fn stage(a: &AttemptView, stage: Stage) -> Option<&StageView> {
    a.stages.iter().find(|s| s.name == stage.as_str())
}

const fn described(identity: Identity) -> &'static str {
    match identity {
        Identity::VmId => "the answer carried the VM's id",
        Identity::Mac => "the neighbour has the VM's MAC",
        Identity::ForwardedPort => "the port belongs to this VMM alone",
        Identity::Unchecked => "the job asked not to",
    }
}

/// Units asked for, each; others that were seen are in the services section.
fn units(a: &AttemptView, spec: Option<&JobSpec>) -> Vec<Check> {
    let asked = spec.map(|s| s.readiness.units.as_slice()).unwrap_or_default();
    let check = |name: &String| {
        // The console's last word on it.
        let seen = a.units.iter().rfind(|u| u.name == *name);
        let (status, note) = match seen {
            Some(u) if u.ok => (CheckStatus::Passed, ""),
            // It was ready: the worker saw all of them start.
            _ if a.outcome.was_proven() => (CheckStatus::Passed, "implied by ready"),
            Some(_) => (CheckStatus::Failed, "failed on the console"),
            None => (CheckStatus::Pending, ""),
        };
        Check { name: format!("unit {name}"), status, after_ms: seen.map(|u| u.after_ms), note: note.to_owned() }
    };
    asked.iter().map(check).collect()
}
