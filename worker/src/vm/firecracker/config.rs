//! The bodies of Firecracker's requests, made of a plan.

use serde::{Deserialize, Serialize};

use super::DRIVER;
use crate::ports::{
    net::Nic,
    vm::{Disk, DiskFormat, VmError, VmPlan},
};

#[derive(Debug, PartialEq, Serialize)]
pub struct MachineConfig {
    vcpu_count: u32,
    mem_size_mib: u32,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct BootSource<'a> {
    kernel_image_path: &'a str,
    boot_args: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    initrd_path: Option<&'a str>,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct Drive<'a> {
    pub drive_id: &'static str,
    is_root_device: bool,
    path_on_host: &'a str,
    is_read_only: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_limiter: Option<RateLimiter>,
}

/// A bucket of bytes that is filled again once a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RateLimiter {
    bandwidth: Bucket,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Bucket {
    size: u64,
    refill_time: u64,
}

impl RateLimiter {
    fn per_second(bytes: u64) -> Self {
        Self { bandwidth: Bucket { size: bytes, refill_time: 1_000 } }
    }
}

/// What a VM may move at most, bytes per second; `None` for as much as it can.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Each disk, reads and writes together.
    pub disk: Option<u64>,
    /// The network card, each direction.
    pub net: Option<u64>,
}

/// What a version of Firecracker knows, beyond what all that Stoker takes know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// `PUT /entropy`: randomness from the host from the first moment on.
    pub entropy: bool,
}

impl Features {
    /// Of a version, as `GET /version` tells it.
    pub fn of(version: (u32, u32)) -> Self {
        Self { entropy: version >= (1, 5) }
    }
}

/// `GET /version`.
#[derive(Debug, Deserialize)]
pub struct Version {
    pub firecracker_version: String,
}

/// The entropy device has no required settings.
#[derive(Debug, Serialize)]
pub struct Entropy {}

#[derive(Debug, PartialEq, Serialize)]
pub struct NetworkInterface<'a> {
    pub iface_id: &'static str,
    host_dev_name: &'a str,
    guest_mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    rx_rate_limiter: Option<RateLimiter>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tx_rate_limiter: Option<RateLimiter>,
}

/// Where it writes what it counts.
#[derive(Debug, Serialize)]
pub struct Metrics {
    pub metrics_path: String,
}

#[derive(Debug, Serialize)]
pub struct Action {
    pub action_type: &'static str,
}

/// What is configured before the start, in the documented order.
#[derive(Debug, PartialEq)]
pub struct Setup<'a> {
    pub machine: MachineConfig,
    pub boot: BootSource<'a>,
    pub drives: Vec<Drive<'a>>,
    pub nic: NetworkInterface<'a>,
}

fn unsupported(what: String) -> VmError {
    VmError::Unsupported { driver: DRIVER, what }
}

fn utf8<'a>(path: &'a std::path::Path, what: &str) -> Result<&'a str, VmError> {
    path.to_str().ok_or_else(|| unsupported(format!("path of {what} is not UTF-8: {}", path.display())))
}

impl<'a> Setup<'a> {
    pub fn of(plan: &'a VmPlan, rates: Rates) -> Result<Self, VmError> {
        let Nic::Tap { name, mac } = &plan.nic else {
            return Err(unsupported("it needs a tap device; the user network is QEMU's".to_owned()));
        };
        let initrd_path = plan.initrd.as_deref().map(|path| utf8(path, "initrd")).transpose()?;
        Ok(Self {
            machine: MachineConfig { vcpu_count: plan.vcpus, mem_size_mib: plan.memory_mib },
            boot: BootSource {
                kernel_image_path: utf8(&plan.kernel, "kernel")?,
                boot_args: &plan.kernel_args,
                initrd_path,
            },
            drives: plan.disk.as_ref().map_or(Ok(Vec::new()), |disk| drives(disk, rates))?,
            nic: NetworkInterface {
                iface_id: "eth0",
                host_dev_name: name,
                guest_mac: mac.to_string(),
                rx_rate_limiter: rates.net.map(RateLimiter::per_second),
                tx_rate_limiter: rates.net.map(RateLimiter::per_second),
            },
        })
    }
}

fn drives(disk: &Disk, rates: Rates) -> Result<Vec<Drive<'_>>, VmError> {
    let rate_limiter = rates.disk.map(RateLimiter::per_second);
    if disk.format != DiskFormat::Raw {
        return Err(unsupported(format!("{:?} disks: it takes raw ones only", disk.format)));
    }
    let path = utf8(&disk.path, "disk")?;
    let Some(base) = &disk.read_only_base else {
        return Ok(vec![Drive {
            drive_id: "root",
            is_root_device: true,
            path_on_host: path,
            is_read_only: false,
            rate_limiter,
        }]);
    };
    let base = utf8(base, "base disk")?;
    Ok(vec![
        Drive { drive_id: "root", is_root_device: true, path_on_host: base, is_read_only: true, rate_limiter },
        Drive { drive_id: "scratch", is_root_device: false, path_on_host: path, is_read_only: false, rate_limiter },
    ])
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_base_comes_first_and_read_only() {
        let disk = Disk { path: "/d/scratch".into(), format: DiskFormat::Raw, read_only_base: Some("/i/base".into()) };
        let rates = Rates { disk: Some(1 << 20), net: None };
        let drives = drives(&disk, rates).unwrap();
        let limited = serde_json::to_value(&drives[1]).unwrap();
        assert_eq!(limited["rate_limiter"]["bandwidth"], serde_json::json!({"size": 1 << 20, "refill_time": 1000}));
        assert_eq!((drives[0].path_on_host, drives[0].is_root_device, drives[0].is_read_only), ("/i/base", true, true));
        assert_eq!(
            (drives[1].path_on_host, drives[1].is_root_device, drives[1].is_read_only),
            ("/d/scratch", false, false)
        );
    }

    #[test]
    fn qcow2_is_refused_with_the_reason() {
        let disk = Disk { path: PathBuf::from("/d/x"), format: DiskFormat::Qcow2, read_only_base: None };
        assert!(drives(&disk, Rates::default()).unwrap_err().to_string().contains("raw"));
    }
}
