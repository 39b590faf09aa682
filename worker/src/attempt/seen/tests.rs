//! From a console's bytes to a sentence.

use proptest::prelude::*;
use stoker_schemas::diagnosis::{Cause, diagnose};
use stoker_schemas::{JobSpec, Time, VmId};

use super::*;
use crate::attempt::Whose;
use crate::console::Parser;

fn seen() -> Seen {
    let spec = JobSpec::from_value(&serde_json::json!({
        "image": "x", "readiness": {"units": ["VM Browser OAuth Agent"]}
    }));
    let (vm, address) = (VmId(uuid::Uuid::nil()), "192.168.100.2".parse().ok());
    let plan = Plan { whose: Whose::Nobody, vm, spec: spec.unwrap(), address, started_at: Time::UNIX_EPOCH };
    Seen::new(Clock::system(), &plan)
}

/// Lines as guests write them, whole, cut short or with something in between.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let known = prop_oneof![
        Just("[  OK  ] Started VM Browser OAuth Agent.\n"),
        Just("[FAILED] Failed to start VM Browser OAuth Agent.\n"),
        Just("[DEPEND] Dependency failed for Local File Systems.\n"),
        Just("         Starting VM Browser OAuth Agent...\n"),
        Just("IP-Config: Complete:\n"),
        Just("     device=eth0, ipaddr=192.168.100.2, mask=255.255.255.0\n"),
        Just("Kernel panic - not syncing: Attempted to kill init! exitcode=0x0\n"),
        Just("Out of memory: Killed process 321 (node)\n"),
        Just("You are in emergency mode. After logging in\n"),
        Just("dd: error writing '/x': No space left on device\n"),
        Just("error 9 at 0 depth lookup: certificate is not yet valid\n"),
    ];
    let noise = proptest::collection::vec(any::<u8>(), 0..60);
    prop_oneof![
        3 => known.clone().prop_map(|text| text.as_bytes().to_vec()),
        1 => (known, any::<prop::sample::Index>(), noise.clone()).prop_map(|(text, at, noise)| {
            let (head, tail) = text.as_bytes().split_at(at.index(text.len()));
            [head, &noise, tail].concat()
        }),
        2 => noise,
    ]
}

fn network() -> impl Strategy<Value = NetSignal> {
    let address = (0u8..4).prop_map(|last| Ipv4Addr::new(192, 168, 100, last));
    prop_oneof![
        Just(NetSignal::Discover),
        address.clone().prop_map(NetSignal::Offer),
        address.clone().prop_map(NetSignal::Request),
        address.clone().prop_map(NetSignal::Ack),
        address.prop_map(NetSignal::Declined),
        "[ -~]{0,40}".prop_map(NetSignal::Refused),
    ]
}

/// The words that must stand in a console for a cause that rests on them.
fn words(cause: Cause) -> Option<&'static [&'static str]> {
    Some(match cause {
        Cause::KernelPanic => &["Kernel panic - not syncing:"],
        Cause::GuestOutOfMemory => &["Out of memory:"],
        Cause::EmergencyMode => &["emergency mode"],
        Cause::GuestDiskFull => &["No space left on device"],
        Cause::ClockWrong => &["certificate"],
        Cause::UnitFailed => &["[FAILED]", "[DEPEND]"],
        Cause::SlowBoot => &["Starting "],
        _ => return None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    /// From bytes to a sentence: whatever a guest writes and sends, nothing falls, nothing grows without
    /// bound, and what is named was there.
    #[test]
    fn any_console_and_network_is_diagnosed_without_a_guess(
        lines in proptest::collection::vec(line(), 0..30),
        told in proptest::collection::vec(network(), 0..12),
        sees_dhcp in any::<bool>(),
    ) {
        let (mut seen, mut parser) = (seen(), Parser::default());
        let console = lines.concat();
        parser.feed(&console, &mut |event| seen.console(event));
        parser.finish(&mut |event| seen.console(event));
        for signal in &told {
            seen.net(signal.clone());
        }
        let evidence = NetEvidence { bridge: Some("st0".to_owned()), dhcp_server_up: true, ..NetEvidence::default() };
        let found = diagnose(&seen.signals(Some(&evidence), console.len() as u64, sees_dhcp));
        // What is no text, and escapes, are taken out of a line before it is read.
        let is_text = |c: &char| !c.is_control() && *c != char::REPLACEMENT_CHARACTER;
        let plain: String = String::from_utf8_lossy(&console).chars().filter(is_text).collect();
        if let Some(words) = words(found.cause) {
            let there = words.iter().any(|words| plain.contains(words)) || console.contains(&0x1b);
            prop_assert!(there, "{found:#?} of {plain:?}");
        }
        if found.cause == Cause::AddressInUse {
            prop_assert!(told.iter().any(|signal| matches!(signal, NetSignal::Declined(_))));
        }
        prop_assert!(found.evidence.iter().all(|line| line.len() <= 310), "{found:#?}");
    }
}
