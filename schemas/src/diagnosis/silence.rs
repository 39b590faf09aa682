//! A console without one byte: no console on the serial port, or a kernel that never started.

use super::rules::{Finding, found};
use super::{Cause, Confidence, Signals};
use crate::event::Stage;
use crate::limits::clip;

/// Not one byte from a guest that the VMM was running, and no other sign of life either.
pub(super) fn silent(s: &Signals) -> Option<Finding> {
    if !is_silent(s) {
        return None;
    }
    let after = s.after_ms;
    let accelerator = s.accelerator.as_ref().map(|name| format!(" under {}", clip(name, 120))).unwrap_or_default();
    let (summary, remedy) = if is_unheard(s) {
        let summary = format!(
            "not one byte on the console after {after} ms, and the kernel line has no console= that the serial port shows"
        );
        (summary, "the kernel may run, nobody can see it: add console=ttyS0 to kernel_args of image.json")
    } else if under_kvm(s) {
        let summary =
            format!("not one byte on the console after {after} ms{accelerator}: the kernel has not started to run");
        (
            summary,
            "set accel = \"tcg\" (--accel tcg) on the host, if its hypervisor is QEMU, or run stoker-worker doctor, \
             which measures KVM; if other images boot there, check this one's kernel",
        )
    } else {
        let summary =
            format!("not one byte on the console after {after} ms{accelerator}: the kernel has not started to run");
        (
            summary,
            "check that the image's kernel is an uncompressed x86-64 ELF file (vmlinux, not bzImage) with a PVH or \
             64-bit boot entry and a driver for the serial port (CONFIG_SERIAL_8250_CONSOLE)",
        )
    };
    found(Cause::GuestSilent, Confidence::Likely, summary, remedy)
}

/// Whether the VMM ran a guest of which nothing at all was seen.
fn is_silent(s: &Signals) -> bool {
    let ran = s.stage >= Some(Stage::Spawned) && s.vmm.is_none();
    // Printed before the template was saved, and not again by its copies.
    let silent = s.console_bytes == 0 && !s.restored;
    ran && silent && !is_alive(s)
}

/// Signs of life other than the console.
fn is_alive(s: &Signals) -> bool {
    let p = &s.probe;
    let answered = p.healthy || p.wrong_status.is_some() || p.wrong_body.is_some() || p.wrong_vm.is_some();
    let asked = s.dhcp_asked || s.dhcp_refused.is_some() || s.declined.is_some() || s.lease.is_some();
    // On a user network QEMU takes every connection itself, whether there is a guest behind it or not.
    let connected = s.has_tap && (p.refused > 0 || p.read_timeout > 0 || p.reset > 0 || p.unanswered_ms.is_some());
    answered || asked || connected || s.packets_from_guest > 0
}

/// Whether the kernel has no console where the VMM listens. Of a line that is not known, nothing is said.
fn is_unheard(s: &Signals) -> bool {
    !s.kernel_args.trim().is_empty() && !consoles(s).any(is_serial)
}

/// The kernel line's consoles, early ones included.
fn consoles(s: &Signals) -> impl Iterator<Item = &str> {
    let names = ["console=", "earlyprintk=", "earlycon="];
    s.kernel_args.split_ascii_whitespace().filter(move |argument| names.iter().any(|name| argument.starts_with(name)))
}

/// Whether this argument writes to the first serial port, the only one there is.
fn is_serial(argument: &str) -> bool {
    let value = argument.split_once('=').map_or("", |(_, value)| value);
    value.split(',').any(|part| part == "ttyS0" || part.starts_with("uart"))
}

fn under_kvm(s: &Signals) -> bool {
    s.accelerator.as_ref().is_some_and(|name| name.trim_start().to_ascii_uppercase().starts_with("KVM"))
}

/// What tells the two reasons apart.
pub(super) fn lines(s: &Signals) -> Vec<String> {
    let mut lines = Vec::new();
    lines.extend(s.accelerator.as_ref().map(|name| format!("accelerator: {name}")));
    if is_silent(s) {
        let consoles: Vec<_> = consoles(s).collect();
        lines.push(match consoles.as_slice() {
            _ if s.kernel_args.trim().is_empty() => "kernel line: not known".to_owned(),
            [] => "kernel line: console= none".to_owned(),
            some => format!("kernel line: {}", some.join(" ")),
        });
    }
    lines.extend(s.vmm_status.as_ref().map(|status| format!("hypervisor: says {status}")));
    lines
}
