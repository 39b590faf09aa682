//! Hypervisor drivers behind [`crate::ports::vm`].
//!
//! [`firecracker`] and [`qemu`] start one VMM process per VM, which outlives the worker and is
//! found again by pid and start time ([`process`]); [`simulated`] keeps its guests in memory.

mod boot_error;
pub mod cgroup;
pub mod exit;
pub mod files;
pub mod firecracker;
pub mod process;
pub mod program;
pub mod qemu;
pub mod simulated;
mod socket;

pub use firecracker::{Firecracker, FirecrackerOptions, Jailer, Rates};
pub use process::{Here, Spawner};
pub use qemu::{Accel, AccelDecision, AccelMode, Kernels, Qemu, QemuOptions, Speed, TemplateFolders, Trial};
pub use simulated::{SimWorld, Simulated, SimulatedNetwork, SimulatedProber};
