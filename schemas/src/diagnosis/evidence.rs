//! What was seen, said in lines.

use super::{Signals, silence};
use crate::limits::{MAX_EVIDENCE, clip};
use crate::spec::kernel_args::network_parameter;

/// What was seen, as lines for people; bounded.
pub(super) fn evidence(s: &Signals) -> Vec<String> {
    let mut lines = Vec::new();
    let mut add = |line: String| lines.push(clip(&line, 300));
    if let Some(vmm) = &s.vmm {
        add(format!("hypervisor: {vmm}"));
    }
    for line in silence::lines(s) {
        add(line);
    }
    if let Some(text) = s.kernel_panic.iter().chain(&s.out_of_memory).next() {
        add(format!("console: {text}"));
    }
    for line in s.disk_full.iter().chain(&s.clock) {
        add(format!("console: {line}"));
    }
    for name in s.failed_units.iter().take(4) {
        add(format!("console: [FAILED] Failed to start {name}"));
    }
    if let Some(address) = s.kernel_address {
        add(format!("console: IP-Config: Complete, ipaddr={address}"));
    }
    if let Some(argument) = s.kernel_args.split_ascii_whitespace().find(|a| network_parameter(a).is_some()) {
        add(format!("kernel line: {argument}"));
    }
    add(match s.started_units {
        0 => format!("console: {} bytes", s.console_bytes),
        1 => format!("console: {} bytes, 1 unit started", s.console_bytes),
        n => format!("console: {} bytes, {n} units started", s.console_bytes),
    });
    if s.extended_ms > 0 {
        add(format!("deadline: {} ms more were given, because the guest was still coming up", s.extended_ms));
    }
    if s.has_tap {
        add(format!(
            "tap: on {}, {} packets from the guest",
            s.bridge.as_deref().unwrap_or("no bridge"),
            s.packets_from_guest
        ));
    }
    if s.dhcp_visible {
        add(match (&s.lease, &s.dhcp_refused) {
            _ if s.declined.is_some() => "DHCP: the guest declined its address".to_owned(),
            (Some(lease), _) => format!("DHCP: acknowledged {lease}"),
            (None, Some(why)) => format!("DHCP: refused, {why}"),
            (None, None) if s.dhcp_asked => "DHCP: asked, never acknowledged".to_owned(),
            (None, None) => "DHCP: no request seen".to_owned(),
        });
    }
    if let Some(mac) = &s.foreign_mac {
        add(format!("neighbour: the address answers with MAC {mac}"));
    }
    add(probe_line(s));
    lines.truncate(MAX_EVIDENCE);
    lines
}

fn probe_line(s: &Signals) -> String {
    let p = &s.probe;
    let counts = [
        ("refused", p.refused),
        ("unreachable", p.unreachable),
        ("connect time-out", p.connect_timeout),
        ("no answer", p.read_timeout),
        ("reset", p.reset),
    ];
    let mut seen: Vec<String> = counts.iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name} ×{n}")).collect();
    seen.extend(p.unanswered_ms.map(|ms| format!("the last one without an answer for {ms} ms when time was up")));
    seen.extend(p.wrong_status.map(|status| format!("HTTP {status}")));
    seen.extend(p.wrong_body.as_ref().map(|body| format!("body {:?}", clip(body, 120))));
    seen.extend(p.wrong_vm.as_ref().map(|who| format!("answered by {who}")));
    if p.healthy {
        seen.push("healthy".to_owned());
    }
    let polled = s.polled.map_or_else(|| "agent".to_owned(), |ip| ip.to_string());
    format!("probe of {polled}: {}", if seen.is_empty() { "not asked yet".to_owned() } else { seen.join(", ") })
}
