//! Firecracker: one process per VM, set up over its API in the documented order.

mod api;
mod config;
mod vm;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use stoker_schemas::image::Driver;

use self::{
    api::Api,
    config::{Action, Setup},
    vm::FirecrackerVm,
};
use super::{
    boot_error, files,
    process::{self, Identity, Spawner, Starting, VmmProcess},
    program,
};
use crate::ports::vm::{Hypervisor, Vm, VmError, VmPlan, VmRecord};

/// Its name in errors.
const DRIVER: &str = "Firecracker";
/// How long `firecracker --version` may take.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);
/// The oldest version whose API is the one used here.
const OLDEST: (u32, u32) = (1, 0);

/// Settings of the driver.
#[derive(Debug, Clone)]
pub struct FirecrackerOptions {
    /// Deadline of one API request; `InstanceStart` maps and loads the guest's memory, so a busy
    /// host needs seconds.
    pub api_timeout: Duration,
}

impl Default for FirecrackerOptions {
    fn default() -> Self {
        Self { api_timeout: Duration::from_secs(10) }
    }
}

/// The driver.
pub struct Firecracker {
    binary: PathBuf,
    version: String,
    spawner: Arc<dyn Spawner>,
    options: FirecrackerOptions,
}

impl Firecracker {
    /// Checks that the binary runs, is new enough and may use `/dev/kvm`.
    pub async fn new(binary: &Path, spawner: Arc<dyn Spawner>, options: FirecrackerOptions) -> Result<Self, VmError> {
        let binary = std::path::absolute(binary).map_err(|e| boot_error::spawn(DRIVER, "binary", &e))?;
        let version = version(&binary).await?;
        // Firecracker itself says so only when the first VM starts.
        std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .map_err(|e| boot_error::spawn(DRIVER, "/dev/kvm", &e))?;
        Ok(Self { binary, version, spawner, options })
    }

    fn command(&self, plan: &VmPlan) -> std::io::Result<Command> {
        // The VMM wants its log to exist.
        files::append(&plan.dir, files::VMM_LOG)?;
        let mut command = Command::new(&self.binary);
        command
            .current_dir(&plan.dir)
            .args(["--api-sock", files::API_SOCKET])
            .args(["--id", &plan.vm.to_string()])
            // Without its own log the VMM's lines end up among the guest's on stdout.
            .args(["--log-path", files::VMM_LOG, "--level", "Warn"])
            .stdout(files::append(&plan.dir, files::CONSOLE)?)
            .stderr(files::append(&plan.dir, files::VMM_STDERR)?);
        Ok(command)
    }

    async fn start(&self, plan: &VmPlan) -> Result<Starting, VmError> {
        let failed = |error| boot_error::spawn(DRIVER, &self.binary.display().to_string(), &error);
        // A socket file left behind makes Firecracker refuse to start.
        files::remove(&plan.dir, files::API_SOCKET).map_err(failed)?;
        let command = self.command(plan).map_err(failed)?;
        process::start(&self.spawner, command).await.map_err(failed)
    }

    async fn set_up(&self, plan: &VmPlan, setup: &Setup<'_>, process: &VmmProcess) -> Result<(), VmError> {
        let api = Api::new(&plan.dir, self.options.api_timeout)?;
        api.listening(process).await?;
        api.put(process, "/machine-config", &setup.machine).await?;
        api.put(process, "/boot-source", &setup.boot).await?;
        for drive in &setup.drives {
            api.put(process, &format!("/drives/{}", drive.drive_id), drive).await?;
        }
        api.put(process, &format!("/network-interfaces/{}", setup.nic.iface_id), &setup.nic).await?;
        api.put(process, "/actions", &Action { action_type: "InstanceStart" }).await
    }

    fn vm(&self, record: VmRecord, process: VmmProcess) -> Arc<dyn Vm> {
        Arc::new(FirecrackerVm { record, process, api_timeout: self.options.api_timeout })
    }
}

#[async_trait]
impl Hypervisor for Firecracker {
    fn driver(&self) -> Driver {
        Driver::Firecracker
    }

    fn describe(&self) -> String {
        format!("Firecracker {}, KVM", self.version)
    }

    async fn boot(&self, plan: VmPlan) -> Result<Arc<dyn Vm>, VmError> {
        let plan = plan.with_absolute_paths().map_err(|e| boot_error::spawn(DRIVER, "paths of the plan", &e))?;
        let setup = Setup::of(&plan)?;
        let starting = self.start(&plan).await?;
        let outcome = match starting.process() {
            Some(process) => self.set_up(&plan, &setup, process).await,
            None => Ok(()),
        };
        if let Err(error) = outcome {
            let ended = starting.abandon().await;
            // Nobody can connect to it any more, and a retry in this directory must not meet it.
            let _ = files::remove(&plan.dir, files::API_SOCKET);
            return Err(boot_error::explained(error, || ended.map(|ended| vm::describe(ended, &plan.dir))));
        }
        let Some(process) = starting.keep() else {
            return Err(VmError::Died { driver: DRIVER, reason: "it was stopped while it started".to_owned() });
        };
        let Identity { pid, start_ticks } = process.identity();
        let record = VmRecord { vm: plan.vm, driver: Driver::Firecracker, pid, start_ticks, dir: plan.dir.clone() };
        Ok(self.vm(record, process))
    }

    async fn adopt(&self, record: VmRecord) -> Result<Option<Arc<dyn Vm>>, VmError> {
        let identity = Identity { pid: record.pid, start_ticks: record.start_ticks };
        let found = VmmProcess::adopt(identity).map_err(|e| boot_error::spawn(DRIVER, "adopting a VMM", &e))?;
        Ok(found.map(|process| self.vm(record, process)))
    }
}

async fn version(binary: &Path) -> Result<String, VmError> {
    let text = program::version_output(DRIVER, binary, VERSION_TIMEOUT).await?;
    match program::version_after(&text, "Firecracker v") {
        Some((version, numbers)) if numbers >= OLDEST => Ok(version),
        Some((version, _)) => Err(VmError::Unsupported {
            driver: DRIVER,
            what: format!("version {version} is too old: 1.0 or newer is needed"),
        }),
        None => Err(program::not_it(DRIVER, binary, &text)),
    }
}
