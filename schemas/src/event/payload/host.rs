//! About a host.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::time::Time;

payload! {
    /// Payload of `host.started`.
    struct HostStarted {
        /// VMs it may run at once.
        slots: u32,
        /// vCPUs it may give out.
        vcpus: u32,
        /// Memory it may give out, MiB.
        memory_mib: u32,
        /// VMs it may boot at once; absent where an older worker did not say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_booting: Option<u32>,
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
    /// Payload of `host.hypervisor-changed`.
    struct HostHypervisorChanged {
        /// Its hypervisor as it is now, for people.
        hypervisor: String,
        /// What the worker found out.
        reason: String,
    }
}
payload! {
    /// Payload of `host.publishing-refused`.
    struct HostPublishingRefused {
        /// The queue that refuses, without a prefix of the installation's own.
        queue: String,
        /// Why, in the broker's words.
        reason: String,
        /// Messages that the host keeps for it; it tries them again by itself.
        messages: u64,
        /// Time of the oldest of them.
        oldest: Time,
    }
}
payload! {
    /// Payload of `host.publishing-resumed`.
    struct HostPublishingResumed {
        /// The queue that takes messages again; none is left behind.
        queue: String,
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
