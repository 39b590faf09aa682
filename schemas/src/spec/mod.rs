//! A job as somebody asks for it: raw text in, a validated [`JobSpec`] out, or every error at
//! once, each naming its field and a way out.

pub mod kernel_args;
mod raw;
mod reader;
mod validate;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use raw::{RawHttp, RawNetwork, RawReadiness, RawRetry, RawSpec, RawStatic};

use crate::diagnosis::Cause;
use crate::id::{ImageName, PoolName};

/// What a worker boots and when it calls that a success. Only made by validation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "RawSpec")]
pub struct JobSpec {
    /// Image to boot.
    pub image: ImageName,
    /// Virtual CPUs, 1-32.
    pub vcpus: u32,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Writable disk on top of the image, MiB; 0 for none.
    pub disk_mib: u32,
    /// Arguments added to the image's kernel command line.
    pub kernel_args: String,
    /// Who owns the guest's address.
    pub network: Network,
    /// When the VM counts as reachable.
    pub readiness: Readiness,
    /// What happens after a failed attempt.
    pub retry: RetryPolicy,
    /// Seconds the job may wait for its first start; `None` for ever.
    pub ttl_s: Option<u64>,
    /// Which lane of the pool's queue it takes.
    pub priority: Priority,
    /// Pool of hosts that may run it.
    pub pool: PoolName,
    /// Free labels, for people and filters.
    pub labels: BTreeMap<String, String>,
    /// Labels a host must carry.
    pub host_labels: BTreeMap<String, String>,
    /// Where to report the end.
    pub callback_url: Option<String>,
    /// Same key in the same pool: same job.
    pub idempotency_key: Option<String>,
}

/// Who gives the guest its address: exactly one owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Network {
    /// The host's DHCP server (the default).
    Dhcp,
    /// The kernel command line; only for images that allow it.
    Static(StaticAddress),
}

/// A static address, given to the guest's kernel as `ip=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct StaticAddress {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// Prefix length, 8-30.
    pub prefix: u8,
    /// The guest's gateway.
    pub gateway: Ipv4Addr,
}

/// Lanes of a pool's queue. Two, as RabbitMQ's quorum queues have them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// After everything in the high lane.
    #[default]
    Normal,
    /// Before everything in the normal lane.
    High,
}

impl Priority {
    /// The lane's name, as in queue names and routing keys.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

/// When a VM is ready: its agent answered as asked, it was this VM, in time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Readiness {
    /// TCP port of the agent.
    pub port: u16,
    /// Path of the request.
    pub path: String,
    /// The status that counts.
    pub expected_status: u16,
    /// Text the body must contain.
    pub body_contains: Option<String>,
    /// Whether the answer must come from this very VM.
    pub check_identity: bool,
    /// Milliseconds from the attempt's start to the verdict.
    pub deadline_ms: u64,
    /// systemd units whose `[  OK  ] Started …` must be seen on the console.
    pub units: Vec<String>,
}

/// How failed attempts are repeated.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RetryPolicy {
    /// Attempts in all, from 1.
    pub max_attempts: u32,
    /// Wait before the second attempt, ms.
    pub base_ms: u64,
    /// Longest wait, ms.
    pub cap_ms: u64,
    /// Random part of each wait, percent of it (0-100).
    pub jitter_percent: u8,
    /// Attempts allowed for a cause, instead of `max_attempts`.
    pub per_cause: BTreeMap<Cause, u32>,
}

/// One thing wrong with a spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FieldError {
    /// The field, dotted (`readiness.deadline_ms`).
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do instead.
    pub hint: String,
}

/// Everything wrong with a spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecErrors(pub Vec<FieldError>);

impl std::fmt::Display for SpecErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, e) in self.0.iter().enumerate() {
            let sep = if i == 0 { "" } else { "\n" };
            write!(f, "{sep}{}: {}", e.field, e.message)?;
            if !e.hint.is_empty() {
                write!(f, " ({})", e.hint)?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for SpecErrors {}

impl JobSpec {
    /// Validates a JSON value: types, unknown fields and rules, every error at once.
    pub fn from_value(value: &serde_json::Value) -> Result<Self, SpecErrors> {
        let mut errors = Vec::new();
        let raw = reader::read_spec(value, &mut errors);
        let checked = validate::validate(raw, &mut errors);
        match checked {
            Some(spec) if errors.is_empty() => Ok(spec),
            _ => Err(SpecErrors(errors)),
        }
    }

    /// Validates an already typed raw form (from command line flags, a webhook mapping).
    pub fn from_raw(raw: RawSpec) -> Result<Self, SpecErrors> {
        let mut errors = Vec::new();
        match validate::validate(raw, &mut errors) {
            Some(spec) if errors.is_empty() => Ok(spec),
            _ => Err(SpecErrors(errors)),
        }
    }

    /// Whether a VM that was booted for `warm` is as good for this job as one of its own. Whatever the
    /// answer is to be, and how it is asked for, is then proven anew.
    pub fn fits_warm(&self, warm: &Self) -> bool {
        let alike = (&self.image, self.vcpus, self.memory_mib) == (&warm.image, warm.vcpus, warm.memory_mib);
        // What only a boot can give it.
        let plain = self.disk_mib == 0 && self.kernel_args.trim().is_empty() && self.network == Network::Dhcp;
        alike && plain && self.readiness.port == warm.readiness.port
    }

    /// Whether a host with these labels may run it.
    pub fn fits_labels(&self, host: &BTreeMap<String, String>) -> bool {
        self.host_labels.iter().all(|(k, v)| host.get(k) == Some(v))
    }
}

impl<'de> Deserialize<'de> for JobSpec {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        Self::from_value(&value).map_err(|e| serde::de::Error::custom(format!("spec: {e}")))
    }
}

impl JsonSchema for JobSpec {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        RawSpec::schema_name()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        RawSpec::json_schema(generator)
    }
}

#[cfg(test)]
mod tests;
