//! The bodies of Firecracker's requests, made of a plan.

use serde::Serialize;

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
}

#[derive(Debug, PartialEq, Serialize)]
pub struct NetworkInterface<'a> {
    pub iface_id: &'static str,
    host_dev_name: &'a str,
    guest_mac: String,
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
    pub fn of(plan: &'a VmPlan) -> Result<Self, VmError> {
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
            drives: plan.disk.as_ref().map_or(Ok(Vec::new()), drives)?,
            nic: NetworkInterface { iface_id: "eth0", host_dev_name: name, guest_mac: mac.to_string() },
        })
    }
}

fn drives(disk: &Disk) -> Result<Vec<Drive<'_>>, VmError> {
    if disk.format != DiskFormat::Raw {
        return Err(unsupported(format!("{:?} disks: it takes raw ones only", disk.format)));
    }
    let path = utf8(&disk.path, "disk")?;
    let Some(base) = &disk.read_only_base else {
        return Ok(vec![Drive { drive_id: "root", is_root_device: true, path_on_host: path, is_read_only: false }]);
    };
    let base = utf8(base, "base disk")?;
    Ok(vec![
        Drive { drive_id: "root", is_root_device: true, path_on_host: base, is_read_only: true },
        Drive { drive_id: "scratch", is_root_device: false, path_on_host: path, is_read_only: false },
    ])
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_base_comes_first_and_read_only() {
        let disk = Disk { path: "/d/scratch".into(), format: DiskFormat::Raw, read_only_base: Some("/i/base".into()) };
        let drives = drives(&disk).unwrap();
        assert_eq!((drives[0].path_on_host, drives[0].is_root_device, drives[0].is_read_only), ("/i/base", true, true));
        assert_eq!(
            (drives[1].path_on_host, drives[1].is_root_device, drives[1].is_read_only),
            ("/d/scratch", false, false)
        );
    }

    #[test]
    fn qcow2_is_refused_with_the_reason() {
        let disk = Disk { path: PathBuf::from("/d/x"), format: DiskFormat::Qcow2, read_only_base: None };
        assert!(drives(&disk).unwrap_err().to_string().contains("raw"));
    }
}
