//! The kinds of events and what each carries.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::diagnosis::{Cause, Diagnosis};
use crate::id::{HostName, VmId};
use crate::image::Driver;
use crate::spec::JobSpec;
use crate::time::Time;

macro_rules! events {
    ($($(#[$doc:meta])* $variant:ident($payload:ty) = $kind:literal v $version:literal;)*) => {
        /// What happened, by kind.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum EventData {
            $($(#[$doc])* $variant($payload),)*
        }

        impl EventData {
            /// Kind without version (`job.enqueued`).
            pub const fn kind(&self) -> &'static str {
                match self { $(Self::$variant(_) => $kind),* }
            }

            /// The version written today.
            pub const fn version(&self) -> u32 {
                match self { $(Self::$variant(_) => $version),* }
            }

            /// Kinds and today's versions.
            pub const KINDS: &'static [(&'static str, u32)] = &[$(($kind, $version)),*];

            pub(super) fn payload_to_value(&self) -> serde_json::Result<Box<serde_json::value::RawValue>> {
                match self { $(Self::$variant(p) => serde_json::value::to_raw_value(p)),* }
            }

            /// Reads a payload of today's version; `None` for a kind that does not exist.
            pub(super) fn payload_from_str(kind: &str, text: &str) -> Option<serde_json::Result<Self>> {
                match kind {
                    $($kind => Some(serde_json::from_str(text).map(Self::$variant)),)*
                    _ => None,
                }
            }

            /// The JSON Schema of each kind's payload.
            pub fn payload_schemas() -> Vec<(&'static str, schemars::Schema)> {
                vec![$(($kind, schemars::schema_for!($payload))),*]
            }
        }
    };
}

events! {
    /// Somebody wants a VM.
    JobEnqueued(JobEnqueued) = "job.enqueued" v 1;
    /// Another attempt follows: after a failure, or because somebody asked.
    JobRetryScheduled(JobRetryScheduled) = "job.retry-scheduled" v 1;
    /// Put back without an attempt: no host that got it may run it.
    JobDeferred(JobDeferred) = "job.deferred" v 1;
    /// No attempt follows.
    JobDead(JobDead) = "job.dead" v 1;
    /// Somebody wants the job not to run.
    CancelRequested(Request) = "job.cancel-requested" v 1;
    /// It does not run and will not.
    JobCancelled(JobCancelled) = "job.cancelled" v 1;
    /// Somebody wants the running VM stopped.
    StopRequested(Request) = "job.stop-requested" v 1;
    /// A host takes the job; written before anything happens.
    AttemptStarted(AttemptStarted) = "attempt.started" v 1;
    /// Stages reached.
    AttemptProgressed(AttemptProgressed) = "attempt.progressed" v 1;
    /// The agent answered as asked, and it was this VM.
    AttemptReady(AttemptReady) = "attempt.ready" v 1;
    /// The VM will not become ready; why.
    AttemptFailed(AttemptFailed) = "attempt.failed" v 1;
    /// A restarted worker took the running VM over.
    AttemptAdopted(AttemptAdopted) = "attempt.adopted" v 1;
    /// This VM is to go: another one of the job stays, or the job has ended without it.
    AttemptSuperseded(AttemptSuperseded) = "attempt.superseded" v 1;
    /// Nothing of the VM is left on the host.
    VmGone(VmGone) = "vm.gone" v 1;
    /// A worker began.
    HostStarted(HostStarted) = "host.started" v 1;
    /// Somebody wants a host to take no more jobs.
    HostDrainRequested(Request) = "host.drain-requested" v 1;
    /// A worker takes no more jobs.
    HostDraining(HostDraining) = "host.draining" v 1;
    /// A worker ended in order.
    HostStopped(HostStopped) = "host.stopped" v 1;
}

impl EventData {
    /// What tells this fact from others of the same epoch.
    pub fn step(&self, time: Time) -> String {
        match self {
            // These may happen more than once in an epoch: the time tells them apart.
            Self::CancelRequested(_)
            | Self::StopRequested(_)
            | Self::JobDeferred(_)
            | Self::AttemptAdopted(_)
            | Self::AttemptProgressed(_)
            | Self::HostStarted(_)
            | Self::HostDrainRequested(_)
            | Self::HostDraining(_)
            | Self::HostStopped(_) => {
                format!("{}@{}", self.kind(), time.unix_micros())
            }
            other => other.kind().to_owned(),
        }
    }

    /// About the try on one host: told by two hosts of the same epoch, it is two facts.
    pub fn is_about_try(&self) -> bool {
        matches!(
            self,
            Self::AttemptStarted(_)
                | Self::AttemptProgressed(_)
                | Self::AttemptReady(_)
                | Self::AttemptFailed(_)
                | Self::AttemptAdopted(_)
                | Self::AttemptSuperseded(_)
                | Self::VmGone(_)
        )
    }

    /// About a host, not a job.
    pub fn is_about_host(&self) -> bool {
        matches!(
            self,
            Self::HostStarted(_) | Self::HostDrainRequested(_) | Self::HostDraining(_) | Self::HostStopped(_)
        )
    }
}

macro_rules! payload {
    ($(#[$doc:meta])* struct $name:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }
    };
}

payload! {
    /// Payload of `job.enqueued`.
    struct JobEnqueued {
        /// What to boot.
        spec: JobSpec,
        /// Who asked.
        by: String,
    }
}
payload! {
    /// Payload of `job.retry-scheduled`. Carries the spec: whoever gets it can run it.
    struct JobRetryScheduled {
        /// Number of the attempt that follows.
        attempt: u32,
        /// Not before this time.
        not_before: Time,
        /// The wait in ms, as the broker is told it.
        delay_ms: u64,
        /// Cause of the failure before; absent when somebody asked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cause: Option<Cause>,
        /// Who asked; absent for Stoker itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
        /// What to boot.
        spec: JobSpec,
        /// When the job was first enqueued.
        enqueued_at: Time,
        /// When somebody last asked for an attempt by hand. Travels with the job, so that a host
        /// that heard of a cancellation before that does not cancel it again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        asked_at: Option<Time>,
    }
}
payload! {
    /// Payload of `job.deferred`.
    struct JobDeferred {
        /// Number of the attempt that still waits.
        attempt: u32,
        /// The wait in ms, as the broker is told it.
        delay_ms: u64,
        /// Why no attempt was made.
        reason: String,
        /// What to boot.
        spec: JobSpec,
        /// When the job was first enqueued.
        enqueued_at: Time,
        /// When somebody last asked for an attempt by hand. Travels with the job, so that a host
        /// that heard of a cancellation before that does not cancel it again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        asked_at: Option<Time>,
    }
}
payload! {
    /// Payload of `job.dead`.
    struct JobDead {
        /// After this many attempts.
        attempt: u32,
        /// Why none follows.
        reason: DeadReason,
        /// The last failure.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        diagnosis: Option<Diagnosis>,
        /// What was to be booted.
        spec: JobSpec,
    }
}

/// Why no attempt follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeadReason {
    /// As many attempts as the policy allows.
    AttemptsExhausted,
    /// Another attempt would fail the same way.
    NotRetryable,
    /// Its time-to-live passed before an attempt could start.
    Expired,
}

payload! {
    /// Payload of requests.
    struct Request {
        /// Who asked.
        by: String,
        /// Why, in their words.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    }
}
payload! {
    /// Payload of `job.cancelled`.
    struct JobCancelled {
        /// After this many attempts.
        attempt: u32,
        /// Who asked.
        by: String,
    }
}
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
        /// When somebody last asked for an attempt by hand. Travels with the job, so that a host
        /// that heard of a cancellation before that does not cancel it again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        asked_at: Option<Time>,
    }
}

/// How far a boot has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// A host took the job.
    Accepted,
    /// The overlay is there.
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
    /// Another host's VM of the same job was ready earlier.
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
            Self::Duplicate => "another VM of the job was ready earlier",
        }
    }
}

payload! {
    /// Payload of `host.started`.
    struct HostStarted {
        /// VMs it may run at once.
        slots: u32,
        /// vCPUs it may give out.
        vcpus: u32,
        /// Memory it may give out, MiB.
        memory_mib: u32,
        /// Its labels.
        labels: BTreeMap<String, String>,
        /// Pools it serves.
        pools: Vec<String>,
        /// Its hypervisor, for people.
        hypervisor: String,
        /// Version of the worker.
        version: String,
        /// VMs taken over.
        adopted: u32,
    }
}
payload! {
    /// Payload of `host.draining`.
    struct HostDraining {
        /// Boots still under way.
        booting: u32,
        /// VMs that keep running.
        running: u32,
    }
}
payload! {
    /// Payload of `host.stopped`.
    struct HostStopped {
        /// VMs that keep running.
        running: u32,
    }
}
