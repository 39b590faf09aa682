//! QEMU's `microvm` machine: virtio over MMIO, direct kernel boot; on KVM where that works, else
//! translated (TCG).

mod accel;
mod command;
mod qmp;
mod vm;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use stoker_schemas::image::Driver;

pub use self::accel::{Accel, AccelDecision, detect_accel, host_tsc_khz};
use self::{
    command::HostFacts,
    qmp::{Qmp, QmpError},
    vm::QemuVm,
};
use super::{
    boot_error,
    files::{self, ShortDir},
    process::{self, Identity, Spawner, Starting, VmmProcess},
    program, socket,
};
use crate::ports::vm::{Hypervisor, Vm, VmError, VmPlan, VmRecord};

/// Its name in errors.
const DRIVER: &str = "QEMU";
/// How long `qemu-system-x86_64 --version` may take.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);
/// The oldest version known to boot `microvm` with ACPI.
const OLDEST: (u32, u32) = (5, 2);

/// Settings of the driver.
#[derive(Debug, Clone)]
pub struct QemuOptions {
    /// How guest code is run; see [`detect_accel`].
    pub accel: AccelDecision,
    /// Deadline from the start to the first answer, and of each exchange.
    pub qmp_timeout: Duration,
    /// QEMU's seccomp filter; costs 4-15 ms per boot (measured on a noisy host).
    pub sandbox: bool,
    /// The host's TSC in kHz; `None` to find out.
    pub tsc_khz: Option<u32>,
}

impl Default for QemuOptions {
    /// With TCG, which works everywhere; KVM only after a trial ([`detect_accel`]).
    fn default() -> Self {
        let reason = "KVM was not tried".to_owned();
        Self::with_accel(AccelDecision { accel: Accel::Tcg, reason, tried: false })
    }
}

impl QemuOptions {
    /// The usual settings with this accelerator.
    pub fn with_accel(accel: AccelDecision) -> Self {
        Self { accel, qmp_timeout: Duration::from_secs(10), sandbox: true, tsc_khz: None }
    }
}

/// The driver.
pub struct Qemu {
    binary: PathBuf,
    version: String,
    spawner: Arc<dyn Spawner>,
    host: HostFacts,
    options: QemuOptions,
}

impl Qemu {
    /// Checks that the binary runs and is new enough.
    pub async fn new(binary: &Path, spawner: Arc<dyn Spawner>, options: QemuOptions) -> Result<Self, VmError> {
        let version = version(binary).await?;
        let tsc_khz = options.tsc_khz.or_else(host_tsc_khz);
        let host = HostFacts { accel: options.accel.accel, tsc_khz, sandbox: options.sandbox };
        Ok(Self { binary: binary.to_owned(), version, spawner, host, options })
    }

    async fn start(&self, plan: &VmPlan) -> Result<Starting, VmError> {
        let failed = |error| boot_error::spawn(DRIVER, &self.binary.display().to_string(), &error);
        let arguments = command::arguments(plan, self.host)?;
        files::remove(&plan.dir, files::QMP_SOCKET).map_err(failed)?;
        let log = files::append(&plan.dir, files::VMM_STDERR).map_err(failed)?;
        let mut command = Command::new(&self.binary);
        command.current_dir(&plan.dir).args(arguments).stdout(log.try_clone().map_err(failed)?).stderr(log);
        process::start(&self.spawner, command).await.map_err(failed)
    }

    /// The guest runs as soon as QEMU does; what is waited for is QEMU's word that it is set up.
    async fn confirm(&self, plan: &VmPlan, process: &VmmProcess) -> Result<(), VmError> {
        let within = self.options.qmp_timeout;
        let dir = ShortDir::open(&plan.dir).map_err(|e| boot_error::spawn(DRIVER, "attempt directory", &e))?;
        let connected = socket::connect(dir.file(files::QMP_SOCKET), process.clone(), within).await;
        let stream = connected.map_err(|e| boot_error::silent(DRIVER, files::QMP_SOCKET, process, within, &e))?;
        let greeted = async {
            stream.set_nonblocking(true)?;
            let stream = tokio::net::UnixStream::from_std(stream)?;
            Qmp::open(stream, within).await?.status().await
        };
        match greeted.await {
            Ok(_) => Ok(()),
            Err(error) => Err(qmp_failed(error, process).await),
        }
    }

    fn vm(&self, record: VmRecord, process: VmmProcess) -> Arc<dyn Vm> {
        Arc::new(QemuVm { record, process, qmp_timeout: self.options.qmp_timeout })
    }
}

async fn qmp_failed(error: QmpError, process: &VmmProcess) -> VmError {
    let request = "query-status".to_owned();
    match error {
        QmpError::Timeout(within) => VmError::Unresponsive { driver: DRIVER, request, within },
        // A guest that has already ended is not a failure to boot, but there is nothing to hand on.
        error if boot_error::died(process).await => VmError::Died { driver: DRIVER, reason: error.to_string() },
        error => VmError::Refused { driver: DRIVER, request, message: error.to_string() },
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn driver(&self) -> Driver {
        Driver::Qemu
    }

    fn describe(&self) -> String {
        let accel = match self.host.accel {
            Accel::Kvm => "KVM",
            Accel::Tcg => "TCG",
        };
        format!("QEMU {}, {accel} ({})", self.version, self.options.accel.reason)
    }

    async fn boot(&self, plan: VmPlan) -> Result<Arc<dyn Vm>, VmError> {
        let plan = plan.with_absolute_paths().map_err(|e| boot_error::spawn(DRIVER, "paths of the plan", &e))?;
        let starting = self.start(&plan).await?;
        let outcome = match starting.process() {
            Some(process) => self.confirm(&plan, process).await,
            None => Ok(()),
        };
        if let Err(error) = outcome {
            let ended = starting.abandon().await;
            // Nobody can connect to it any more, and a retry in this directory must not meet it.
            let _ = files::remove(&plan.dir, files::QMP_SOCKET);
            return Err(boot_error::explained(error, || ended.map(|ended| vm::describe(ended, &plan.dir))));
        }
        let Some(process) = starting.keep() else {
            return Err(VmError::Died { driver: DRIVER, reason: "it was stopped while it started".to_owned() });
        };
        let Identity { pid, start_ticks } = process.identity();
        let record = VmRecord { vm: plan.vm, driver: Driver::Qemu, pid, start_ticks, dir: plan.dir.clone() };
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
    match program::version_after(&text, "QEMU emulator version ") {
        Some((version, numbers)) if numbers >= OLDEST => Ok(version),
        Some((version, _)) => Err(VmError::Unsupported {
            driver: DRIVER,
            what: format!("version {version} is too old: 5.2 or newer is needed"),
        }),
        None => Err(program::not_it(DRIVER, binary, &text)),
    }
}
