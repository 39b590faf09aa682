//! What stands in the file and on the command line, and how it becomes a [`Config`].

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use stoker_schemas::image::Driver;

use super::warm::{self, RawWarm};
use super::{BrokerUrl, Capacity, Config, ConfigErrors, JailerMode, NetworkMode};
use crate::toml_text;
use crate::vm::firecracker::jail::{DEFAULT_CGROUP_PARENT, DEFAULT_UID_BASE};
use crate::vm::{AccelMode, Rates};

/// A settings file is a page of text.
const MAX_FILE_BYTES: u64 = 256 * 1024;
/// A control group's path; generous.
const MAX_CGROUP_BYTES: usize = 200;

/// How long a job that does not fit is held.
const DEFAULT_HOLD_MS: u64 = 5_000;
/// How long an attempt keeps its message.
const DEFAULT_SETTLE_MS: u64 = 600_000;
/// The most of both. One after the other, with what a warm VM takes to go and the log to be published, they stay
/// well below RabbitMQ's consumer_timeout.
const MAX_HOLD_MS: u64 = 300_000;
const MAX_SETTLE_MS: u64 = 900_000;

/// The file. Every field may be absent.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    host: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    pools: Option<Vec<String>>,
    data: Option<PathBuf>,
    images: Option<PathBuf>,
    driver: Option<Driver>,
    firecracker: Option<PathBuf>,
    jailer: Option<PathBuf>,
    jailer_uid_base: Option<u32>,
    cgroup_parent: Option<String>,
    disk_mib_per_s: Option<u32>,
    net_mib_per_s: Option<u32>,
    qemu: Option<PathBuf>,
    accel: Option<AccelMode>,
    prewarm: Option<bool>,
    broker: Option<String>,
    broker_ca: Option<PathBuf>,
    slots: Option<u32>,
    vcpus: Option<u32>,
    memory_mib: Option<u32>,
    max_booting: Option<u32>,
    hold_ms: Option<u64>,
    settle_after_ms: Option<u64>,
    drain_ms: Option<u64>,
    stop_grace_ms: Option<u64>,
    log_cache_mib: Option<u64>,
    network: Option<RawNetwork>,
    warm: Option<Vec<RawWarm>>,
}

/// The file's `[network]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNetwork {
    mode: Option<RawMode>,
    /// `""` for the host's own network.
    namespace: Option<String>,
    bridge: Option<String>,
    gateway: Option<Ipv4Addr>,
    prefix: Option<u8>,
    firewall: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawMode {
    Bridge,
    User,
}

/// Flags and environment; each wins over the file.
#[derive(Debug, Clone, Default, Args)]
pub struct Flags {
    /// Settings file (TOML)
    #[arg(long, env = "STOKER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Name of this host
    #[arg(long, env = "STOKER_HOST", value_name = "NAME")]
    pub host: Option<String>,
    /// Folder for log, VMs and consoles
    #[arg(long, env = "STOKER_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Folder with images
    #[arg(long, env = "STOKER_IMAGES", value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// Hypervisor: firecracker, qemu or simulated
    #[arg(long, env = "STOKER_DRIVER", value_name = "NAME", value_parser = parse_driver)]
    pub driver: Option<Driver>,
    /// Firecracker's program
    #[arg(long, env = "STOKER_FIRECRACKER", value_name = "FILE")]
    pub firecracker: Option<PathBuf>,
    /// Firecracker's jailer, or `off`; as root the one beside Firecracker is used
    #[arg(long, env = "STOKER_JAILER", value_name = "FILE|off")]
    pub jailer: Option<PathBuf>,
    /// How QEMU runs guests: auto (KVM where a trial and each kernel show that it works), kvm or tcg
    #[arg(long, env = "STOKER_ACCEL", value_name = "MODE", value_parser = parse_accel)]
    pub accel: Option<AccelMode>,
    /// Whether VMs of prewarmed images go on from a template (QEMU); default true
    #[arg(long, env = "STOKER_PREWARM", value_name = "BOOL")]
    pub prewarm: Option<bool>,
    /// VMs to keep up for jobs to come; may be given several times
    #[arg(long, env = "STOKER_WARM", value_name = "IMAGE=N", value_delimiter = ',')]
    pub warm: Vec<RawWarm>,
    /// RabbitMQ, amqp://host:port/vhost; with a password better in the environment, where ps does not show it
    #[arg(long, env = "STOKER_BROKER", value_name = "URL", hide_env_values = true)]
    pub broker: Option<String>,
    /// CA of an amqps:// broker (PEM), trusted besides the host's own
    #[arg(long, env = "STOKER_BROKER_CA", value_name = "FILE")]
    pub broker_ca: Option<PathBuf>,
    /// VMs at the same time
    #[arg(long, env = "STOKER_SLOTS", value_name = "N")]
    pub slots: Option<u32>,
    /// Pool to serve; may be given several times
    #[arg(long = "pool", env = "STOKER_POOLS", value_name = "NAME", value_delimiter = ',')]
    pub pools: Vec<String>,
    /// Network namespace for the VMs; empty for the host's own network
    #[arg(long, env = "STOKER_NAMESPACE", value_name = "NAME")]
    pub namespace: Option<String>,
    /// Use QEMU's user network: needs no privileges, judged by HTTP only
    #[arg(long, env = "STOKER_UNPRIVILEGED")]
    pub unprivileged: bool,
}

fn parse_driver(text: &str) -> Result<Driver, String> {
    [Driver::Firecracker, Driver::Qemu, Driver::Simulated]
        .into_iter()
        .find(|d| d.as_str() == text)
        .ok_or_else(|| "one of firecracker, qemu, simulated".to_owned())
}

fn parse_accel(text: &str) -> Result<AccelMode, String> {
    text.parse()
}

impl RawConfig {
    /// Reads a settings file.
    pub fn read(path: &Path) -> Result<Self, ConfigErrors> {
        let wrong = |what: String| ConfigErrors(vec![format!("{}: {what}", path.display())]);
        let size = std::fs::metadata(path).map_err(|e| wrong(e.to_string()))?.len();
        if size > MAX_FILE_BYTES {
            return Err(wrong(format!("{size} bytes, at most {MAX_FILE_BYTES}")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        toml_text::parse(&text).map_err(|e| wrong(e.to_string()))
    }
}

impl Config {
    /// File and flags together, checked.
    pub fn resolve(flags: Flags) -> Result<Self, ConfigErrors> {
        let file = flags.config.as_deref().map(RawConfig::read).transpose()?.unwrap_or_default();
        Self::merge(file, flags)
    }

    /// Flags win over the file; every error at once.
    pub fn merge(file: RawConfig, flags: Flags) -> Result<Self, ConfigErrors> {
        let mut errors = Vec::new();
        let host = name(flags.host.or(file.host).unwrap_or_else(machine_name), "host", &mut errors);
        let given = if flags.pools.is_empty() { file.pools.unwrap_or_default() } else { flags.pools };
        let mut pools: Vec<_> = given.into_iter().filter_map(|p| name(p, "pools", &mut errors)).collect();
        if pools.is_empty() {
            pools.push(Default::default());
        }
        let labels = file.labels.unwrap_or_default();
        super::check_labels(&labels, &mut errors);
        let driver = flags.driver.or(file.driver).unwrap_or(Driver::Qemu);
        let network = network(file.network.unwrap_or_default(), flags.namespace, flags.unprivileged, &mut errors);
        if driver == Driver::Firecracker && network == NetworkMode::User {
            errors
                .push("network: Firecracker needs taps; run as root, or use --driver qemu for the user network".into());
        }
        let accel = flags.accel.or(file.accel).unwrap_or_default();
        if driver == Driver::Firecracker && accel == AccelMode::Tcg {
            errors.push("accel: Firecracker needs KVM; set it to auto, or use --driver qemu".into());
        }
        let capacity = Capacity {
            slots: flags.slots.or(file.slots).unwrap_or(32),
            vcpus: file.vcpus.unwrap_or(256),
            memory_mib: file.memory_mib.unwrap_or(65_536),
        };
        let warm = if flags.warm.is_empty() { file.warm.unwrap_or_default() } else { flags.warm };
        let warm = warm::resolve(warm, capacity, &mut errors);
        let max_booting = file.max_booting.unwrap_or(8);
        for (field, value) in [
            ("slots", capacity.slots),
            ("vcpus", capacity.vcpus),
            ("memory_mib", capacity.memory_mib),
            ("max_booting", max_booting),
        ] {
            if value == 0 {
                errors.push(format!("{field}: 0 would take no job; 1 or more"));
            }
        }
        let jailer_uid_base = uid_base(file.jailer_uid_base, &network, &mut errors);
        let rates = Rates {
            disk: rate("disk_mib_per_s", file.disk_mib_per_s, &mut errors),
            net: rate("net_mib_per_s", file.net_mib_per_s, &mut errors),
        };
        let cgroup_parent = cgroup_parent(file.cgroup_parent, &mut errors);
        let broker = flags.broker.or(file.broker).and_then(|url| broker(url, &mut errors));
        let hold = message_time("hold_ms", file.hold_ms, DEFAULT_HOLD_MS, MAX_HOLD_MS, &mut errors);
        let settle_after =
            message_time("settle_after_ms", file.settle_after_ms, DEFAULT_SETTLE_MS, MAX_SETTLE_MS, &mut errors);
        let millis = |value: Option<u64>, default: u64| Duration::from_millis(value.unwrap_or(default));
        let (Some(host), true) = (host, errors.is_empty()) else { return Err(ConfigErrors(errors)) };
        Ok(Self {
            host,
            labels,
            pools,
            data: flags.data.or(file.data).unwrap_or_else(|| "/var/lib/stoker".into()),
            images: flags.images.or(file.images).unwrap_or_else(|| "/var/lib/stoker/images".into()),
            driver,
            firecracker: flags.firecracker.or(file.firecracker).unwrap_or_else(|| "firecracker".into()),
            jailer: jailer(flags.jailer.or(file.jailer)),
            jailer_uid_base,
            cgroup_parent,
            rates,
            qemu: file.qemu.unwrap_or_else(|| "qemu-system-x86_64".into()),
            accel,
            prewarm: flags.prewarm.or(file.prewarm).unwrap_or(true),
            network,
            warm,
            capacity,
            max_booting,
            hold,
            settle_after,
            drain: millis(file.drain_ms, 120_000),
            stop_grace: millis(file.stop_grace_ms, 5_000),
            log_cache_bytes: file.log_cache_mib.unwrap_or(64).clamp(8, 16_384) << 20,
            broker,
            broker_ca: flags.broker_ca.or(file.broker_ca),
        })
    }
}

/// A time for which a message is kept unacknowledged.
fn message_time(field: &str, given: Option<u64>, default: u64, max: u64, errors: &mut Vec<String>) -> Duration {
    let ms = given.unwrap_or(default);
    if ms > max {
        errors.push(format!(
            "{field}: {ms} is too long, at most {max}: RabbitMQ takes back what is not acknowledged within its \
             consumer_timeout (30 minutes)"
        ));
    }
    Duration::from_millis(ms)
}

fn jailer(given: Option<PathBuf>) -> JailerMode {
    match given {
        None => JailerMode::Auto,
        Some(word) if word.as_os_str() == "off" => JailerMode::Off,
        Some(program) => JailerMode::Program(program),
    }
}

/// Each address has a user of its own from here on: none may be root, none beyond what Linux knows.
fn uid_base(given: Option<u32>, network: &NetworkMode, errors: &mut Vec<String>) -> u32 {
    let base = given.unwrap_or(DEFAULT_UID_BASE);
    let addresses = match network {
        NetworkMode::Bridge { prefix, .. } => u32::MAX.checked_shr(u32::from(*prefix)).unwrap_or(0),
        NetworkMode::User => 0,
    };
    let last = i32::MAX.cast_unsigned() - addresses;
    if base == 0 || base > last {
        errors.push(format!("jailer_uid_base: {base} is out of range, 1 to {last} (one user per address follows)"));
    }
    base
}

fn rate(field: &str, mib: Option<u32>, errors: &mut Vec<String>) -> Option<u64> {
    if mib == Some(0) {
        errors.push(format!("{field}: 0 would let nothing through; leave it out for no limit"));
    }
    mib.map(|mib| u64::from(mib) << 20)
}

fn cgroup_parent(given: Option<String>, errors: &mut Vec<String>) -> String {
    let parent = given.unwrap_or_else(|| DEFAULT_CGROUP_PARENT.to_owned());
    let plain = |part: &str| {
        let letters = part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.@:".contains(c));
        letters && !part.is_empty() && part != "." && part != ".."
    };
    if parent.len() > MAX_CGROUP_BYTES || !parent.split('/').all(plain) {
        errors.push("cgroup_parent: a path below the top of the control groups, such as stoker".to_owned());
    }
    parent
}

fn name<T: std::str::FromStr>(text: String, field: &str, errors: &mut Vec<String>) -> Option<T>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|e: T::Err| errors.push(format!("{field}: {e}"))).ok()
}

/// The machine's name, made to fit a host name's rule.
fn machine_name() -> String {
    let full = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
    let short = full.split('.').next().unwrap_or_default();
    let plain: String = short.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
    let trimmed = plain.trim_matches('-');
    if trimmed.is_empty() { "host".to_owned() } else { trimmed.to_owned() }
}

fn broker(url: String, errors: &mut Vec<String>) -> Option<BrokerUrl> {
    if url.is_empty() || url == "embedded" {
        return None;
    }
    if !(url.starts_with("amqp://") || url.starts_with("amqps://")) {
        errors.push("broker: expected amqp://host:port/vhost (or amqps://), or embedded".to_owned());
    }
    Some(BrokerUrl(url))
}

fn network(raw: RawNetwork, namespace: Option<String>, unprivileged: bool, errors: &mut Vec<String>) -> NetworkMode {
    if unprivileged || raw.mode == Some(RawMode::User) {
        return NetworkMode::User;
    }
    let namespace = namespace.or(raw.namespace).unwrap_or_else(|| "stoker".to_owned());
    let plain = |text: &str, max: usize| {
        text.len() <= max && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    if !plain(&namespace, 40) {
        errors
            .push("network.namespace: at most 40 of letters, digits, '-' and '_'; empty for the host's own".to_owned());
    }
    let bridge = raw.bridge.unwrap_or_else(|| "stbr0".to_owned());
    if bridge.is_empty() || !plain(&bridge, 15) {
        errors.push("network.bridge: 1-15 of letters, digits, '-' and '_'".to_owned());
    }
    let prefix = raw.prefix.unwrap_or(24);
    if !(16..=29).contains(&prefix) {
        errors.push(format!("network.prefix: {prefix} is out of range, 16 to 29"));
    }
    let gateway = raw.gateway.unwrap_or(Ipv4Addr::new(192, 168, 100, 1));
    let namespace = (!namespace.is_empty()).then_some(namespace);
    NetworkMode::Bridge { namespace, bridge, gateway, prefix, firewall: raw.firewall.unwrap_or(true) }
}

#[cfg(test)]
impl RawConfig {
    /// From text, for tests.
    pub(super) fn parse(text: &str) -> Self {
        toml::from_str(text).unwrap()
    }
}
