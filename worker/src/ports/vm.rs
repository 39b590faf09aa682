//! Hypervisors: boot, adopt, stop. Three drivers (Firecracker, QEMU, simulated), one suite.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use stoker_schemas::{VmId, image::Driver};
use tokio::sync::{mpsc, watch};

use super::net::Nic;
use crate::boots::Boots;

/// Everything a driver needs to boot one VM. Paths exist; `dir` is this attempt's own.
#[derive(Debug, Clone)]
pub struct VmPlan {
    /// Which VM.
    pub vm: VmId,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Uncompressed ELF kernel.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The whole kernel command line, `stoker.vm_id=` included.
    pub kernel_args: String,
    /// The kernel command line of a template, where this VM may be a copy of one: a guest that has
    /// booted, waits to be told who it is, and is then any number of VMs.
    pub template_args: Option<String>,
    /// Root disk, already an overlay of this attempt.
    pub disk: Option<Disk>,
    /// Network card.
    pub nic: Nic,
    /// Working directory of this attempt: sockets, logs, console.
    pub dir: PathBuf,
    /// User and group the VMM is to run as, where it is jailed; the tap is this user's.
    pub owner: Option<u32>,
}

impl VmPlan {
    /// The same with absolute paths: a VMM runs in the attempt's directory, where relative ones
    /// would mean something else.
    pub fn with_absolute_paths(mut self) -> std::io::Result<Self> {
        let disk =
            self.disk.iter_mut().flat_map(|disk| std::iter::once(&mut disk.path).chain(&mut disk.read_only_base));
        for path in [&mut self.kernel, &mut self.dir].into_iter().chain(&mut self.initrd).chain(disk) {
            *path = std::path::absolute(&path)?;
        }
        Ok(self)
    }
}

/// A block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Backing file.
    pub path: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// A read-only base to be shown as first drive, with `path` as the writable second one.
    pub read_only_base: Option<PathBuf>,
}

/// Formats a driver may be handed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    /// Plain bytes.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

/// What is written down about a VM, so that a restarted worker finds it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// Which VM.
    pub vm: VmId,
    /// Who runs it.
    pub driver: Driver,
    /// Process id of the VMM.
    pub pid: u32,
    /// Start time of that process, clock ticks since host boot (field 22 of `/proc/<pid>/stat`): a
    /// reused pid has another.
    pub start_ticks: u64,
    /// The attempt's directory.
    pub dir: PathBuf,
}

/// A number that only grows while the worker lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counter {
    /// As Prometheus names it.
    pub name: &'static str,
    /// What it is.
    pub help: &'static str,
    /// Its value.
    pub value: u64,
}

/// A hypervisor.
#[async_trait]
pub trait Hypervisor: Send + Sync + 'static {
    /// Which one.
    fn driver(&self) -> Driver;

    /// Version and acceleration, for people (`Firecracker 1.12.1, KVM`).
    fn describe(&self) -> String;

    /// Why `describe` last changed; `None` in it until it does. A driver without the method never changes.
    fn changes(&self) -> Option<watch::Receiver<Option<String>>> {
        None
    }

    /// Starts the VM; returns when the guest has been told to run, not when it is up. On error
    /// nothing is left running.
    async fn boot(&self, plan: VmPlan) -> Result<Arc<dyn Vm>, VmError>;

    /// Takes over a VM that an earlier worker started. `None` when that process is gone (or its
    /// pid now belongs to another process).
    async fn adopt(&self, record: VmRecord) -> Result<Option<Arc<dyn Vm>>, VmError>;

    /// What became of a VM of this plan. A driver may keep a template of those that became ready,
    /// and throw away one whose copy did not. Returns at once.
    fn learn(&self, _plan: &VmPlan, _ready: bool) {}

    /// How many VMs may boot at once on the host. A driver that boots some on its own account (templates) takes
    /// places for them.
    fn share_boots(&self, _boots: Boots) {}

    /// What its VMMs have counted, all together; empty where they do not count.
    fn counters(&self) -> Vec<Counter> {
        Vec::new()
    }

    /// Removes what the VMM of this VM, which has ended, leaves outside its folder. Idempotent, and
    /// asked for again after a crash.
    async fn clean_up(&self, _vm: VmId) -> Result<(), VmError> {
        Ok(())
    }
}

/// A running VM. Dropping it leaves the VM running: VMs outlive workers.
#[async_trait]
pub trait Vm: Send + Sync + 'static {
    /// What to write down about it.
    fn record(&self) -> VmRecord;

    /// The serial console. Can be taken once.
    fn console(&self) -> Option<ConsoleFeed>;

    /// What runs its guest's code (`KVM, 2400 MIPS`), for people.
    fn accelerator(&self) -> Option<String> {
        None
    }

    /// Time that went to an accelerator which did not run the guest, before this one did. The guest's deadline
    /// is later by that much.
    fn lost(&self) -> Duration {
        Duration::ZERO
    }

    /// What the VMM says of itself (`running`, `io-error`), where it can be asked.
    async fn status(&self) -> Option<String> {
        None
    }

    /// Whether the VMM answers when it is asked; one that cannot be asked counts as answering.
    async fn responds(&self) -> bool {
        true
    }

    /// Whether it is a copy of a template, whose kernel had booted before.
    fn restored(&self) -> bool {
        false
    }

    /// Whether its guest was ever told to run: a worker may have died between starting the VMM and
    /// that. Waits for a VMM that is just coming up.
    async fn started(&self) -> bool {
        true
    }

    /// Waits for the VMM's end; returns at once, with the same, when it has ended.
    async fn exited(&self) -> VmExit;

    /// Asks the guest to stop, waits up to `grace` (zero: not at all), then kills the VMM and
    /// waits for its end. Idempotent.
    async fn stop(&self, grace: Duration) -> Result<VmExit, VmError>;
}

/// Where console bytes come from.
pub enum ConsoleFeed {
    /// A file the VMM appends to (it survives a worker restart).
    File(PathBuf),
    /// Bytes as a simulated guest writes them.
    Channel(mpsc::Receiver<Bytes>),
}

/// How a VMM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmExit {
    /// Exit code, where it can be known (an adopted VMM is not our child).
    pub code: Option<i32>,
    /// Signal that ended it.
    pub signal: Option<i32>,
    /// What the code means, and the VMM's last words (bounded).
    pub reason: String,
}

/// What can go wrong with a hypervisor.
#[derive(Debug, Clone, thiserror::Error)]
pub enum VmError {
    /// The VMM could not be started.
    #[error("{driver} could not be started: {cause}; {hint}")]
    Spawn {
        /// Which hypervisor.
        driver: &'static str,
        /// The system's words.
        cause: String,
        /// What to do.
        hint: &'static str,
    },
    /// The VMM refused a request; its own message.
    #[error("{driver} refused {request}: {message}")]
    Refused {
        /// Which hypervisor.
        driver: &'static str,
        /// Which request (`PUT /boot-source`).
        request: String,
        /// Its message.
        message: String,
    },
    /// The VMM ended while it was being set up.
    #[error("{driver} ended during start-up: {reason}")]
    Died {
        /// Which hypervisor.
        driver: &'static str,
        /// Exit code named, and last words.
        reason: String,
    },
    /// The VMM did not answer in time.
    #[error("{driver} did not answer {request} within {within:?}")]
    Unresponsive {
        /// Which hypervisor.
        driver: &'static str,
        /// Which request.
        request: String,
        /// The deadline that passed.
        within: Duration,
    },
    /// The plan asks for something this driver cannot do.
    #[error("{driver} cannot do this: {what}")]
    Unsupported {
        /// Which hypervisor.
        driver: &'static str,
        /// What.
        what: String,
    },
}
