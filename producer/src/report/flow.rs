//! The path of a boot through the network, one line for each attempt.

use std::fmt::Write;

use stoker_schemas::JobSpec;
use stoker_schemas::diagnosis::Cause;
use stoker_schemas::event::Stage;

use super::checks::Step;
use super::link::Link;
use super::markdown::{name, stage_at};
use super::text::fenced;
use super::{AttemptChecks, CheckStatus, Report};
use crate::view::{AttemptView, duration};

pub fn render(report: &Report, attempts: &[&AttemptView], checks: &[&AttemptChecks]) -> String {
    if attempts.is_empty() {
        return String::new();
    }
    let mut out = "## Network flow\n\n```text\n".to_owned();
    for (a, checks) in attempts.iter().zip(checks) {
        let _ = writeln!(out, "{}", fenced(&line(a, report.job.spec.as_ref(), checks)));
    }
    out.push_str("```\n");
    out
}

fn line(a: &AttemptView, spec: Option<&JobSpec>, checks: &AttemptChecks) -> String {
    let link = Link::of(a, spec);
    let mut flow = Flow { a, steps: Vec::new(), has_failed: false };
    let status = |step: Step| checks.checks.get(step as usize).map_or(CheckStatus::NotReached, |check| check.status);
    let network = match link {
        Link::Dhcp | Link::Static => format!("tap {}", a.tap.clone().unwrap_or_default()),
        Link::User => "user network".to_owned(),
        Link::Simulated { .. } => "simulated network".to_owned(),
    };
    flow.step(network.trim_end(), Stage::NetworkReady, status(Step::Network));
    let spawned = if status(Step::Spawned) == CheckStatus::Passed { "VM started" } else { "VM start" };
    flow.step(spawned, Stage::Spawned, status(Step::Spawned));
    // It is a step of the network only where the path ends at it.
    if status(Step::Kernel) == CheckStatus::Failed {
        flow.add("kernel", None, CheckStatus::Failed);
    }
    if link.without_dhcp().is_none() {
        let dhcp = status(Step::Dhcp);
        let (asked, leased) = (stage_at(a, Stage::DhcpRequested), stage_at(a, Stage::DhcpAck));
        // A lease without a request: the request was not seen.
        let request = if dhcp == CheckStatus::Passed { CheckStatus::NotChecked } else { dhcp };
        flow.add("DHCP request", asked.map(|(ms, _)| ms), request);
        let address = leased.map_or_else(|| "address".to_owned(), |(_, address)| format!("address {address}"));
        flow.add(address.trim_end(), leased.map(|(ms, _)| ms), dhcp);
    }
    if link == Link::Static {
        let address = a.address.map(|ip| ip.to_string()).unwrap_or_default();
        flow.add(format!("static address {address}").trim_end(), None, status(Step::Kernel));
    }
    flow.agent(status(Step::Tcp), status(Step::Http));
    format!("{}: {}", name(a), flow.steps.join(" -> "))
}

struct Flow<'a> {
    a: &'a AttemptView,
    steps: Vec<String>,
    has_failed: bool,
}

impl Flow<'_> {
    fn step(&mut self, text: &str, stage: Stage, status: CheckStatus) {
        self.add(text, stage_at(self.a, stage).map(|(ms, _)| ms), status);
    }

    fn add(&mut self, text: &str, at: Option<u64>, status: CheckStatus) {
        let more = match (at, status) {
            (Some(ms), _) => format!(" ({})", duration(ms)),
            (None, CheckStatus::Passed) => String::new(),
            (None, CheckStatus::Failed) if !std::mem::replace(&mut self.has_failed, true) => " (failed)".to_owned(),
            (None, CheckStatus::Failed | CheckStatus::NotReached) => " (not reached)".to_owned(),
            (None, CheckStatus::NotChecked) => " (not seen)".to_owned(),
            (None, CheckStatus::Pending) => " (pending)".to_owned(),
            (None, CheckStatus::NotApplicable) => return,
        };
        self.steps.push(format!("{text}{more}"));
    }

    fn agent(&mut self, tcp: CheckStatus, http: CheckStatus) {
        let answered = stage_at(self.a, Stage::AgentHealthy).map(|(ms, _)| ms);
        let is_another = self.a.diagnosis.as_ref().is_some_and(|d| d.cause == Cause::WrongVm);
        let text = match (answered, http) {
            (None, CheckStatus::Passed) if is_another => "another VM answered",
            (Some(_), _) | (_, CheckStatus::Passed) => "agent answered",
            _ => "agent's answer",
        };
        self.add(text, answered, if tcp == CheckStatus::Failed { tcp } else { http });
    }
}
