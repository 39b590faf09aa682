//! About one try and its VM.

use std::net::{Ipv4Addr, SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::diagnosis::Diagnosis;
use crate::id::{HostName, VmId};
use crate::image::Driver;
use crate::spec::JobSpec;
use crate::time::Time;

payload! {
    /// Payload of `attempt.started`. Carries the spec: a stream can be refilled from it.
    struct AttemptStarted {
        /// Where.
        host: HostName,
        /// The VM that will run.
        vm: VmId,
        /// With which hypervisor.
        driver: Driver,
        /// Address from the host's pool; absent on a user network.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<Ipv4Addr>,
        /// What to boot.
        spec: JobSpec,
        /// When the job was first enqueued.
        enqueued_at: Time,
        /// When an attempt was last asked for by hand, by the asker's clock. Decides nothing, except about
        /// requests of an older Stoker, which do not say what their asker knew.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        asked_at: Option<Time>,
        /// The latest attempt asked for by hand; 0 for none. Travels with the job, so that a host that knows
        /// of a cancellation which that attempt overtook does not cancel the job again.
        #[serde(default, skip_serializing_if = "super::job::is_zero")]
        asked_attempt: u32,
    }
}

/// How far a boot has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// A host took the job.
    Accepted,
    /// The disk overlay is there, or the VM has no disk.
    DiskReady,
    /// Tap, reservation and bridge are there.
    NetworkReady,
    /// The VMM runs the guest.
    Spawned,
    /// First byte on the console.
    KernelStarted,
    /// The guest looks for a DHCP server.
    DhcpRequested,
    /// The guest has its address.
    DhcpAck,
    /// A TCP connection to the agent worked.
    AgentConnected,
    /// The agent answered as asked.
    AgentHealthy,
    /// A unit started (named in the detail).
    UnitStarted,
    /// A unit failed (named in the detail).
    UnitFailed,
}

impl Stage {
    /// Its name, as in data.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::DiskReady => "disk_ready",
            Self::NetworkReady => "network_ready",
            Self::Spawned => "spawned",
            Self::KernelStarted => "kernel_started",
            Self::DhcpRequested => "dhcp_requested",
            Self::DhcpAck => "dhcp_ack",
            Self::AgentConnected => "agent_connected",
            Self::AgentHealthy => "agent_healthy",
            Self::UnitStarted => "unit_started",
            Self::UnitFailed => "unit_failed",
        }
    }
}

payload! {
    /// One stage reached.
    struct StageMark {
        /// Which.
        stage: Stage,
        /// When.
        at: Time,
        /// The unit's name, the address, …
        #[serde(default, skip_serializing_if = "String::is_empty")]
        detail: String,
        /// The VM has no such part (a disk), so there was nothing to do; the detail says why.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        absent: bool,
    }
}
payload! {
    /// Payload of `attempt.progressed`: stages reached since the last such event.
    struct AttemptProgressed {
        /// In order.
        marks: Vec<StageMark>,
    }
}

/// How we know that it was this VM which answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// The answer carried its id.
    VmId,
    /// The answering neighbour has its MAC.
    Mac,
    /// The forwarded port belongs to its VMM alone.
    ForwardedPort,
    /// The job asked not to check.
    Unchecked,
}

payload! {
    /// Payload of `attempt.ready`.
    struct AttemptReady {
        /// Where the agent answered.
        #[schemars(with = "String")]
        agent: SocketAddr,
        /// HTTP status.
        status: u16,
        /// Beginning of the answer.
        body: String,
        /// How we know that it was this VM.
        identity: Identity,
        /// Stages not told before.
        marks: Vec<StageMark>,
    }
}
payload! {
    /// Payload of `attempt.failed`.
    struct AttemptFailed {
        /// Why, and what to do.
        diagnosis: Diagnosis,
        /// Stages not told before.
        marks: Vec<StageMark>,
    }
}
payload! {
    /// Payload of `attempt.adopted`.
    struct AttemptAdopted {
        /// Process id of the VMM.
        pid: u32,
    }
}
payload! {
    /// Payload of `attempt.message-settled`.
    struct AttemptMessageSettled {
        /// How long the host had held the message, ms.
        held_ms: u64,
    }
}
payload! {
    /// Payload of `attempt.superseded`.
    struct AttemptSuperseded {
        /// Host of the VM that is to go.
        host: HostName,
        /// The VM that is to go.
        vm: VmId,
        /// The VM that stays; absent when the job has ended or waits for a newer one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kept: Option<VmId>,
    }
}
payload! {
    /// Payload of `vm.gone`.
    struct VmGone {
        /// Why it went.
        why: GoneWhy,
        /// More, for people.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        detail: String,
    }
}

/// Why a VM went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GoneWhy {
    /// Its attempt had failed.
    Failed,
    /// Its job was cancelled.
    Cancelled,
    /// Somebody asked.
    Stopped,
    /// It ended by itself after it was ready.
    Exited,
    /// It was one too many: the job has another VM, or has ended without this one.
    Duplicate,
}

impl GoneWhy {
    /// For people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "its attempt had failed",
            Self::Cancelled => "its job was cancelled",
            Self::Stopped => "somebody asked",
            Self::Exited => "it ended by itself",
            Self::Duplicate => "one too many: its job has another VM, or has ended",
        }
    }
}
