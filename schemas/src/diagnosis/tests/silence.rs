//! Given an empty console, then `guest_silent`, unless anything else of the guest was seen.

use super::*;

/// The VMM runs, on a bridge; nothing came of the guest.
fn silent() -> Signals {
    Signals {
        stage: Some(Stage::Spawned),
        after_ms: 120_000,
        kernel_args: "console=ttyS0 stoker.vm_id=1".into(),
        accelerator: Some("KVM, 2,400 MIPS".into()),
        vmm_status: Some("running".into()),
        has_tap: true,
        bridge: Some("st0".into()),
        dhcp_visible: true,
        dhcp_server_up: true,
        ..Signals::default()
    }
}

/// The same behind QEMU's own network.
fn on_a_user_network() -> Signals {
    Signals { has_tap: false, bridge: None, dhcp_visible: false, dhcp_server_up: false, ..silent() }
}

fn cause(mut s: Signals, change: impl FnOnce(&mut Signals)) -> Cause {
    change(&mut s);
    diagnose(&s).cause
}

#[test]
fn under_kvm_the_accelerator_is_suspected() {
    let mut s = silent();
    s.probe.unreachable = 30;
    insta::assert_json_snapshot!(diagnose(&s));
}

#[test]
fn under_tcg_the_kernel_is_suspected() {
    let s = Signals { accelerator: Some("TCG (KVM runs 3 MIPS)".into()), ..silent() };
    insta::assert_json_snapshot!(diagnose(&s));
    let of_a_driver_that_does_not_say = Signals { accelerator: None, ..silent() };
    assert_eq!(diagnose(&of_a_driver_that_does_not_say).remedy, diagnose(&s).remedy);
}

#[test]
fn without_a_console_on_the_serial_port_its_absence_is_named() {
    insta::assert_json_snapshot!(diagnose(&Signals { kernel_args: "quiet console=tty0".into(), ..silent() }));
    let remedy = |args: &str| diagnose(&Signals { kernel_args: args.into(), ..silent() }).remedy;
    for unheard in ["quiet", "console=hvc0", "console=ttyS1", "console=ttyS01", "xconsole=ttyS0"] {
        assert!(remedy(unheard).contains("add console=ttyS0"), "{unheard}");
    }
    // An unknown kernel line (an adopted VM whose image is gone) is not a line without a console.
    let heard = ["console=ttyS0", "quiet console=tty0 console=ttyS0,115200n8", "console=uart8250,io,0x3f8", "", " "];
    for heard in heard.into_iter().chain(["earlyprintk=serial,ttyS0,115200"]) {
        assert!(!remedy(heard).contains("add console=ttyS0"), "{heard}");
    }
}

#[test]
fn a_silent_guest_is_worth_a_retry() {
    let d = diagnose(&silent());
    assert_eq!((d.cause, d.confidence, d.retryable), (Cause::GuestSilent, Some(Confidence::Likely), true));
}

#[test]
fn a_tap_off_the_bridge_does_not_silence_a_console() {
    assert_eq!(cause(silent(), |s| s.bridge = None), Cause::GuestSilent);
    // A guest that runs sends packets, whether its tap is on a bridge or not.
    let off = |s: &mut Signals| (s.bridge, s.packets_from_guest) = (None, 3);
    assert_eq!(cause(silent(), off), Cause::TapNotBridged);
}

#[test]
fn a_guest_that_shows_itself_elsewhere_is_not_silent() {
    type Change = fn(&mut Signals);
    let seen: [(Cause, Change); 9] = [
        (Cause::NoDhcpRequest, |s| s.packets_from_guest = 2),
        (Cause::DhcpUnanswered, |s| s.dhcp_asked = true),
        (Cause::DhcpUnanswered, |s| s.dhcp_refused = Some("no address available".into())),
        (Cause::AddressInUse, |s| s.declined = Some(LEASE)),
        (Cause::AgentNotListening, |s| s.probe.refused = 4),
        (Cause::AgentHanging, |s| s.probe.read_timeout = 2),
        (Cause::AgentUnhealthy, |s| s.probe.wrong_status = Some(503)),
        (Cause::Unknown, |s| s.probe.reset = 1),
        (Cause::WrongVm, |s| s.probe.wrong_vm = Some("another".into())),
    ];
    for (expected, change) in seen {
        assert_eq!(cause(silent(), change), expected);
    }
}

#[test]
fn an_image_without_a_console_that_takes_a_lease_runs() {
    let leased = |s: &mut Signals| {
        s.kernel_args = "quiet".into();
        (s.stage, s.packets_from_guest, s.dhcp_asked, s.lease) = (Some(Stage::DhcpAck), 4, true, Some(LEASE));
        s.probe.refused = 9;
    };
    assert_eq!(cause(silent(), leased), Cause::AgentNotListening);
}

#[test]
fn a_vmm_that_did_not_run_is_not_a_silent_guest() {
    let exited = |code, signal| Some(VmmSignal::Exited { code, signal, reason: "x".into() });
    assert_eq!(cause(silent(), |s| s.vmm = exited(Some(0), None)), Cause::GuestExited);
    assert_eq!(cause(silent(), |s| s.vmm = exited(None, Some(9))), Cause::HypervisorCrashed);
    assert_eq!(cause(silent(), |s| s.vmm = Some(VmmSignal::Refused("x".into()))), Cause::HypervisorRefused);
    assert_eq!(cause(silent(), |s| s.host_error = Some(HostSignal::Network("x".into()))), Cause::HostResource);
    assert_eq!(cause(silent(), |s| s.stage = Some(Stage::NetworkReady)), Cause::Unknown);
}

#[test]
fn a_copy_of_a_template_prints_nothing_and_is_not_called_silent() {
    assert_eq!(cause(silent(), |s| s.restored = true), Cause::Unknown);
}

#[test]
fn on_a_user_network_only_an_answer_is_a_sign_of_life() {
    // QEMU itself takes the connections.
    let taken = |s: &mut Signals| {
        (s.probe.read_timeout, s.probe.reset, s.probe.refused, s.probe.unanswered_ms) = (3, 2, 1, Some(4_000));
    };
    assert_eq!(cause(on_a_user_network(), taken), Cause::GuestSilent);
    assert_eq!(cause(on_a_user_network(), |s| s.probe.wrong_status = Some(503)), Cause::AgentUnhealthy);
    let healthy = |s: &mut Signals| (s.probe.healthy, s.missing_units) = (true, vec!["Xvfb".into()]);
    assert_eq!(cause(on_a_user_network(), healthy), Cause::UnitMissing);
}

/// What an early version wrote beside a cause that it did not know.
#[test]
fn an_unknown_cause_is_read_without_a_confidence() {
    let mut written = serde_json::to_value(diagnose(&silent())).unwrap();
    let read = |value: &serde_json::Value| serde_json::from_value::<Diagnosis>(value.clone()).unwrap();
    assert_eq!(read(&written), diagnose(&silent()));
    written["cause"] = "unknown".into();
    assert_eq!(read(&written).confidence, None);
    assert!(serde_json::to_value(read(&written)).unwrap().get("confidence").is_none());
}

#[test]
fn a_verdict_that_comes_early_says_nothing_of_an_empty_console() {
    assert_eq!(cause(silent(), |s| s.after_ms = 1_999), Cause::Unknown);
    assert_eq!(cause(silent(), |s| s.after_ms = 2_000), Cause::GuestSilent);
}
