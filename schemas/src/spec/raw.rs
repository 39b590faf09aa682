//! The raw form: what stands in JSON, YAML, flags and messages. Every field but the image may be
//! absent; ranges are checked by `validate`, not by the types, so that all errors come at once.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use crate::id::{ImageName, PoolName};

use super::{JobSpec, Network, Priority, StaticAddress};

/// A VM-boot job as submitted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "JobSpec")]
#[schemars(deny_unknown_fields)]
pub struct RawSpec {
    /// Image to boot, such as `golden@7`.
    #[schemars(required, with = "ImageName")]
    pub image: Option<String>,
    /// Virtual CPUs (default 1).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 32))]
    pub vcpus: Option<u64>,
    /// Memory, MiB (default 256).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 16, max = 1_048_576))]
    pub memory_mib: Option<u64>,
    /// Writable disk on top of the image, MiB (default 0: none).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 4_194_304))]
    pub disk_mib: Option<u64>,
    /// Arguments added to the image's kernel command line. May not configure the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1_536))]
    pub kernel_args: Option<String>,
    /// `dhcp` (default), or `{"static": {...}}` where the image allows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<RawNetwork>,
    /// When the VM counts as reachable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readiness: Option<RawReadiness>,
    /// What happens after a failed attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<RawRetry>,
    /// Seconds the job may wait for its first start (default: for ever).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_592_000))]
    pub ttl_s: Option<u64>,
    /// `normal` (default) or `high`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// Pool of hosts (default `default`).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<PoolName>")]
    pub pool: Option<String>,
    /// Free labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Labels a host must carry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_labels: Option<BTreeMap<String, String>>,
    /// http(s) URL told about the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callback_url: Option<String>,
    /// Same key in the same pool: same job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
}

/// Who owns the guest's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RawNetwork {
    /// The host's DHCP server.
    Dhcp,
    /// The kernel command line.
    Static(RawStatic),
}

/// A static address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct RawStatic {
    /// The guest's IPv4 address.
    #[schemars(required, with = "String")]
    pub address: Option<String>,
    /// Prefix length (default 24).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 8, max = 30))]
    pub prefix: Option<u64>,
    /// The guest's gateway.
    #[schemars(required, with = "String")]
    pub gateway: Option<String>,
}

/// When a VM is ready.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct RawReadiness {
    /// The request to the agent and the answer that counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<RawHttp>,
    /// Whether the answer must come from this very VM (default true).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check_identity: Option<bool>,
    /// Milliseconds from the attempt's start to the verdict (default 120000); up to half as many more while
    /// the guest still comes further.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3_600_000))]
    pub deadline_ms: Option<u64>,
    /// systemd units that must show `[  OK  ] Started …`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub units: Option<Vec<String>>,
}

/// The request to the agent and the answer that counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct RawHttp {
    /// TCP port (default 8080).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<u64>,
    /// Path (default `/health`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Status that counts (default 200).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 599))]
    pub expected_status: Option<u64>,
    /// Text the body must contain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_contains: Option<String>,
}

/// How failed attempts are repeated.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct RawRetry {
    /// Attempts in all (default 3).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 50))]
    pub max_attempts: Option<u64>,
    /// Wait before the second attempt, ms (default 1000).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 86_400_000))]
    pub base_ms: Option<u64>,
    /// Longest wait, ms (default 60000).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 86_400_000))]
    pub cap_ms: Option<u64>,
    /// Random part of each wait, percent (default 20).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub jitter_percent: Option<u64>,
    /// Attempts allowed for a cause (`agent_not_listening: 5`), instead of `max_attempts`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_cause: Option<BTreeMap<String, u64>>,
}

impl From<StaticAddress> for RawStatic {
    fn from(a: StaticAddress) -> Self {
        Self {
            address: Some(a.address.to_string()),
            prefix: Some(a.prefix.into()),
            gateway: Some(a.gateway.to_string()),
        }
    }
}

impl From<JobSpec> for RawSpec {
    fn from(s: JobSpec) -> Self {
        let full = |map: BTreeMap<String, String>| (!map.is_empty()).then_some(map);
        Self {
            image: Some(s.image.to_string()),
            vcpus: Some(s.vcpus.into()),
            memory_mib: Some(s.memory_mib.into()),
            disk_mib: (s.disk_mib > 0).then_some(s.disk_mib.into()),
            kernel_args: (!s.kernel_args.is_empty()).then_some(s.kernel_args),
            network: match s.network {
                Network::Dhcp => None,
                Network::Static(a) => Some(RawNetwork::Static(a.into())),
            },
            readiness: Some(s.readiness.into()),
            retry: Some(s.retry.into()),
            ttl_s: s.ttl_s,
            priority: (s.priority != Priority::Normal).then_some(s.priority),
            pool: Some(s.pool.to_string()),
            labels: full(s.labels),
            host_labels: full(s.host_labels),
            callback_url: s.callback_url,
            idempotency_key: s.idempotency_key,
        }
    }
}

impl From<super::Readiness> for RawReadiness {
    fn from(r: super::Readiness) -> Self {
        Self {
            http: Some(RawHttp {
                port: Some(r.port.into()),
                path: Some(r.path),
                expected_status: Some(r.expected_status.into()),
                body_contains: r.body_contains,
            }),
            check_identity: Some(r.check_identity),
            deadline_ms: Some(r.deadline_ms),
            units: (!r.units.is_empty()).then_some(r.units),
        }
    }
}

impl From<super::RetryPolicy> for RawRetry {
    fn from(r: super::RetryPolicy) -> Self {
        let per_cause: BTreeMap<_, _> =
            r.per_cause.iter().map(|(c, n)| (c.as_str().to_owned(), u64::from(*n))).collect();
        Self {
            max_attempts: Some(r.max_attempts.into()),
            base_ms: Some(r.base_ms),
            cap_ms: Some(r.cap_ms),
            jitter_percent: Some(r.jitter_percent.into()),
            per_cause: (!per_cause.is_empty()).then_some(per_cause),
        }
    }
}
