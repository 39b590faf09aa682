//! An image's manifest (`image.json`): what the folder holds and what it allows.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::spec::{FieldError, JobSpec, Network, kernel_args};

/// The manifest's schema tag.
pub const IMAGE_SCHEMA: &str = "dev.stoker.image.v1";

/// Which hypervisor boots a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// Firecracker on KVM.
    Firecracker,
    /// QEMU's microvm machine, on KVM or TCG.
    Qemu,
    /// Guests with a scripted life inside the worker, for tests and trials.
    Simulated,
}

impl Driver {
    /// Its name as in configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Firecracker => "firecracker",
            Self::Qemu => "qemu",
            Self::Simulated => "simulated",
        }
    }
}

/// How an image's userland gets its address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ImageNetwork {
    /// It runs a DHCP client on eth0.
    #[default]
    Dhcp,
    /// It leaves eth0 to the kernel command line.
    Static,
}

/// What an image's VMs may reach beside the outside: by default neither the host, nor other VMs, nor
/// a cloud's metadata service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Reach {
    /// Services of the host they run on.
    pub host: bool,
    /// Other VMs of the same network whose image says so, too.
    pub vms: bool,
    /// The metadata service at 169.254.169.254.
    pub metadata: bool,
}

/// `image.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageManifest {
    /// Always `dev.stoker.image.v1`.
    pub schema: String,
    /// The image's name, as its folder is called.
    pub name: String,
    /// Kernel file, below the folder.
    pub kernel: String,
    /// Initial RAM disk, below the folder.
    #[serde(default)]
    pub initrd: Option<String>,
    /// Root file system, below the folder; never written to.
    #[serde(default)]
    pub rootfs: Option<String>,
    /// Kernel arguments every boot gets.
    #[serde(default)]
    pub kernel_args: String,
    /// How its userland gets its address.
    #[serde(default)]
    pub network: ImageNetwork,
    /// Whether jobs may ask for a static address.
    #[serde(default)]
    pub allow_static: bool,
    /// The agent's port.
    #[serde(default = "default_port")]
    pub agent_port: u16,
    /// Path that the agent takes a POST on to end its guest in order: asked before its button is pressed.
    #[serde(default)]
    pub shutdown: Option<String>,
    /// systemd units a healthy boot shows.
    #[serde(default)]
    pub units: Vec<String>,
    /// Below this memory it does not boot, MiB.
    #[serde(default)]
    pub min_memory_mib: u32,
    /// Hypervisors it boots in; empty for any.
    #[serde(default)]
    pub drivers: Vec<Driver>,
    /// What its VMs may reach.
    #[serde(default)]
    pub reach: Reach,
    /// Its guest can wait, booted, to be told who it is (`stoker.template=1` on its kernel command
    /// line): VMs may go on from a saved one instead of booting.
    #[serde(default)]
    pub prewarmed: bool,
    /// `sha256:…` of each file.
    #[serde(default)]
    pub digests: BTreeMap<String, String>,
}

fn default_port() -> u16 {
    8080
}

impl ImageManifest {
    /// What of the job this image cannot do, as errors on the job's fields.
    pub fn check_job(&self, spec: &JobSpec) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut wrong = |field: &str, message: String, hint: &str| {
            errors.push(FieldError { field: field.into(), message, hint: hint.into() });
        };
        if matches!(spec.network, Network::Static(_)) && !self.allow_static {
            wrong(
                "network",
                format!("image {} gets its address by DHCP and does not allow a static one", self.name),
                "leave network out, or set allow_static in the image's manifest",
            );
        }
        if spec.memory_mib < self.min_memory_mib {
            let least = self.min_memory_mib;
            wrong(
                "memory_mib",
                format!("{} is too little for image {}", spec.memory_mib, self.name),
                &format!("at least {least}"),
            );
        }
        if self.network == ImageNetwork::Dhcp {
            errors.extend(kernel_args::check("kernel_args", &spec.kernel_args));
        }
        errors
    }
}
