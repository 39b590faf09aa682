//! The checks of an attempt in every combination of driver, disk, network and stage reached.

use std::fmt::Write;

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::json;
use stoker_producer::report::{AttemptChecks, CheckStatus, Report};
use stoker_schemas::JobSpec;
use stoker_schemas::diagnosis::{Cause, Confidence, Diagnosis, Signals, diagnose};
use stoker_schemas::event::{GoneWhy, Stage, StageMark};
use stoker_schemas::image::Driver;

use super::support::Story;

const ADDRESS: &str = "192.168.100.17";
const STEPS: [&str; 9] = ["image", "disk", "network", "vmm", "kernel", "dhcp", "tcp", "http", "identity"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Net {
    Dhcp,
    Static,
    User,
}

#[derive(Debug, Clone, Copy)]
struct Setup {
    driver: Driver,
    disk: bool,
    net: Net,
}

/// All that can be: a user network is QEMU's own, and a simulated guest never has a disk.
fn setups() -> Vec<Setup> {
    let mut all = Vec::new();
    for driver in [Driver::Firecracker, Driver::Qemu, Driver::Simulated] {
        for disk in [true, false] {
            for net in [Net::Dhcp, Net::Static, Net::User] {
                let is_possible = match driver {
                    Driver::Firecracker => net != Net::User,
                    Driver::Qemu => true,
                    Driver::Simulated => net != Net::User && !disk,
                };
                all.extend(is_possible.then_some(Setup { driver, disk, net }));
            }
        }
    }
    all
}

impl Setup {
    fn name(self) -> String {
        let disk = if self.disk { "disk=yes" } else { "disk=no" };
        let net = match self.net {
            Net::Dhcp => "dhcp",
            Net::Static => "static",
            Net::User => "user",
        };
        format!("{:<11} {disk:<8} {net:<6}", self.driver.as_str())
    }

    /// The stages that a worker marks here.
    fn stages(self) -> Vec<Stage> {
        let network = match self.net {
            Net::Dhcp => vec![Stage::DhcpRequested, Stage::DhcpAck, Stage::AgentConnected],
            Net::Static => vec![Stage::AgentConnected],
            Net::User => vec![],
        };
        let before = [Stage::DiskReady, Stage::NetworkReady, Stage::Spawned, Stage::KernelStarted];
        before.into_iter().chain(network).chain([Stage::AgentHealthy]).collect()
    }

    fn mark(self, story: &Story, stage: Stage, ms: u64) -> StageMark {
        let detail = match (stage, self.disk) {
            (Stage::DiskReady, true) => "qcow2 overlay, 4096 MiB",
            (Stage::DiskReady, false) => "the image has no disk",
            (Stage::DhcpAck, _) => ADDRESS,
            _ => "",
        };
        StageMark { absent: stage == Stage::DiskReady && !self.disk, ..story.mark(stage, ms, detail) }
    }

    fn spec(self, units: &[&str], check_identity: bool) -> JobSpec {
        let network = match self.net {
            Net::Static => json!({"static": {"address": ADDRESS, "prefix": 24, "gateway": "192.168.100.1"}}),
            Net::Dhcp | Net::User => json!("dhcp"),
        };
        let readiness = json!({"units": units, "check_identity": check_identity});
        JobSpec::from_value(&json!({"image": "golden@7", "network": network, "readiness": readiness})).unwrap()
    }

    /// An attempt that came through these stages.
    fn story(self, spec: JobSpec, stages: &[Stage], units: &[(Stage, &str)]) -> Story {
        let mut story = Story::of("combination");
        story.spec = spec;
        let story = story.enqueued();
        let address = (self.net != Net::User).then_some(ADDRESS);
        let story = story.started_by(self.driver, address, 1, 3);
        let mut marks: Vec<_> =
            stages.iter().zip(1..).map(|(stage, step)| self.mark(&story, *stage, step * 100)).collect();
        marks.extend(units.iter().zip(1..).map(|((stage, name), step)| story.mark(*stage, 500 + step, name)));
        story.progressed(1, 1_000, marks)
    }

    /// Checks of parts that a job here does not have.
    fn absent(self) -> Vec<&'static str> {
        let mut absent = Vec::new();
        absent.extend((self.driver == Driver::Simulated).then_some("disk"));
        absent.extend((self.net != Net::Dhcp).then_some("dhcp"));
        absent.extend((self.net == Net::User).then_some("tcp"));
        absent
    }
}

fn diagnosis(cause: Cause) -> Diagnosis {
    let confidence = (cause != Cause::Unknown).then_some(Confidence::Likely);
    Diagnosis {
        stage: Stage::Accepted,
        cause,
        confidence,
        summary: "x".to_owned(),
        remedy: "y".to_owned(),
        evidence: Vec::new(),
        retryable: true,
    }
}

fn checks(story: &Story) -> AttemptChecks {
    Report::of(&story.state(), None).checks.remove(0)
}

fn sign(status: CheckStatus) -> &'static str {
    match status {
        CheckStatus::Passed => "✓",
        CheckStatus::Failed => "✗",
        CheckStatus::NotReached => "–",
        CheckStatus::NotChecked => "○",
        CheckStatus::NotApplicable => "n/a",
        CheckStatus::Pending => "…",
    }
}

fn line(name: &str, story: &Story) -> String {
    let found = checks(story);
    let names = STEPS.into_iter().chain(std::iter::repeat("unit"));
    let cells: Vec<_> = names.zip(&found.checks).map(|(name, c)| format!("{name} {:<3}", sign(c.status))).collect();
    format!("{name} | {}", cells.join(" | ")).trim_end().to_owned()
}

/// No attempt says more than was seen: an unknown cause fails the first check that was not reached.
#[test]
fn every_combination_of_driver_disk_network_and_stage() {
    let mut table = String::new();
    for setup in setups() {
        let spec = || setup.spec(&["Agent"], true);
        let stages = setup.stages();
        for reached in 0..=stages.len() {
            let (stages, last) = (&stages[..reached], stages[..reached].last().unwrap_or(&Stage::Accepted));
            let story = setup.story(spec(), stages, &[]).failed(1, 9_000, diagnosis(Cause::Unknown));
            let name = format!("{} {:<15}", setup.name(), last.as_str());
            writeln!(table, "{}", line(&name, &story)).unwrap();
        }
        // A ready attempt has no mark of its connection.
        let marked: Vec<_> = stages.into_iter().filter(|stage| *stage != Stage::AgentConnected).collect();
        let story = setup.story(spec(), &marked, &[(Stage::UnitStarted, "Agent")]);
        let name = format!("{} {:<15}", setup.name(), "ready");
        writeln!(table, "{}", line(&name, &story.answered(1, 2_000, ADDRESS, Vec::new()))).unwrap();
    }
    insta::assert_snapshot!(table);
}

/// How far a boot has come when this cause ends it, as a rule.
fn usual_stage(cause: Cause) -> Stage {
    match cause {
        Cause::ImageInvalid | Cause::HostResource => Stage::Accepted,
        Cause::HypervisorRefused | Cause::HypervisorNotStarted => Stage::NetworkReady,
        Cause::GuestSilent | Cause::Interrupted => Stage::Spawned,
        Cause::DhcpUnanswered => Stage::DhcpRequested,
        Cause::ConflictingNetwork
        | Cause::AddressUnreachable
        | Cause::AgentNotListening
        | Cause::UnitFailed
        | Cause::GuestDiskFull
        | Cause::ClockWrong
        | Cause::SlowBoot => Stage::DhcpAck,
        Cause::AgentHanging | Cause::AgentUnhealthy | Cause::WrongBody | Cause::WrongVm => Stage::AgentConnected,
        Cause::UnitMissing => Stage::AgentHealthy,
        Cause::NoDhcpRequest
        | Cause::TapNotBridged
        | Cause::AddressInUse
        | Cause::KernelPanic
        | Cause::GuestOutOfMemory
        | Cause::EmergencyMode
        | Cause::GuestExited
        | Cause::HypervisorCrashed
        | Cause::Unknown => Stage::KernelStarted,
    }
}

#[test]
fn every_cause_fails_the_check_to_look_at() {
    let mut table = String::new();
    for net in [Net::Dhcp, Net::User] {
        let setup = Setup { driver: Driver::Qemu, disk: net == Net::Dhcp, net };
        let needs_a_tap = [
            Cause::NoDhcpRequest,
            Cause::DhcpUnanswered,
            Cause::TapNotBridged,
            Cause::AddressUnreachable,
            Cause::AddressInUse,
        ];
        for cause in Cause::ALL.iter().filter(|cause| net == Net::Dhcp || !needs_a_tap.contains(cause)) {
            let last = usual_stage(*cause);
            let stages: Vec<_> = setup.stages().into_iter().filter(|stage| *stage <= last).collect();
            let failed = [(Stage::UnitFailed, "Agent")];
            let units: &[_] = if *cause == Cause::UnitFailed { &failed } else { &[] };
            let story = setup.story(setup.spec(&["Agent"], true), &stages, units);
            let name = format!("{} {:<22}", &setup.name()[21..], cause.as_str());
            writeln!(table, "{}", line(&name, &story.failed(1, 9_000, diagnosis(*cause)))).unwrap();
        }
    }
    insta::assert_snapshot!(table);
}

/// What a new user saw first: no disk, QEMU's own network, and a kernel that does not start.
#[test]
fn a_silent_guest_on_a_user_network() {
    let setup = Setup { driver: Driver::Qemu, disk: false, net: Net::User };
    let signals = Signals {
        stage: Some(Stage::Spawned),
        after_ms: 9_000,
        kernel_args: "console=ttyS0".to_owned(),
        accelerator: Some("KVM, 3 MIPS".to_owned()),
        vmm_status: Some("running".to_owned()),
        ..Signals::default()
    };
    let story = setup.story(setup.spec(&[], true), &setup.stages()[..3], &[]);
    insta::assert_snapshot!(Report::of(&story.failed(1, 9_000, diagnose(&signals)).state(), None).to_markdown());
}

#[test]
fn an_unknown_cause_is_headed_without_a_confidence() {
    let setup = Setup { driver: Driver::Qemu, disk: true, net: Net::Dhcp };
    let report = |cause| {
        let story = setup.story(setup.spec(&[], true), &[], &[]).failed(1, 9_000, diagnosis(cause));
        Report::of(&story.state(), None).to_markdown()
    };
    assert!(report(Cause::Unknown).contains("### attempt 1: unknown\n"));
    assert!(report(Cause::SlowBoot).contains("### attempt 1: slow boot (likely)\n"));
}

/// Early workers did not mark the disk: whether there was one is not known.
#[test]
fn a_disk_that_was_never_marked_is_not_said_to_have_failed() {
    for setup in setups().into_iter().filter(|setup| setup.driver != Driver::Simulated) {
        let stages = [Stage::NetworkReady, Stage::Spawned];
        for cause in [Cause::Unknown, Cause::HostResource] {
            let story = setup.story(setup.spec(&[], true), &stages, &[]);
            let found = checks(&story.failed(1, 9_000, diagnosis(cause)));
            assert_eq!(found.checks[1].status, CheckStatus::NotChecked, "{found:#?}");
        }
    }
}

/// What an attempt of these stages came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Failed,
    Ready,
    Removed,
    Booting,
}

#[derive(Debug, Clone)]
struct Case {
    setup: Setup,
    stages: Vec<Stage>,
    asked: usize,
    units: Vec<(Stage, &'static str)>,
    check_identity: bool,
    cause: Cause,
    end: End,
}

const UNITS: [&str; 3] = ["A", "B", "C"];

prop_compose! {
    /// Stages up to one of them, some of which were missed.
    fn case()(
        setup in any::<Index>(), cause in any::<Index>(), upto in 0usize..10,
        missed in proptest::collection::vec(prop::bool::weighted(0.1), 10),
        (asked, check_identity) in (0usize..4, any::<bool>()),
        units in proptest::collection::vec(prop_oneof![Just(Stage::UnitStarted), Just(Stage::UnitFailed)], 0..4),
        end in prop_oneof![3 => Just(End::Failed), 1 => Just(End::Ready), 1 => Just(End::Removed), 1 => Just(End::Booting)],
    ) -> Case {
        let setups = setups();
        let setup = setups[setup.index(setups.len())];
        let marked = setup.stages().into_iter().take(upto).zip(missed);
        Case {
            setup, asked, check_identity, end,
            stages: marked.filter_map(|(stage, missed)| (!missed).then_some(stage)).collect(),
            units: units.into_iter().zip(UNITS).collect(),
            cause: Cause::ALL[cause.index(Cause::ALL.len())],
        }
    }
}

impl Case {
    fn checks(&self) -> AttemptChecks {
        let spec = self.setup.spec(&UNITS[..self.asked], self.check_identity);
        let story = self.setup.story(spec, &self.stages, &self.units);
        checks(&match self.end {
            End::Failed => story.failed(1, 9_000, diagnosis(self.cause)),
            End::Ready => story.answered(1, 9_000, ADDRESS, Vec::new()),
            End::Removed => story.gone(1, 9_000, GoneWhy::Cancelled),
            End::Booting => story,
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn only_what_stopped_an_attempt_has_failed(case in case()) {
        let found = case.checks();
        let (steps, units) = found.checks.split_at(STEPS.len());
        let failed = |c: &&stoker_producer::report::Check| c.status == CheckStatus::Failed;
        let (of_steps, of_units) = (steps.iter().filter(failed).count(), units.iter().filter(failed).count());
        match case.end {
            End::Failed => {
                prop_assert!(of_steps <= 1 && of_steps + of_units >= 1, "{found:#?}");
                let reported = case.units.iter().take(case.asked).filter(|unit| unit.0 == Stage::UnitFailed).count();
                prop_assert!(of_units <= reported.max(1) || case.cause == Cause::UnitMissing, "{found:#?}");
            }
            End::Ready => prop_assert_eq!(of_steps + of_units, 0),
            End::Removed | End::Booting => prop_assert_eq!(of_steps, 0),
        }
        let at = steps.iter().position(|c| c.status == CheckStatus::Failed).unwrap_or(steps.len());
        let later = steps.get(at + 1..).unwrap_or_default();
        prop_assert!(later.iter().all(|c| c.status != CheckStatus::Passed), "{found:#?}");
    }

    #[test]
    fn what_a_job_does_not_have_is_never_passed_or_failed(case in case()) {
        let found = case.checks();
        let mut absent = case.setup.absent();
        absent.extend((!case.setup.disk && case.stages.contains(&Stage::DiskReady)).then_some("disk"));
        for (name, check) in STEPS.into_iter().zip(&found.checks) {
            let is_absent = check.status == CheckStatus::NotApplicable;
            prop_assert_eq!(is_absent, absent.contains(&name), "{}: {:#?}", name, found);
            prop_assert!(!is_absent || !check.note.is_empty(), "{} says why", name);
        }
        let identity = &found.checks[STEPS.len() - 1];
        prop_assert!(case.check_identity || identity.status != CheckStatus::Failed || case.end == End::Ready);
    }

    #[test]
    fn what_was_not_reached_lies_behind_what_passed(case in case()) {
        let found = case.checks();
        let steps = &found.checks[..STEPS.len()];
        let passed = steps.iter().rposition(|c| c.status == CheckStatus::Passed).unwrap_or(0);
        let before = &steps[..passed];
        prop_assert!(
            before.iter().all(|c| !matches!(c.status, CheckStatus::NotReached | CheckStatus::Pending)),
            "{found:#?}"
        );
        let is_pending = found.checks.iter().any(|c| c.status == CheckStatus::Pending);
        prop_assert!(!is_pending || case.end == End::Booting, "{found:#?}");
    }
}
