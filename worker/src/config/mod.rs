//! Settings of a worker: file (TOML), environment, flags, in this order of growing weight;
//! resolved once, before anything is opened, with every error at once.

mod raw;
mod warm;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use stoker_schemas::image::Driver;
use stoker_schemas::limits::{MAX_LABEL_BYTES, MAX_LABELS};
use stoker_schemas::{HostName, PoolName};

pub use raw::{Flags, RawConfig};

use crate::supervisor::{Capacity, Warm};
use crate::vm::{AccelMode, Rates};

/// A broker's URL, which may hold a password: never printed with it.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrl(String);

impl BrokerUrl {
    /// The URL with its secret, for the connection only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (scheme, rest) = self.0.split_once("://").unwrap_or(("amqp", &self.0));
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        write!(f, "{scheme}://{host}")
    }
}

/// How VMs get a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkMode {
    /// Bridge, taps and dnsmasq; in a namespace of its own unless that is `None`.
    Bridge {
        /// Name of the namespace; `None` for the host's own.
        namespace: Option<String>,
        /// The bridge.
        bridge: String,
        /// The bridge's address.
        gateway: Ipv4Addr,
        /// Prefix length of the subnet.
        prefix: u8,
        /// Whether VMs are kept from the host, from each other and from metadata services.
        firewall: bool,
    },
    /// QEMU's user network with a forwarded port: no privileges needed, judged by HTTP only.
    User,
}

/// Whether Firecracker runs jailed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JailerMode {
    /// As root, with the jailer that lies beside Firecracker (or along PATH); else not.
    Auto,
    /// With this jailer.
    Program(PathBuf),
    /// Not.
    Off,
}

/// Settings, resolved and checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// This host.
    pub host: HostName,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Pools it serves.
    pub pools: Vec<PoolName>,
    /// Where everything is kept.
    pub data: PathBuf,
    /// Where images are.
    pub images: PathBuf,
    /// Which hypervisor.
    pub driver: Driver,
    /// Firecracker's program.
    pub firecracker: PathBuf,
    /// Whether Firecracker runs jailed.
    pub jailer: JailerMode,
    /// User of the jailed VM at the first address; the other addresses' follow.
    pub jailer_uid_base: u32,
    /// Control group that jailed VMs' groups lie in, relative to the top.
    pub cgroup_parent: String,
    /// What each Firecracker VM may move at most.
    pub rates: Rates,
    /// QEMU's program.
    pub qemu: PathBuf,
    /// How QEMU runs guest code.
    pub accel: AccelMode,
    /// Whether VMs of prewarmed images may go on from a template.
    pub prewarm: bool,
    /// How VMs get a network.
    pub network: NetworkMode,
    /// What the host may give out.
    pub capacity: Capacity,
    /// VMs that boot at the same time on the whole host.
    pub max_booting: u32,
    /// How long a job that does not fit is held.
    pub hold: Duration,
    /// How long an attempt keeps its message.
    pub settle_after: Duration,
    /// How long boots may take at shutdown.
    pub drain: Duration,
    /// How long a guest may take to stop.
    pub stop_grace: Duration,
    /// Memory for the log's cache, bytes.
    pub log_cache_bytes: u64,
    /// VMs to keep up for jobs to come.
    pub warm: Vec<Warm>,
    /// RabbitMQ; `None` for the broker in this process.
    pub broker: Option<BrokerUrl>,
    /// CA to trust besides the host's own when the URL is `amqps://`.
    pub broker_ca: Option<PathBuf>,
}

/// Everything wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("settings cannot be used:\n{}", .0.join("\n"))]
pub struct ConfigErrors(pub Vec<String>);

/// A label set from outside, checked as a job's labels are.
pub(super) fn check_labels(labels: &BTreeMap<String, String>, errors: &mut Vec<String>) {
    if labels.len() > MAX_LABELS {
        errors.push(format!("labels: {} of them, at most {MAX_LABELS}", labels.len()));
    }
    for (key, value) in labels {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        let ok = !key.is_empty() && key.len() <= MAX_LABEL_BYTES && key.chars().all(plain);
        if !ok || value.len() > MAX_LABEL_BYTES || value.chars().any(char::is_control) {
            errors.push(format!("labels.{key}: keys are 1-63 of letters, digits and -_./, values at most 63 bytes"));
        }
    }
}

#[cfg(test)]
mod tests;
