//! Given these signals, then this cause.

mod guesses;
mod silence;

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

const LEASE: Ipv4Addr = Ipv4Addr::new(192, 168, 100, 79);

/// A boot that got as far as a lease on a bridge.
fn leased() -> Signals {
    Signals {
        stage: Some(Stage::DhcpAck),
        console_bytes: 900,
        has_tap: true,
        bridge: Some("st0".into()),
        packets_from_guest: 4,
        dhcp_visible: true,
        dhcp_server_up: true,
        dhcp_asked: true,
        lease: Some(LEASE),
        polled: Some(LEASE),
        ..Signals::default()
    }
}

fn cause_of(change: impl FnOnce(&mut Signals)) -> Cause {
    let mut signals = leased();
    change(&mut signals);
    diagnose(&signals).cause
}

#[test]
fn the_operators_original_fault_is_named() {
    let mut s = leased();
    s.kernel_args = "console=ttyS0 ip=192.168.100.2::192.168.100.1:255.255.255.0::eth0:on".into();
    s.kernel_address = Some(Ipv4Addr::new(192, 168, 100, 2));
    s.probe.unreachable = 31;
    insta::assert_json_snapshot!(diagnose(&s));
}

#[test]
fn a_static_guest_that_asks_for_a_lease_has_two_owners_of_its_network() {
    let address = Ipv4Addr::new(192, 168, 100, 2);
    let mut s = Signals { lease: None, polled: Some(address), ..leased() };
    s.kernel_args = "console=ttyS0 ip=192.168.100.2::192.168.100.1:255.255.255.0::eth0:off".into();
    s.dhcp_refused = Some("no address available".into());
    s.probe.connect_timeout = 528;
    let found = diagnose(&s);
    assert_eq!((found.cause, found.confidence), (Cause::ConflictingNetwork, Some(Confidence::Likely)));
    s.kernel_address = Some(address);
    assert_eq!(diagnose(&s).confidence, Some(Confidence::Certain));
    // A static guest that asks for nothing is one owner's, whatever else is wrong with it.
    (s.dhcp_asked, s.dhcp_refused) = (false, None);
    assert_ne!(diagnose(&s).cause, Cause::ConflictingNetwork);
}

/// Refused while it booted, and taken in the end: nobody may say that nothing listens.
#[test]
fn a_connection_taken_late_is_not_called_refused() {
    let late = |ms: u64, has_tap: bool| {
        cause_of(|s| {
            s.probe.refused = 9;
            s.probe.unanswered_ms = Some(ms);
            s.has_tap = has_tap;
            s.bridge = Some("stbr0".into());
        })
    };
    assert_eq!(late(1_500, true), Cause::AgentHanging);
    assert_eq!(late(200, true), Cause::Unknown);
    // The user network takes every connection.
    assert_eq!(late(1_500, false), Cause::AgentNotListening);
}

#[test]
fn each_kind_of_evidence_has_its_cause() {
    let no_lease = |s: &mut Signals| {
        s.lease = None;
        s.dhcp_asked = false;
        s.stage = Some(Stage::KernelStarted);
    };
    let table: Vec<(Cause, Cause)> = vec![
        (Cause::AgentNotListening, cause_of(|s| s.probe.refused = 9)),
        (Cause::AgentHanging, cause_of(|s| s.probe.read_timeout = 3)),
        (Cause::AgentUnhealthy, cause_of(|s| s.probe.wrong_status = Some(503))),
        (Cause::WrongBody, cause_of(|s| s.probe.wrong_body = Some("no".into()))),
        (Cause::WrongVm, cause_of(|s| s.probe.wrong_vm = Some("another".into()))),
        (Cause::AddressUnreachable, cause_of(|s| s.probe.unreachable = 7)),
        (Cause::KernelPanic, cause_of(|s| s.kernel_panic = Some("Kernel panic - not syncing: x".into()))),
        (Cause::GuestOutOfMemory, cause_of(|s| s.out_of_memory = Some("Out of memory".into()))),
        (Cause::EmergencyMode, cause_of(|s| s.emergency_mode = true)),
        (
            Cause::UnitFailed,
            cause_of(|s| {
                s.probe.refused = 1;
                s.failed_units = vec!["Agent".into()]
            }),
        ),
        (
            Cause::UnitMissing,
            cause_of(|s| {
                s.probe.healthy = true;
                s.missing_units = vec!["Xvfb".into()]
            }),
        ),
        (
            Cause::SlowBoot,
            cause_of(|s| {
                s.probe.refused = 1;
                s.starting_units = vec!["Agent".into()]
            }),
        ),
        (Cause::NoDhcpRequest, cause_of(no_lease)),
        (
            Cause::DhcpUnanswered,
            cause_of(|s| {
                no_lease(s);
                s.dhcp_asked = true
            }),
        ),
        (
            Cause::DhcpUnanswered,
            cause_of(|s| {
                no_lease(s);
                s.dhcp_refused = Some("no address available".into())
            }),
        ),
        (
            Cause::TapNotBridged,
            cause_of(|s| {
                no_lease(s);
                s.bridge = None
            }),
        ),
        (Cause::HypervisorRefused, cause_of(|s| s.vmm = Some(VmmSignal::Refused("x".into())))),
        (Cause::HypervisorNotStarted, cause_of(|s| s.vmm = Some(VmmSignal::NotStarted("x".into())))),
        (
            Cause::HypervisorCrashed,
            cause_of(|s| s.vmm = Some(VmmSignal::Exited { code: None, signal: Some(11), reason: "x".into() })),
        ),
        (
            Cause::GuestExited,
            cause_of(|s| s.vmm = Some(VmmSignal::Exited { code: Some(0), signal: None, reason: "x".into() })),
        ),
        (Cause::ImageInvalid, cause_of(|s| s.host_error = Some(HostSignal::Image("x".into())))),
        (Cause::HostResource, cause_of(|s| s.host_error = Some(HostSignal::Disk("x".into())))),
        (Cause::Interrupted, cause_of(|s| s.host_error = Some(HostSignal::Interrupted("x".into())))),
    ];
    for (expected, got) in table {
        assert_eq!(expected, got);
    }
}

#[test]
fn space_is_asked_for_only_where_space_is_the_matter() {
    let remedy =
        |why: &str| diagnose(&Signals { host_error: Some(HostSignal::Disk(why.into())), ..Signals::default() }).remedy;
    assert!(remedy("write /data/disk.raw: No space left on device (os error 28)").starts_with("free disk space"));
    assert!(remedy("qemu-img could not be started: No such file or directory").contains("doctor"));
}

#[test]
fn nothing_seen_is_unknown_and_says_so() {
    let d = diagnose(&Signals { after_ms: 5_000, ..Signals::default() });
    assert_eq!((d.cause, d.confidence), (Cause::Unknown, None));
    assert!(!d.evidence.is_empty());
}

proptest! {
    #[test]
    fn hostile_text_stays_bounded(text in ".{0,5000}", refused: u32, read_timeout: u32) {
        let mut s = leased();
        s.kernel_panic = Some(text.clone());
        s.failed_units = vec![text.clone(); 40];
        s.kernel_args = text;
        s.probe.refused = refused;
        s.probe.read_timeout = read_timeout;
        let d = diagnose(&s);
        prop_assert!(d.summary.len() <= 1_100 && d.evidence.len() <= 16);
        prop_assert!(d.evidence.iter().all(|line| line.len() <= 310));
    }
}
