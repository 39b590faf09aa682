//! An empty console: the kernel does not write to the serial port, or it never started.

use super::rules::{Finding, found};
use super::{Cause, Confidence, Signals};
use crate::event::Stage;
use crate::limits::clip;

/// Before that, a kernel may not have come to its console yet, on a busy host with an emulated processor.
const SILENT_AFTER_MS: u64 = 2_000;

/// An empty console although the VMM ran, and no other sign of life.
pub(super) fn silent(s: &Signals) -> Option<Finding> {
    if !is_silent(s) {
        return None;
    }
    let empty = format!("the console is still empty after {} ms", s.after_ms);
    if is_unheard(s) {
        return likely(
            format!("{empty}, and the kernel line has no console= for the VMM's serial port"),
            "the kernel may be running without a console: add console=ttyS0 to kernel_args in image.json",
        );
    }
    let under = s.accelerator.as_ref().map(|name| format!(" under {}", clip(name, 120))).unwrap_or_default();
    let remedy = if under_kvm(s) {
        "set accel = \"tcg\" (--accel tcg) if the host runs QEMU, or run stoker-worker doctor, which measures KVM; \
         if other images boot there, check this image's kernel"
    } else {
        "check that the image's kernel is an uncompressed x86-64 ELF file (vmlinux, not bzImage) with a PVH or 64-bit \
         entry point and a driver for the serial port (CONFIG_SERIAL_8250_CONSOLE)"
    };
    likely(format!("{empty}: the kernel did not start{under}"), remedy)
}

fn likely(summary: String, remedy: &str) -> Option<Finding> {
    found(Cause::GuestSilent, Confidence::Likely, summary, remedy)
}

/// Whether the VMM ran the guest and nothing at all was seen of it.
fn is_silent(s: &Signals) -> bool {
    let ran = s.stage >= Some(Stage::Spawned) && s.vmm.is_none() && s.after_ms >= SILENT_AFTER_MS;
    // A copy of a template printed its kernel's lines before the template was saved.
    let silent = s.console_bytes == 0 && !s.restored;
    ran && silent && !is_alive(s)
}

/// Signs of life other than the console.
fn is_alive(s: &Signals) -> bool {
    let p = &s.probe;
    let answered = p.healthy || p.wrong_status.is_some() || p.wrong_body.is_some() || p.wrong_vm.is_some();
    let asked = s.dhcp_asked || s.dhcp_refused.is_some() || s.declined.is_some() || s.lease.is_some();
    // On a user network QEMU takes every connection itself, with or without a guest behind it.
    let connected = s.has_tap && (p.refused > 0 || p.read_timeout > 0 || p.reset > 0 || p.unanswered_ms.is_some());
    answered || asked || connected || s.packets_from_guest > 0
}

/// Whether the kernel has no console on the VMM's serial port. An unknown kernel line does not count.
fn is_unheard(s: &Signals) -> bool {
    !s.kernel_args.trim().is_empty() && !consoles(s).any(is_serial)
}

/// The console arguments on the kernel line, early consoles included.
fn consoles(s: &Signals) -> impl Iterator<Item = &str> {
    let names = ["console=", "earlyprintk=", "earlycon="];
    s.kernel_args.split_ascii_whitespace().filter(move |argument| names.iter().any(|name| argument.starts_with(name)))
}

/// Whether this argument names the first serial port, the only one that VMs have.
fn is_serial(argument: &str) -> bool {
    let value = argument.split_once('=').map_or("", |(_, value)| value);
    value.split(',').any(|part| part == "ttyS0" || part.starts_with("uart"))
}

fn under_kvm(s: &Signals) -> bool {
    s.accelerator.as_ref().is_some_and(|name| name.trim_start().to_ascii_uppercase().starts_with("KVM"))
}

/// The evidence that tells the two reasons apart.
pub(super) fn lines(s: &Signals) -> Vec<String> {
    let mut lines = Vec::new();
    lines.extend(s.accelerator.as_ref().map(|name| format!("accelerator: {name}")));
    if is_silent(s) {
        let consoles: Vec<_> = consoles(s).collect();
        lines.push(match consoles.as_slice() {
            _ if s.kernel_args.trim().is_empty() => "kernel line: unknown".to_owned(),
            [] => "kernel line: no console=".to_owned(),
            some => format!("kernel line: {}", some.join(" ")),
        });
    }
    lines.extend(s.vmm_status.as_ref().map(|status| format!("hypervisor state: {status}")));
    lines
}
