//! From what was seen of a failed boot to a sentence: stage, cause, evidence, remedy.
//!
//! A pure function of [`Signals`]. Rules are tried from the strongest evidence to the weakest, as
//! the order of looking: VMM, console, tap, DHCP, addresses, TCP, HTTP, identity. What no rule
//! explains stays [`Cause::Unknown`], with all the evidence: never a guess dressed as fact.
//!
//! | cause | what must have been seen |
//! | --- | --- |
//! | image invalid, host out of resource, interrupted | the worker's own error before or while it made the VM |
//! | hypervisor refused, not started | the VMM's words |
//! | guest silent | an empty console although the VMM runs, no packet, no DHCP request, no answer |
//! | kernel panic, guest out of memory, emergency mode | the console's line |
//! | guest shut down | the VMM ended with 0; hypervisor crashed: with anything else |
//! | conflicting network configuration | an address on (or from) the kernel line, and a DHCP request or lease |
//! | another VM answered | an answer with another id or MAC |
//! | address in use | the guest declined it; or another MAC answers for it |
//! | tap not on the bridge | a tap without a bridge, and no lease |
//! | guest disk full, clock wrong | the console's line |
//! | unit failed | `[FAILED]` or `[DEPEND]` of a unit; at once where the job waits for it |
//! | DHCP unanswered | a request or a refusal and no lease; or packets, and no DHCP server |
//! | no DHCP request | units that started, or packets, and no request |
//! | agent unhealthy, wrong body, hanging | its answer; a connection without one |
//! | unit not started | a healthy agent, and a unit that the job waits for |
//! | slow boot | a unit still starting; or a guest that came further until half its time again was up |
//! | agent not listening | a refused connection, and none taken since |
//! | lease but unreachable | a lease, and no route or no connection |

mod cause;
mod evidence;
mod rules;
mod silence;
mod stored;

use std::{fmt, net::Ipv4Addr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use cause::Cause;
pub use rules::diagnose;

use crate::event::Stage;

/// How sure a diagnosis is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// Several things could look like this.
    Likely,
    /// The system itself said so.
    Certain,
}

/// Why an attempt failed, for a person.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
pub struct Diagnosis {
    /// The last stage that was reached.
    pub stage: Stage,
    /// The cause's name.
    pub cause: Cause,
    /// How sure; absent when the cause is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<Confidence>,
    /// What happened, in a sentence.
    pub summary: String,
    /// What to do about it.
    pub remedy: String,
    /// What was seen, line by line.
    pub evidence: Vec<String>,
    /// Whether another attempt may help.
    pub retryable: bool,
}

impl Diagnosis {
    /// Of an attempt whose host tells nothing of it any more.
    pub fn host_silent(host: &crate::HostName) -> Self {
        Self {
            stage: Stage::Accepted,
            cause: Cause::Interrupted,
            confidence: Some(Confidence::Likely),
            summary: format!("host {host} has told nothing of the attempt for longer than a boot takes"),
            remedy: "check that the host and its worker run and reach the broker; what it says later still counts"
                .to_owned(),
            evidence: Vec::new(),
            retryable: true,
        }
    }
}

/// How the VMM ended, or failed to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmmSignal {
    /// It refused its configuration; its words.
    Refused(String),
    /// It could not be started; the system's words.
    NotStarted(String),
    /// It ended while the guest was to run.
    Exited {
        /// Exit code, if known.
        code: Option<i32>,
        /// Signal, if one ended it.
        signal: Option<i32>,
        /// The driver's reading of it.
        reason: String,
    },
}

impl fmt::Display for VmmSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(words) => write!(f, "refused its configuration: {words}"),
            Self::NotStarted(words) => write!(f, "could not be started: {words}"),
            Self::Exited { reason, .. } if !reason.is_empty() => write!(f, "ended: {reason}"),
            Self::Exited { signal: Some(signal), .. } => write!(f, "ended by signal {signal}"),
            Self::Exited { code: Some(code), .. } => write!(f, "ended with exit code {code}"),
            Self::Exited { .. } => f.write_str("ended, nobody knows how"),
        }
    }
}

/// Kinds of probe outcomes, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbeCounts {
    /// Connections refused.
    pub refused: u32,
    /// No route or no neighbour.
    pub unreachable: u32,
    /// No connection in time.
    pub connect_timeout: u32,
    /// Connected, no answer in time.
    pub read_timeout: u32,
    /// Connection cut.
    pub reset: u32,
    /// How long the last request had been without an answer, its connection taken, when the verdict came.
    pub unanswered_ms: Option<u64>,
    /// Last answer with another status than asked.
    pub wrong_status: Option<u16>,
    /// Beginning of the last answer whose body did not match.
    pub wrong_body: Option<String>,
    /// Who answered instead of this VM.
    pub wrong_vm: Option<String>,
    /// An answer as asked was seen.
    pub healthy: bool,
}

/// Everything seen of one attempt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Signals {
    /// The last stage that was reached.
    pub stage: Option<Stage>,
    /// Milliseconds from the attempt's start to the verdict.
    pub after_ms: u64,
    /// Of these, how many were given beyond the deadline because the guest was still coming up.
    pub extended_ms: u64,
    /// The final kernel command line.
    pub kernel_args: String,
    /// Preparing on the host failed (disk, network, image); its words.
    pub host_error: Option<HostSignal>,
    /// What the VMM did.
    pub vmm: Option<VmmSignal>,
    /// What executes the guest's code, in the driver's words (`KVM, 2,400 MIPS`).
    pub accelerator: Option<String>,
    /// The VMM's state at the verdict, as it reports it (`running`, `io-error`).
    pub vmm_status: Option<String>,
    /// It is a copy of a template: its kernel had booted before.
    pub restored: bool,
    /// Console bytes seen.
    pub console_bytes: u64,
    /// A panic's text.
    pub kernel_panic: Option<String>,
    /// An out-of-memory kill's text.
    pub out_of_memory: Option<String>,
    /// A line that says that a disk of the guest's is full.
    pub disk_full: Option<String>,
    /// A line that says that a certificate is not of this time.
    pub clock: Option<String>,
    /// Emergency or rescue mode was entered.
    pub emergency_mode: bool,
    /// Address the kernel gave itself from `ip=`.
    pub kernel_address: Option<Ipv4Addr>,
    /// How many units started: without one, nothing is known of the guest's userland.
    pub started_units: u32,
    /// Units that failed.
    pub failed_units: Vec<String>,
    /// Units asked for and not (yet) started.
    pub missing_units: Vec<String>,
    /// Units that were starting when time was up.
    pub starting_units: Vec<String>,
    /// DHCP can be observed on this network.
    pub dhcp_visible: bool,
    /// The DHCP server was running.
    pub dhcp_server_up: bool,
    /// A DISCOVER or REQUEST of this MAC was seen.
    pub dhcp_asked: bool,
    /// The server's refusal, if it refused.
    pub dhcp_refused: Option<String>,
    /// The address that the guest declined because somebody else has it.
    pub declined: Option<Ipv4Addr>,
    /// Address the server confirmed.
    pub lease: Option<Ipv4Addr>,
    /// Address that was polled.
    pub polled: Option<Ipv4Addr>,
    /// The tap's bridge; `None` when it is on none.
    pub bridge: Option<String>,
    /// There is a tap at all (not a user network).
    pub has_tap: bool,
    /// Packets the guest sent.
    pub packets_from_guest: u64,
    /// MAC that answers for the address differs from the VM's: whose it is.
    pub foreign_mac: Option<String>,
    /// Probe outcomes.
    pub probe: ProbeCounts,
}

/// What the host could not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostSignal {
    /// The image is missing or not what its manifest says.
    Image(String),
    /// Disk overlay failed.
    Disk(String),
    /// Tap, bridge or DHCP failed.
    Network(String),
    /// The worker was gone while the VM booted, and the VM ended meanwhile.
    Interrupted(String),
}

#[cfg(test)]
mod tests;
