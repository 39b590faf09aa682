//! About a host.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    /// Payload of `host.hypervisor-changed`.
    struct HostHypervisorChanged {
        /// Its hypervisor as it is now, for people.
        hypervisor: String,
        /// What the worker found out.
        reason: String,
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
