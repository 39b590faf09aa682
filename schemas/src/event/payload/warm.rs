//! About VMs that a host keeps up for jobs to come.

use std::net::{Ipv4Addr, SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::diagnosis::Diagnosis;
use crate::id::{ImageName, JobId, VmId};

payload! {
    /// Payload of `warm.started`.
    struct WarmStarted {
        /// The VM that will run.
        vm: VmId,
        /// What it boots.
        image: ImageName,
        /// Its virtual CPUs.
        vcpus: u32,
        /// Its memory, MiB.
        memory_mib: u32,
        /// Its address, where the host has a pool of them.
        address: Option<Ipv4Addr>,
        /// How many like it the host keeps.
        wanted: u32,
    }
}
payload! {
    /// Payload of `warm.ready`.
    struct WarmReady {
        /// Which VM.
        vm: VmId,
        /// Where its agent answered.
        agent: SocketAddr,
    }
}
payload! {
    /// Payload of `warm.taken`. The job's `attempt.started` names the same VM.
    struct WarmTaken {
        /// Which VM.
        vm: VmId,
        /// Whose it is from now on.
        job: JobId,
    }
}
payload! {
    /// Payload of `warm.gone`.
    struct WarmGone {
        /// Which VM.
        vm: VmId,
        /// Why.
        why: WarmGoneWhy,
        /// Why it was of no use, where that is why.
        diagnosis: Option<Diagnosis>,
        /// More, for people.
        detail: String,
    }
}

/// Why a warm VM went before a job took it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WarmGoneWhy {
    /// It did not come up, or ceased to answer.
    Failed,
    /// A job needed its place.
    Evicted,
    /// Its image has changed.
    Outdated,
    /// Its host takes no more jobs.
    Draining,
    /// Its worker ended without removing it; the next one did.
    WorkerEnded,
}

impl WarmGoneWhy {
    /// For people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "it was of no use",
            Self::Evicted => "a job needed its place",
            Self::Outdated => "its image has changed",
            Self::Draining => "its host takes no more jobs",
            Self::WorkerEnded => "its worker ended",
        }
    }
}
