//! A flag for every field of a job.

use clap::Args;
use serde_json::Value;

use crate::cli::input::{Fields, count, pair};

/// The fields of a job as flags. Ranges are the contract's business, not repeated here.
#[derive(Debug, Args)]
pub struct SpecFlags {
    /// Virtual CPUs (default 1)
    #[arg(long, value_name = "N", help_heading = "Machine")]
    vcpus: Option<u64>,
    /// Memory, MiB (default 256)
    #[arg(long, value_name = "MIB", help_heading = "Machine")]
    memory_mib: Option<u64>,
    /// Writable disk on top of the image, MiB (default 0: none)
    #[arg(long, value_name = "MIB", help_heading = "Machine")]
    disk_mib: Option<u64>,
    /// Arguments added to the kernel command line; may not configure the network
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true, help_heading = "Machine")]
    kernel_args: Option<String>,
    /// Static IPv4 address instead of DHCP, where the image allows it
    #[arg(long, value_name = "IP", requires = "static_gateway", help_heading = "Machine")]
    static_address: Option<String>,
    /// Its prefix length (default 24)
    #[arg(long, value_name = "BITS", requires = "static_address", help_heading = "Machine")]
    static_prefix: Option<u64>,
    /// Its gateway
    #[arg(long, value_name = "IP", requires = "static_address", help_heading = "Machine")]
    static_gateway: Option<String>,

    /// The agent's TCP port (default 8080)
    #[arg(long, value_name = "PORT", help_heading = "Readiness")]
    port: Option<u64>,
    /// Path of the health request (default /health)
    #[arg(long, value_name = "PATH", help_heading = "Readiness")]
    path: Option<String>,
    /// Status that counts (default 200)
    #[arg(long, value_name = "STATUS", help_heading = "Readiness")]
    expected_status: Option<u64>,
    /// Text the answer must contain
    #[arg(long, value_name = "TEXT", help_heading = "Readiness")]
    body_contains: Option<String>,
    /// Take an answer from any VM, not only from this one
    #[arg(long, help_heading = "Readiness")]
    no_identity_check: bool,
    /// Milliseconds from the attempt's start to the verdict (default 120000)
    #[arg(long, value_name = "MS", help_heading = "Readiness")]
    deadline_ms: Option<u64>,
    /// systemd unit that must show `[  OK  ] Started …`; repeat for more
    #[arg(long = "unit", value_name = "NAME", help_heading = "Readiness")]
    units: Vec<String>,

    /// Attempts in all (default 3)
    #[arg(long, value_name = "N", help_heading = "Retry")]
    max_attempts: Option<u64>,
    /// Wait before the second attempt, ms (default 1000)
    #[arg(long, value_name = "MS", help_heading = "Retry")]
    retry_base_ms: Option<u64>,
    /// Longest wait, ms (default 60000)
    #[arg(long, value_name = "MS", help_heading = "Retry")]
    retry_cap_ms: Option<u64>,
    /// Random part of each wait, percent (default 20)
    #[arg(long, value_name = "PERCENT", help_heading = "Retry")]
    retry_jitter_percent: Option<u64>,
    /// Attempts allowed for a cause, such as agent_not_listening=5; repeat for more
    #[arg(long = "retry-cause", value_name = "CAUSE=N", value_parser = count, help_heading = "Retry")]
    retry_causes: Vec<(String, u64)>,

    /// Seconds the job may wait for its first start (default: for ever)
    #[arg(long, value_name = "S", help_heading = "Queue")]
    ttl_s: Option<u64>,
    /// normal (default) or high
    #[arg(long, value_name = "LANE", help_heading = "Queue")]
    priority: Option<String>,
    /// Pool of hosts (default `default`)
    #[arg(long, value_name = "POOL", help_heading = "Queue")]
    pool: Option<String>,
    /// Free label, k=v; repeat for more
    #[arg(long = "label", value_name = "K=V", value_parser = pair, help_heading = "Queue")]
    labels: Vec<(String, String)>,
    /// Label a host must carry, k=v; repeat for more
    #[arg(long = "host-label", value_name = "K=V", value_parser = pair, help_heading = "Queue")]
    host_labels: Vec<(String, String)>,
    /// URL to be told about the end
    #[arg(long, value_name = "URL", help_heading = "Queue")]
    callback_url: Option<String>,
}

impl SpecFlags {
    /// The flags that were given, as fields of a job.
    pub fn into_fields(self, image: Option<String>) -> Value {
        let mut f = Fields::default();
        f.set("image", image);
        f.set("vcpus", self.vcpus);
        f.set("memory_mib", self.memory_mib);
        f.set("disk_mib", self.disk_mib);
        f.set("kernel_args", self.kernel_args);
        f.set("network.static.address", self.static_address);
        f.set("network.static.prefix", self.static_prefix);
        f.set("network.static.gateway", self.static_gateway);
        f.set("readiness.http.port", self.port);
        f.set("readiness.http.path", self.path);
        f.set("readiness.http.expected_status", self.expected_status);
        f.set("readiness.http.body_contains", self.body_contains);
        f.set("readiness.check_identity", self.no_identity_check.then_some(false));
        f.set("readiness.deadline_ms", self.deadline_ms);
        f.set("readiness.units", (!self.units.is_empty()).then_some(self.units));
        f.set("retry.max_attempts", self.max_attempts);
        f.set("retry.base_ms", self.retry_base_ms);
        f.set("retry.cap_ms", self.retry_cap_ms);
        f.set("retry.jitter_percent", self.retry_jitter_percent);
        for (cause, n) in self.retry_causes {
            f.set(&format!("retry.per_cause.{cause}"), Some(n));
        }
        f.set("ttl_s", self.ttl_s);
        f.set("priority", self.priority);
        f.set("pool", self.pool);
        f.pairs("labels", &self.labels);
        f.pairs("host_labels", &self.host_labels);
        f.set("callback_url", self.callback_url);
        f.finish()
    }
}
