//! Whatever is seen, a cause is named only where its evidence is there: never a guess.

use super::*;

/// What must have been seen for a cause to be named: the table of `diagnosis`'s documentation.
fn is_supported(cause: Cause, s: &Signals) -> bool {
    let p = &s.probe;
    let argument = s.kernel_args.contains("ip=");
    match cause {
        Cause::ConflictingNetwork => (argument || s.kernel_address.is_some()) && (s.lease.is_some() || s.dhcp_asked),
        Cause::NoDhcpRequest => {
            s.dhcp_visible && !s.dhcp_asked && s.lease.is_none() && (s.started_units > 0 || s.packets_from_guest > 0)
        }
        Cause::DhcpUnanswered => {
            s.lease.is_none()
                && (s.dhcp_asked || s.dhcp_refused.is_some() || (!s.dhcp_server_up && s.packets_from_guest > 0))
        }
        Cause::TapNotBridged => s.has_tap && s.bridge.is_none(),
        Cause::AddressUnreachable => s.lease.is_some() && p.unreachable + p.connect_timeout > 0,
        Cause::AgentNotListening => p.refused > 0,
        Cause::AgentHanging => p.read_timeout > 0 || p.unanswered_ms.is_some(),
        Cause::AgentUnhealthy => p.wrong_status.is_some(),
        Cause::WrongBody => p.wrong_body.is_some(),
        Cause::WrongVm => p.wrong_vm.is_some(),
        Cause::AddressInUse => s.declined.is_some() || s.foreign_mac.is_some(),
        Cause::GuestDiskFull => s.disk_full.is_some(),
        Cause::ClockWrong => s.clock.is_some(),
        Cause::UnitFailed => !s.failed_units.is_empty(),
        Cause::UnitMissing => !s.missing_units.is_empty() && p.healthy,
        Cause::GuestSilent => s.console_bytes == 0 && s.packets_from_guest == 0 && s.vmm.is_none() && s.lease.is_none(),
        Cause::KernelPanic => s.kernel_panic.is_some(),
        Cause::GuestOutOfMemory => s.out_of_memory.is_some(),
        Cause::EmergencyMode => s.emergency_mode,
        Cause::SlowBoot => !s.starting_units.is_empty() || s.extended_ms > 0,
        Cause::GuestExited => matches!(s.vmm, Some(VmmSignal::Exited { code: Some(0), signal: None, .. })),
        Cause::HypervisorCrashed => matches!(s.vmm, Some(VmmSignal::Exited { .. })),
        Cause::HypervisorRefused => matches!(s.vmm, Some(VmmSignal::Refused(_))),
        Cause::HypervisorNotStarted => matches!(s.vmm, Some(VmmSignal::NotStarted(_))),
        Cause::ImageInvalid => matches!(s.host_error, Some(HostSignal::Image(_))),
        Cause::HostResource => matches!(s.host_error, Some(HostSignal::Disk(_) | HostSignal::Network(_))),
        Cause::Interrupted => matches!(s.host_error, Some(HostSignal::Interrupted(_))),
        Cause::Unknown => true,
    }
}

/// Seldom there, as most signs are in a real boot: else the strongest rule would answer each time.
fn seldom<T: fmt::Debug + Clone + 'static>(value: impl Strategy<Value = T> + 'static) -> BoxedStrategy<Option<T>> {
    prop_oneof![5 => Just(None), 1 => value.prop_map(Some)].boxed()
}

fn text() -> BoxedStrategy<String> {
    prop_oneof!["[ -~]{0,40}", Just("VM Browser OAuth Agent".to_owned()), ".{0,300}"].boxed()
}

fn units() -> BoxedStrategy<Vec<String>> {
    prop_oneof![3 => Just(Vec::new()), 1 => proptest::collection::vec(text(), 1..4)].boxed()
}

fn count() -> BoxedStrategy<u32> {
    prop_oneof![3 => Just(0), 1 => 1u32..2_000].boxed()
}

fn address() -> BoxedStrategy<Ipv4Addr> {
    (0u8..4).prop_map(|last| Ipv4Addr::new(192, 168, 100, last)).boxed()
}

fn vmm() -> BoxedStrategy<VmmSignal> {
    let exited = (seldom(0i32..160), seldom(1i32..32), text());
    prop_oneof![
        text().prop_map(VmmSignal::Refused),
        text().prop_map(VmmSignal::NotStarted),
        exited.prop_map(|(code, signal, reason)| VmmSignal::Exited { code, signal, reason }),
    ]
    .boxed()
}

fn host_error() -> BoxedStrategy<HostSignal> {
    prop_oneof![
        text().prop_map(HostSignal::Image),
        text().prop_map(HostSignal::Disk),
        text().prop_map(HostSignal::Network),
        text().prop_map(HostSignal::Interrupted),
    ]
    .boxed()
}

fn probes() -> impl Strategy<Value = ProbeCounts> {
    let counts = [count(), count(), count(), count(), count()];
    let unanswered = seldom(0u64..5_000);
    (counts, unanswered, seldom(100u16..600), seldom(text()), seldom(text()), any::<bool>()).prop_map(
        |(
            [refused, unreachable, connect_timeout, read_timeout, reset],
            unanswered_ms,
            wrong_status,
            wrong_body,
            wrong_vm,
            healthy,
        )| {
            ProbeCounts {
                refused,
                unreachable,
                connect_timeout,
                read_timeout,
                reset,
                unanswered_ms,
                wrong_status,
                wrong_body,
                wrong_vm,
                healthy,
            }
        },
    )
}

prop_compose! {
    fn signals()(
        (kernel_args, host_error, vmm, probe) in (prop_oneof![
            Just("console=ttyS0".to_owned()),
            Just("ip=192.168.100.2::192.168.100.1:255.255.255.0::eth0:off".to_owned()),
        ], seldom(host_error()), seldom(vmm()), probes()),
        (kernel_panic, out_of_memory, kernel_address) in (seldom(text()), seldom(text()), seldom(address())),
        (failed_units, missing_units, starting_units) in (units(), units(), units()),
        (started_units, packets) in (count(), count()),
        (dhcp_refused, lease, polled) in (seldom(text()), seldom(address()), seldom(address())),
        (bridge, foreign_mac) in (seldom(text()), seldom(text())),
        [emergency_mode, dhcp_visible, dhcp_server_up, dhcp_asked, has_tap] in any::<[bool; 5]>(),
        (after_ms, extended_ms, console_bytes) in (any::<u64>(), prop_oneof![Just(0), any::<u64>()], prop_oneof![Just(0), any::<u64>()]),
        (stage, restored) in (seldom(Just(Stage::Spawned)), any::<bool>()),
        (disk_full, clock, declined) in (seldom(text()), seldom(text()), seldom(address())),
    ) -> Signals {
        Signals {
            stage, accelerator: None, vmm_status: None, restored, after_ms, extended_ms, disk_full, clock, declined, kernel_args, host_error, vmm, console_bytes, kernel_panic, out_of_memory,
            emergency_mode, kernel_address, started_units, failed_units, missing_units, starting_units, dhcp_visible,
            dhcp_server_up, dhcp_asked, dhcp_refused, lease, polled, bridge, has_tap,
            packets_from_guest: u64::from(packets), foreign_mac, probe,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn a_cause_is_named_only_with_its_evidence(s in signals()) {
        let found = diagnose(&s);
        prop_assert!(is_supported(found.cause, &s), "{found:#?} of {s:#?}");
        prop_assert!(found.summary.len() <= 1_100 && found.remedy.len() <= 1_100 && found.evidence.len() <= 16);
        prop_assert!(found.evidence.iter().all(|line| line.len() <= 310));
        prop_assert!(!found.evidence.is_empty() && !found.remedy.is_empty());
    }
}
