//! Raw form -> [`JobSpec`]: ranges, names and rules. Pushes every error; never stops at the first.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::str::FromStr;

use super::raw::{RawHttp, RawNetwork, RawReadiness, RawRetry, RawSpec, RawStatic};
use super::{FieldError, JobSpec, Network, Readiness, RetryPolicy, StaticAddress, kernel_args};
use crate::diagnosis::Cause;
use crate::limits as l;

struct Check<'a> {
    errors: &'a mut Vec<FieldError>,
}

impl Check<'_> {
    fn wrong(&mut self, field: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.errors.push(FieldError { field: field.to_owned(), message: message.into(), hint: hint.into() });
    }

    fn range(&mut self, field: &str, value: Option<u64>, default: u64, min: u64, max: u64) -> u64 {
        let value = value.unwrap_or(default);
        if !(min..=max).contains(&value) {
            self.wrong(field, format!("{value} is out of range"), format!("{min} to {max}"));
            return default;
        }
        value
    }

    /// Range check for fields whose maximum is a `u32` constant.
    fn range32(&mut self, field: &str, value: Option<u64>, default: u32, min: u32, max: u32) -> u32 {
        let checked = self.range(field, value, default.into(), min.into(), max.into());
        u32::try_from(checked).unwrap_or(default)
    }

    fn text(&mut self, field: &str, value: &str, max: usize) {
        if value.is_empty() {
            self.wrong(field, "is empty", "leave it out");
        } else if value.len() > max {
            self.wrong(field, format!("{} bytes, at most {max}", value.len()), "shorten it");
        } else if value.chars().any(char::is_control) {
            self.wrong(field, "contains control characters", "printable text only");
        }
    }

    fn name<T: FromStr>(&mut self, field: &str, value: &str) -> Option<T>
    where
        T::Err: std::fmt::Display,
    {
        value.parse().map_err(|e: T::Err| self.wrong(field, e.to_string(), "")).ok()
    }

    fn labels(&mut self, field: &str, labels: Option<BTreeMap<String, String>>) -> BTreeMap<String, String> {
        let labels = labels.unwrap_or_default();
        if labels.len() > l::MAX_LABELS {
            self.wrong(field, format!("{} labels, at most {}", labels.len(), l::MAX_LABELS), "");
        }
        for (key, value) in &labels {
            let at = super::reader::dotted(field, &l::clip(key, 80));
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
            if key.is_empty() || key.len() > l::MAX_LABEL_BYTES || !key.chars().all(plain) {
                self.wrong(&at, "bad label key", "1-63 of letters, digits and -_./");
            }
            if !value.is_empty() {
                self.text(&at, value, l::MAX_LABEL_BYTES);
            }
        }
        labels
    }
}

/// `None` only when the image is missing or malformed; other errors keep the default and go on.
pub(super) fn validate(raw: RawSpec, errors: &mut Vec<FieldError>) -> Option<JobSpec> {
    let mut c = Check { errors };
    let image = match &raw.image {
        Some(name) => c.name("image", name),
        // An image of the wrong type was already reported; do not call it missing as well.
        None if c.errors.iter().any(|e| e.field == "image" || e.field == "(job)") => None,
        None => {
            c.wrong("image", "is missing", "name the image to boot, such as golden@7");
            None
        }
    };
    let kernel_args = raw.kernel_args.unwrap_or_default();
    c.errors.extend(kernel_args::check("kernel_args", &kernel_args));
    let pool = raw.pool.map_or_else(Default::default, |p| c.name("pool", &p).unwrap_or_default());
    for (field, value, max) in [
        ("callback_url", &raw.callback_url, l::MAX_URL_BYTES),
        ("idempotency_key", &raw.idempotency_key, l::MAX_IDEMPOTENCY_KEY_BYTES),
    ] {
        if let Some(value) = value {
            c.text(field, value, max);
        }
    }
    if raw.callback_url.as_ref().is_some_and(|u| !u.starts_with("https://") && !u.starts_with("http://")) {
        c.wrong("callback_url", "is not an http(s) URL", "https://host/path");
    }
    let spec_rest = JobSpecRest {
        vcpus: c.range32("vcpus", raw.vcpus, 1, 1, l::MAX_VCPUS),
        memory_mib: c.range32(
            "memory_mib",
            raw.memory_mib,
            l::DEFAULT_MEMORY_MIB,
            l::MIN_MEMORY_MIB,
            l::MAX_MEMORY_MIB,
        ),
        disk_mib: c.range32("disk_mib", raw.disk_mib, 0, 0, l::MAX_DISK_MIB),
        network: network(&mut c, raw.network),
        readiness: readiness(&mut c, raw.readiness.unwrap_or_default()),
        retry: retry(&mut c, raw.retry.unwrap_or_default()),
        ttl_s: raw.ttl_s.map(|t| c.range("ttl_s", Some(t), l::MAX_TTL_S, 1, l::MAX_TTL_S)),
        labels: c.labels("labels", raw.labels),
        host_labels: c.labels("host_labels", raw.host_labels),
    };
    Some(JobSpec {
        image: image?,
        vcpus: spec_rest.vcpus,
        memory_mib: spec_rest.memory_mib,
        disk_mib: spec_rest.disk_mib,
        kernel_args: kernel_args.split_ascii_whitespace().collect::<Vec<_>>().join(" "),
        network: spec_rest.network,
        readiness: spec_rest.readiness,
        retry: spec_rest.retry,
        ttl_s: spec_rest.ttl_s,
        priority: raw.priority.unwrap_or_default(),
        pool,
        labels: spec_rest.labels,
        host_labels: spec_rest.host_labels,
        callback_url: raw.callback_url,
        idempotency_key: raw.idempotency_key,
    })
}

/// The fields that always have a value, checked before the image decides whether there is a spec.
struct JobSpecRest {
    vcpus: u32,
    memory_mib: u32,
    disk_mib: u32,
    network: Network,
    readiness: Readiness,
    retry: RetryPolicy,
    ttl_s: Option<u64>,
    labels: BTreeMap<String, String>,
    host_labels: BTreeMap<String, String>,
}

fn network(c: &mut Check<'_>, raw: Option<RawNetwork>) -> Network {
    let Some(RawNetwork::Static(raw)) = raw else { return Network::Dhcp };
    let RawStatic { address, prefix, gateway } = raw;
    let mut ip = |field: &str, text: Option<String>| match text.as_deref().map(Ipv4Addr::from_str) {
        Some(Ok(ip)) => Some(ip),
        Some(Err(_)) => {
            c.wrong(field, "is not an IPv4 address", "such as 192.168.100.2");
            None
        }
        None => {
            c.wrong(field, "is missing", "such as 192.168.100.2");
            None
        }
    };
    let address = ip("network.static.address", address);
    let gateway = ip("network.static.gateway", gateway);
    let prefix = c.range32("network.static.prefix", prefix, 24, 8, 30);
    let prefix = u8::try_from(prefix).unwrap_or(24);
    match (address, gateway) {
        (Some(address), Some(gateway)) => Network::Static(StaticAddress { address, prefix, gateway }),
        _ => Network::Dhcp,
    }
}

fn readiness(c: &mut Check<'_>, raw: RawReadiness) -> Readiness {
    let RawHttp { port, path, expected_status, body_contains } = raw.http.unwrap_or_default();
    let path = path.unwrap_or_else(|| "/health".to_owned());
    let plain = |b: u8| b.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(&b);
    if !path.starts_with('/') || path.len() > l::MAX_URL_BYTES || !path.bytes().all(plain) {
        c.wrong("readiness.http.path", "is not a URL path", "starts with '/', such as /health");
    }
    if let Some(text) = &body_contains {
        c.text("readiness.http.body_contains", text, l::MAX_BODY_MATCH_BYTES);
    }
    let units = raw.units.unwrap_or_default();
    if units.len() > l::MAX_UNITS {
        c.wrong("readiness.units", format!("{} units, at most {}", units.len(), l::MAX_UNITS), "");
    }
    for (i, unit) in units.iter().enumerate().take(l::MAX_UNITS) {
        c.text(&format!("readiness.units[{i}]"), unit, l::MAX_UNIT_BYTES);
    }
    let port = c.range32("readiness.http.port", port, 8080, 1, 65_535);
    let status = c.range32("readiness.http.expected_status", expected_status, 200, 100, 599);
    Readiness {
        port: u16::try_from(port).unwrap_or(8080),
        path,
        expected_status: u16::try_from(status).unwrap_or(200),
        body_contains,
        check_identity: raw.check_identity.unwrap_or(true),
        deadline_ms: c.range("readiness.deadline_ms", raw.deadline_ms, 120_000, 1, l::MAX_DEADLINE_MS),
        units,
    }
}

fn retry(c: &mut Check<'_>, raw: RawRetry) -> RetryPolicy {
    let mut per_cause = BTreeMap::new();
    for (name, attempts) in raw.per_cause.unwrap_or_default() {
        let field = format!("retry.per_cause.{}", l::clip(&name, 80));
        match name.parse::<Cause>() {
            Ok(cause) => {
                per_cause.insert(cause, c.range32(&field, Some(attempts), 1, 1, l::MAX_ATTEMPTS));
            }
            Err(_) => {
                let known: Vec<_> = Cause::ALL.iter().map(|c| c.as_str()).collect();
                c.wrong(&field, "unknown cause", format!("one of {}", known.join(", ")));
            }
        }
    }
    let base_ms = c.range("retry.base_ms", raw.base_ms, 1_000, 0, l::MAX_RETRY_DELAY_MS);
    let cap_ms = c.range("retry.cap_ms", raw.cap_ms, 60_000.max(base_ms), 0, l::MAX_RETRY_DELAY_MS);
    if cap_ms < base_ms {
        c.wrong("retry.cap_ms", format!("{cap_ms} is below retry.base_ms {base_ms}"), "raise it");
    }
    let jitter = c.range32("retry.jitter_percent", raw.jitter_percent, 20, 0, 100);
    RetryPolicy {
        max_attempts: c.range32("retry.max_attempts", raw.max_attempts, 3, 1, l::MAX_ATTEMPTS),
        base_ms,
        cap_ms,
        jitter_percent: u8::try_from(jitter).unwrap_or(20),
        per_cause,
    }
}
