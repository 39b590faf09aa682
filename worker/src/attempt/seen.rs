//! What has been seen of one try: stages for the log, signals for the diagnosis.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use stoker_schemas::Time;
use stoker_schemas::diagnosis::{HostSignal, ProbeCounts, Signals, VmmSignal};
use stoker_schemas::event::{Stage, StageMark};
use stoker_schemas::limits::{MAX_TEXT_BYTES, MAX_UNIT_BYTES, clip};

use super::Plan;
use crate::clock::Clock;
use crate::console::ConsoleEvent;
use crate::ports::net::{NetEvidence, NetSignal};
use crate::ports::probe::{Answer, ProbeLog, ProbeOutcome, ProbeSummary, WrongAnswer};
use crate::ports::vm::{Vm, VmError, VmExit};

/// Units noted per attempt; a guest can print as many as it likes.
const MAX_NOTED_UNITS: usize = 128;

/// Notes of one try.
pub(super) struct Seen {
    clock: Clock,
    plan: Plan,
    signals: Signals,
    untold: Vec<StageMark>,
    /// How often it came further.
    steps: u64,
    started_units: BTreeSet<String>,
    starting_units: BTreeSet<String>,
    /// Outcomes of the probe.
    pub(super) probe: Arc<ProbeLog>,
    /// The answer that counted.
    pub(super) answer: Option<Answer>,
}

impl Seen {
    pub(super) fn new(clock: Clock, plan: &Plan) -> Self {
        Self {
            clock,
            plan: plan.clone(),
            signals: Signals { stage: Some(Stage::Accepted), ..Signals::default() },
            untold: Vec::new(),
            steps: 0,
            started_units: BTreeSet::new(),
            starting_units: BTreeSet::new(),
            probe: Arc::default(),
            answer: None,
        }
    }

    /// The VMM runs; of a copy of a template, the kernel does, too.
    pub(super) fn spawned(&mut self, vm: &dyn Vm) {
        let pid = vm.record().pid;
        self.signals.restored = vm.restored();
        match vm.accelerator() {
            _ if self.signals.restored => {
                self.mark(Stage::Spawned, format!("pid {pid}, a copy of its image's template"));
                self.mark(Stage::KernelStarted, "in the template");
            }
            Some(accelerator) if !vm.lost().is_zero() => self.mark(Stage::Spawned, format!("pid {pid}, {accelerator}")),
            _ => self.mark(Stage::Spawned, format!("pid {pid}")),
        }
    }

    /// The VM is a job's from now on, as far as it has come.
    pub(super) fn begin_anew(&mut self, plan: &Plan, marks: Vec<StageMark>, up_for: Duration) {
        self.plan = plan.clone();
        self.probe = Arc::default();
        self.answer = None;
        self.signals.extended_ms = 0;
        let now = self.clock.now();
        // Whether the agent is healthy, it is asked again.
        let before = marks.into_iter().chain(self.take_marks()).filter(|mark| mark.stage != Stage::AgentHealthy);
        self.untold = before.map(|mark| StageMark { at: now, ..mark }).collect();
        if let Some(spawned) = self.untold.iter_mut().find(|mark| mark.stage == Stage::Spawned) {
            let told = format!("{}; taken from the warm pool, where it was for {} s", spawned.detail, up_for.as_secs());
            spawned.detail = clip(&told, MAX_TEXT_BYTES);
        }
        self.signals.stage = self.untold.iter().map(|mark| mark.stage).filter(|s| !is_unit(*s)).max();
    }

    /// It answered once and does not any more.
    pub(super) fn forget_answer(&mut self) {
        self.answer = None;
    }

    pub(super) fn mark(&mut self, stage: Stage, detail: impl Into<String>) {
        // Units come at any time: they are marks, not how far the boot has come.
        if !is_unit(stage) {
            self.signals.stage = self.signals.stage.max(Some(stage));
        }
        self.steps += 1;
        self.untold.push(StageMark { stage, at: self.clock.now(), detail: detail.into(), absent: false });
    }

    /// The disk was ready at this time, or the VM has none.
    pub(super) fn disk(&mut self, at: Time, disk: Result<String, &str>) {
        self.signals.stage = self.signals.stage.max(Some(Stage::DiskReady));
        self.steps += 1;
        let (detail, absent) = match disk {
            Ok(detail) => (detail, false),
            Err(why) => (why.to_owned(), true),
        };
        self.untold.push(StageMark { stage: Stage::DiskReady, at, detail, absent });
    }

    /// An earlier worker started this VM.
    pub(super) fn resumed(&mut self, restored: bool) {
        self.signals.restored = restored;
        self.signals.stage = self.signals.stage.max(Some(Stage::Spawned));
    }

    /// What executes the guest, and what the VMM says of itself.
    pub(super) fn vmm(&mut self, accelerator: Option<String>, status: Option<String>) {
        self.signals.accelerator = accelerator.map(|text| clip(&text, MAX_TEXT_BYTES));
        self.signals.vmm_status = status.map(|text| clip(&text, MAX_TEXT_BYTES));
    }

    /// Whether the VMM ended or never ran.
    pub(super) fn vmm_ended(&self) -> bool {
        self.signals.vmm.is_some()
    }

    /// Grows as the guest comes further: by stages and units, and until its first unit by what its kernel
    /// says. (Later a console may go on for ever: systemd's asterisks, an agent's log.)
    pub(super) fn progress(&self, console_bytes: u64) -> u64 {
        let kernel =
            if self.started_units.is_empty() && self.starting_units.is_empty() { console_bytes } else { u64::MAX / 2 };
        kernel + self.steps
    }

    /// Time was up, and more was given.
    pub(super) fn extended(&mut self, by: Duration) {
        self.signals.extended_ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
    }

    pub(super) fn take_marks(&mut self) -> Vec<StageMark> {
        std::mem::take(&mut self.untold)
    }

    pub(super) fn kernel_args(&mut self, args: &str) {
        args.clone_into(&mut self.signals.kernel_args);
    }

    pub(super) fn host_error(&mut self, error: HostSignal) {
        self.signals.host_error = Some(error);
    }

    pub(super) fn boot_error(&mut self, error: &VmError) {
        self.signals.vmm = Some(match error {
            VmError::Refused { .. } | VmError::Unsupported { .. } => VmmSignal::Refused(error.to_string()),
            VmError::Spawn { .. } | VmError::Died { .. } | VmError::Unresponsive { .. } => {
                VmmSignal::NotStarted(error.to_string())
            }
        });
    }

    pub(super) fn exited(&mut self, exit: VmExit) {
        self.signals.vmm = Some(VmmSignal::Exited { code: exit.code, signal: exit.signal, reason: exit.reason });
    }

    /// Notes a DHCP message; true when the guest has its address now.
    pub(super) fn net(&mut self, signal: NetSignal) -> bool {
        match signal {
            NetSignal::Discover | NetSignal::Request(_) if !self.signals.dhcp_asked => {
                self.signals.dhcp_asked = true;
                self.mark(Stage::DhcpRequested, "");
            }
            NetSignal::Discover | NetSignal::Request(_) | NetSignal::Offer(_) => {}
            NetSignal::Declined(address) => self.signals.declined = Some(address),
            NetSignal::Refused(why) => self.signals.dhcp_refused = Some(clip(&why, MAX_TEXT_BYTES)),
            NetSignal::Ack(address) => {
                let first = self.signals.lease.replace(address) != Some(address);
                if first {
                    self.mark(Stage::DhcpAck, address.to_string());
                }
                return first;
            }
        }
        false
    }

    pub(super) fn console(&mut self, event: ConsoleEvent) {
        match event {
            // A copy of a template had its kernel started already; its first line is no news.
            ConsoleEvent::KernelStarted if self.signals.restored => {}
            ConsoleEvent::KernelStarted => self.mark(Stage::KernelStarted, ""),
            ConsoleEvent::UnitStarting(name) if self.starting_units.len() < MAX_NOTED_UNITS => {
                self.steps += 1;
                self.starting_units.insert(clip(&name, MAX_UNIT_BYTES));
            }
            ConsoleEvent::UnitStarting(_) => {}
            ConsoleEvent::UnitStarted(name) => {
                let name = clip(&name, MAX_UNIT_BYTES);
                self.starting_units.remove(&name);
                if self.started_units.len() < MAX_NOTED_UNITS && self.started_units.insert(name.clone()) {
                    self.mark(Stage::UnitStarted, name);
                }
            }
            ConsoleEvent::UnitFailed(name) => {
                let name = clip(&name, MAX_UNIT_BYTES);
                self.starting_units.remove(&name);
                if self.signals.failed_units.len() < MAX_NOTED_UNITS && !self.signals.failed_units.contains(&name) {
                    self.signals.failed_units.push(name.clone());
                    self.mark(Stage::UnitFailed, name);
                }
            }
            ConsoleEvent::KernelPanic(text) => self.signals.kernel_panic = Some(clip(&text, MAX_TEXT_BYTES)),
            ConsoleEvent::OutOfMemory(text) => self.signals.out_of_memory = Some(clip(&text, MAX_TEXT_BYTES)),
            ConsoleEvent::DiskFull(line) => drop(self.signals.disk_full.get_or_insert(line)),
            ConsoleEvent::ClockWrong(line) => drop(self.signals.clock.get_or_insert(line)),
            ConsoleEvent::EmergencyMode => self.signals.emergency_mode = true,
            ConsoleEvent::IpConfig { address } => self.signals.kernel_address = Some(address),
        }
    }

    pub(super) fn healthy(&mut self, answer: Answer) {
        self.mark(Stage::AgentHealthy, format!("HTTP {}", answer.status));
        self.answer = Some(answer);
    }

    /// Units asked for that have not started.
    pub(super) fn missing_units(&self) -> Vec<String> {
        self.plan.spec.readiness.units.iter().filter(|unit| !self.started_units.contains(*unit)).cloned().collect()
    }

    /// Whether waiting on has no point: the guest said so itself.
    pub(super) fn is_hopeless(&self) -> bool {
        let wanted = &self.plan.spec.readiness.units;
        self.signals.kernel_panic.is_some()
            || self.signals.emergency_mode
            || self.signals.failed_units.iter().any(|unit| wanted.contains(unit))
    }

    /// Everything, for the diagnosis.
    pub(super) fn signals(&self, evidence: Option<&NetEvidence>, console_bytes: u64, sees_dhcp: bool) -> Signals {
        let mut signals = self.signals.clone();
        signals.after_ms = u64::try_from(self.clock.now().since(self.plan.started_at).as_millis()).unwrap_or(u64::MAX);
        signals.console_bytes = console_bytes;
        signals.started_units = u32::try_from(self.started_units.len()).unwrap_or(u32::MAX);
        signals.missing_units = self.missing_units();
        signals.starting_units = self.starting_units.iter().cloned().collect();
        signals.dhcp_visible = sees_dhcp;
        signals.polled = self.plan.address;
        signals.probe = counts(&self.probe.summary());
        signals.probe.healthy = self.answer.is_some();
        if let Some(evidence) = evidence {
            signals.has_tap = sees_dhcp;
            signals.bridge.clone_from(&evidence.bridge);
            signals.packets_from_guest = evidence.from_guest;
            signals.dhcp_server_up = evidence.dhcp_server_up;
            let foreign = evidence.neighbour.filter(|mac| *mac != self.plan.vm.mac());
            signals.foreign_mac = foreign.map(|mac| mac.to_string());
        }
        signals
    }

    /// The lease, if the guest took one.
    pub(super) fn lease(&self) -> Option<Ipv4Addr> {
        self.signals.lease
    }
}

fn is_unit(stage: Stage) -> bool {
    matches!(stage, Stage::UnitStarted | Stage::UnitFailed)
}

fn counts(summary: &ProbeSummary) -> ProbeCounts {
    let unanswered_ms = summary.unanswered.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let mut counts = ProbeCounts { unanswered_ms, ..ProbeCounts::default() };
    for (outcome, count) in &summary.kinds {
        match outcome {
            ProbeOutcome::Refused => counts.refused += count,
            ProbeOutcome::Unreachable(_) => counts.unreachable += count,
            ProbeOutcome::ConnectTimeout => counts.connect_timeout += count,
            ProbeOutcome::ReadTimeout => counts.read_timeout += count,
            ProbeOutcome::Reset(_) => counts.reset += count,
            ProbeOutcome::Wrong(answer, WrongAnswer::Status) => counts.wrong_status = Some(answer.status),
            ProbeOutcome::Wrong(answer, WrongAnswer::Body) => counts.wrong_body = Some(answer.body.clone()),
            ProbeOutcome::Wrong(_, WrongAnswer::Identity(who)) => counts.wrong_vm = Some(who.clone()),
            ProbeOutcome::Ready(_) => {}
        }
    }
    counts
}

#[cfg(test)]
mod tests;
