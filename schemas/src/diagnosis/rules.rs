//! The rules, strongest evidence first. Each either explains the failure or passes.

use super::evidence::evidence;
use super::silence::silent;
use super::{Cause, Confidence, Diagnosis, HostSignal, Signals, VmmSignal};
use crate::event::Stage;
use crate::limits::{MAX_TEXT_BYTES, clip};
use crate::spec::kernel_args::network_parameter;

/// What a rule found.
pub(super) struct Finding {
    cause: Cause,
    confidence: Confidence,
    summary: String,
    remedy: String,
}

type Rule = fn(&Signals) -> Option<Finding>;

const RULES: &[Rule] = &[
    host,
    vmm_start,
    panic,
    memory,
    emergency,
    vmm_end,
    conflict,
    identity,
    in_use,
    silent,
    tap,
    disk_full,
    clock,
    wanted_unit,
    dhcp,
    agent_http,
    unit,
    unanswered,
    tcp,
    address,
    slow,
];

/// Names the cause of a failed attempt.
pub fn diagnose(signals: &Signals) -> Diagnosis {
    let stage = signals.stage.unwrap_or(Stage::Accepted);
    let evidence = evidence(signals);
    match RULES.iter().find_map(|rule| rule(signals)) {
        Some(found) => Diagnosis {
            stage,
            cause: found.cause,
            confidence: Some(found.confidence),
            summary: clip(&found.summary, MAX_TEXT_BYTES),
            remedy: clip(&found.remedy, MAX_TEXT_BYTES),
            evidence,
            retryable: found.cause.retryable(),
        },
        None => Diagnosis {
            stage,
            cause: Cause::Unknown,
            confidence: None,
            summary: format!("the VM was not ready after {} ms and nothing seen explains it", signals.after_ms),
            remedy: "read the console and the evidence below; raise readiness.deadline_ms if it was still booting"
                .to_owned(),
            evidence,
            retryable: Cause::Unknown.retryable(),
        },
    }
}

pub(super) fn found(
    cause: Cause,
    confidence: Confidence,
    summary: impl Into<String>,
    remedy: impl Into<String>,
) -> Option<Finding> {
    Some(Finding { cause, confidence, summary: summary.into(), remedy: remedy.into() })
}

use Confidence::{Certain, Likely};

/// A sound agent answers in milliseconds, also on a busy host.
const HANGING_AFTER_MS: u64 = 1_000;

fn host(s: &Signals) -> Option<Finding> {
    match s.host_error.as_ref()? {
        HostSignal::Image(why) => found(
            Cause::ImageInvalid,
            Certain,
            format!("the image cannot be used: {why}"),
            "rebuild or import the image on this host, then retry",
        ),
        HostSignal::Disk(why) => {
            found(Cause::HostResource, Certain, format!("the disk overlay could not be made: {why}"), disk_remedy(why))
        }
        HostSignal::Network(why) => found(
            Cause::HostResource,
            Certain,
            format!("the VM's network could not be made: {why}"),
            "run stoker-worker doctor on the host: it names what is missing",
        ),
        HostSignal::Interrupted(why) => found(
            Cause::Interrupted,
            Certain,
            format!("the worker was gone while the VM booted: {why}"),
            "nothing: another attempt follows",
        ),
    }
}

/// The system's words say whether space is the matter; the rest carries its own way out.
fn disk_remedy(why: &str) -> &'static str {
    let no_space = ["No space left", "Disk quota exceeded"];
    if no_space.iter().any(|words| why.contains(words)) {
        "free disk space on the host (or move the data folder), then retry"
    } else {
        "run stoker-worker doctor on the host: it names what is missing"
    }
}

fn vmm_start(s: &Signals) -> Option<Finding> {
    match s.vmm.as_ref()? {
        VmmSignal::Refused(why) => found(
            Cause::HypervisorRefused,
            Certain,
            format!("the hypervisor refused the configuration: {why}"),
            "correct what its message names in the job or the image",
        ),
        VmmSignal::NotStarted(why) => found(
            Cause::HypervisorNotStarted,
            Certain,
            format!("the hypervisor could not be started: {why}"),
            "run stoker-worker doctor on the host: it names what is missing",
        ),
        VmmSignal::Exited { .. } => None,
    }
}

fn panic(s: &Signals) -> Option<Finding> {
    let text = s.kernel_panic.as_ref()?;
    let remedy = if text.contains("Unable to mount root fs") {
        "the kernel found no root file system: check rootfs, root= and the virtio drivers of the image"
    } else if text.contains("Attempted to kill init") || text.contains("No working init") {
        "init ended or is missing: look at the console just before the panic"
    } else {
        "look at the console just before the panic; a newer kernel in the image may help"
    };
    found(Cause::KernelPanic, Certain, format!("the guest's kernel panicked: {text}"), remedy)
}

fn memory(s: &Signals) -> Option<Finding> {
    let text = s.out_of_memory.as_ref()?;
    found(
        Cause::GuestOutOfMemory,
        Certain,
        format!("the guest ran out of memory: {text}"),
        "raise memory_mib, or make the image need less",
    )
}

fn emergency(s: &Signals) -> Option<Finding> {
    s.emergency_mode.then(|| Finding {
        cause: Cause::EmergencyMode,
        confidence: Certain,
        summary: "systemd entered emergency mode: something the boot depends on failed".to_owned(),
        remedy: "look for [FAILED], [DEPEND] and [ TIME ] on the console; often a mount in /etc/fstab".to_owned(),
    })
}

fn vmm_end(s: &Signals) -> Option<Finding> {
    let Some(VmmSignal::Exited { code, signal, reason }) = &s.vmm else { return None };
    if *code == Some(0) && signal.is_none() {
        return found(
            Cause::GuestExited,
            Certain,
            format!("the guest shut down or rebooted before it was ready: {reason}"),
            "look at the end of the console for what made it stop",
        );
    }
    found(
        Cause::HypervisorCrashed,
        Certain,
        format!("the hypervisor ended: {reason}"),
        "another attempt may work; if not, keep the console and report it to the hypervisor's makers",
    )
}

fn conflict(s: &Signals) -> Option<Finding> {
    let argument = s.kernel_args.split_ascii_whitespace().find(|a| network_parameter(a).is_some());
    let own = s.kernel_address;
    if own.is_none() && argument.is_none() {
        return None;
    }
    let (other, confidence) = match s.lease {
        Some(lease) if own == Some(lease) && argument.is_none() => return None,
        Some(lease) => {
            (format!("DHCP leased {lease}"), if own.is_some_and(|own| own != lease) { Certain } else { Likely })
        }
        // A VM whose kernel sets its address gets none by DHCP here; that its userland asks for one is the fault:
        // a DHCP client drops what the kernel had set.
        None if s.dhcp_asked => {
            ("its userland asks for one by DHCP".to_owned(), if own.is_some() { Certain } else { Likely })
        }
        None => return None,
    };
    let line = argument.map_or_else(|| "its kernel".to_owned(), |a| format!("the kernel line ({})", clip(a, 120)));
    found(
        Cause::ConflictingNetwork,
        confidence,
        format!(
            "eth0 has two owners: {line} sets {}, and {other}",
            own.map_or("an address".to_owned(), |o| o.to_string())
        ),
        "remove ip= from the kernel arguments of the job or image (and network.static from the job): this image gets its \
         address by DHCP",
    )
}

fn identity(s: &Signals) -> Option<Finding> {
    let who = s.probe.wrong_vm.as_ref()?;
    found(
        Cause::WrongVm,
        Certain,
        format!("another VM answers on this VM's address: {who}"),
        "find the VM with a static address on this network and give it DHCP; its id or MAC is in the evidence",
    )
}

fn in_use(s: &Signals) -> Option<Finding> {
    let summary = match (&s.declined, &s.foreign_mac) {
        (Some(address), _) => format!("another machine has {address}: the guest asked who has it, and declined it"),
        (None, Some(mac)) if !s.probe.healthy => format!("another machine answers on the VM's address, with MAC {mac}"),
        _ => return None,
    };
    let remedy =
        "find that machine on the VMs' network by its MAC and take the address from it: only Stoker gives these out";
    found(Cause::AddressInUse, Certain, summary, remedy)
}

fn disk_full(s: &Signals) -> Option<Finding> {
    let line = s.disk_full.as_ref()?;
    found(
        Cause::GuestDiskFull,
        Likely,
        format!("the guest's disk is full: {line}"),
        "raise disk_mib (where the image grows into it), or make the image's file system larger or what is on it less",
    )
}

fn clock(s: &Signals) -> Option<Finding> {
    let line = s.clock.as_ref()?;
    found(
        Cause::ClockWrong,
        Likely,
        format!("the guest's clock is off, or its certificates are: {line}"),
        "compare date in the guest with the host's; give the image an NTP client, or renew the certificate",
    )
}

fn tap(s: &Signals) -> Option<Finding> {
    if !s.has_tap || s.bridge.is_some() || s.lease.is_some() {
        return None;
    }
    found(
        Cause::TapNotBridged,
        Certain,
        "the VM's tap device is not on the bridge: no packet can reach it",
        "something on the host took it off; stop other network managers from touching st* devices",
    )
}

fn dhcp(s: &Signals) -> Option<Finding> {
    if !s.dhcp_visible || s.lease.is_some() || s.probe.healthy {
        return None;
    }
    if let Some(why) = &s.dhcp_refused {
        return found(
            Cause::DhcpUnanswered,
            Certain,
            format!("the DHCP server refused the guest: {why}"),
            "free addresses or enlarge the subnet in the worker's configuration",
        );
    }
    if s.dhcp_asked || (s.packets_from_guest > 0 && !s.dhcp_server_up) {
        return found(
            Cause::DhcpUnanswered,
            Certain,
            if s.dhcp_server_up {
                "the guest asked for an address and did not take one"
            } else {
                "the DHCP server is not running"
            },
            "look at the DHCP server's lines in the worker's log; stoker-worker doctor checks it",
        );
    }
    // Before its first unit a guest may not have come to its network: that would be a guess.
    if s.starting_units.is_empty() && (s.started_units > 0 || s.packets_from_guest > 0) {
        return found(
            Cause::NoDhcpRequest,
            Likely,
            "the guest runs and never asked for an address by DHCP",
            "enable DHCP on eth0 in the image (netplan, systemd-networkd); check that it has the virtio-net driver",
        );
    }
    None
}

fn agent_http(s: &Signals) -> Option<Finding> {
    if let Some(status) = s.probe.wrong_status {
        return found(
            Cause::AgentUnhealthy,
            Certain,
            format!("the agent answers with HTTP {status}"),
            "read the agent's own log in the guest; its body is in the evidence",
        );
    }
    if s.probe.wrong_body.is_some() {
        return found(
            Cause::WrongBody,
            Certain,
            "the agent's answer lacks the text that the job asks for",
            "correct readiness.http.body_contains, or the agent",
        );
    }
    if s.probe.read_timeout > 0 && !s.probe.healthy {
        return found(
            Cause::AgentHanging,
            Certain,
            "the agent takes connections and does not answer",
            "the agent is frozen: look at its log; restart it in the image with a watchdog",
        );
    }
    None
}

/// What the job waits for has failed: whatever else did not come, it may have come of this.
fn wanted_unit(s: &Signals) -> Option<Finding> {
    s.failed_units.iter().any(|unit| s.missing_units.contains(unit)).then(|| failed_units(s))?
}

fn failed_units(s: &Signals) -> Option<Finding> {
    let name = s.failed_units.first()?;
    found(
        Cause::UnitFailed,
        Certain,
        format!("{} failed in the guest", s.failed_units.join(", ")),
        format!(
            "read why on the console (systemd.journald.forward_to_console=1 shows it): systemctl status for {name}"
        ),
    )
}

fn unit(s: &Signals) -> Option<Finding> {
    if let Some(failed) = failed_units(s) {
        return Some(failed);
    }
    if s.probe.healthy && !s.missing_units.is_empty() {
        return found(
            Cause::UnitMissing,
            Certain,
            format!("the agent is healthy, but these units never started: {}", s.missing_units.join(", ")),
            "correct readiness.units (the text after Started on the console), or enable them in the image",
        );
    }
    None
}

/// A request that was under way in the end. What takes a connection on the user network is not the guest.
fn unanswered(s: &Signals) -> Option<Finding> {
    let ms = s.probe.unanswered_ms.filter(|ms| *ms >= HANGING_AFTER_MS)?;
    if s.probe.healthy || !s.has_tap || !s.starting_units.is_empty() {
        return None;
    }
    found(
        Cause::AgentHanging,
        Likely,
        format!("the agent took a connection and had not answered {ms} ms later, when time was up"),
        "look at the agent's log; raise readiness.deadline_ms if it had only just started",
    )
}

fn tcp(s: &Signals) -> Option<Finding> {
    let p = &s.probe;
    if p.refused == 0 || p.healthy {
        return None;
    }
    if let Some(name) = s.starting_units.first() {
        return found(
            Cause::SlowBoot,
            Likely,
            format!("time was up while {name} was still starting"),
            "raise readiness.deadline_ms or give the VM more CPU and memory",
        );
    }
    // Refused at first, and taken in the end, too late to say more.
    if s.has_tap && p.unanswered_ms.is_some() {
        return None;
    }
    found(
        Cause::AgentNotListening,
        Certain,
        "the VM has its address and nothing listens on the agent's port",
        "check that the agent is enabled, started, and bound to 0.0.0.0 and not to 127.0.0.1",
    )
}

fn address(s: &Signals) -> Option<Finding> {
    let lease = s.lease?;
    if s.probe.unreachable + s.probe.connect_timeout == 0 {
        return None;
    }
    found(
        Cause::AddressUnreachable,
        Likely,
        format!("the guest leased {lease} and does not answer on it"),
        "the guest dropped its address or firewalls the port: look at the console after the lease",
    )
}

fn slow(s: &Signals) -> Option<Finding> {
    let what = match s.starting_units.first() {
        Some(name) => format!("{name} was still starting"),
        // Half its time again, and it still came further.
        None if s.extended_ms > 0 => "the guest was still coming up".to_owned(),
        None => return None,
    };
    let remedy = "raise readiness.deadline_ms or give the VM more CPU and memory";
    found(Cause::SlowBoot, Likely, format!("time was up while {what}"), remedy)
}
