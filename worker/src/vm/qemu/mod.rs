//! QEMU's `microvm` machine: virtio over MMIO, direct kernel boot; on KVM where that works, else
//! translated (TCG).

mod accel;
mod command;
mod launch;
mod qmp;
mod template;
mod vm;

use std::{path::Path, process::Stdio, sync::Arc, time::Duration};

use async_trait::async_trait;
use stoker_schemas::image::Driver;

pub use self::{
    accel::{Accel, AccelDecision, detect_accel, host_tsc_khz},
    template::TemplateFolders,
};
use self::{
    command::{HostFacts, Memory},
    launch::Launcher,
    template::{Template, Templates},
    vm::QemuVm,
};
use super::{
    boot_error, files,
    process::{Identity, Spawner, Starting, VmmProcess},
    program,
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
    /// Where templates of prewarmed images are kept; `None` to boot every VM cold.
    pub templates: Option<TemplateFolders>,
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
        Self { accel, qmp_timeout: Duration::from_secs(10), sandbox: true, tsc_khz: None, templates: None }
    }
}

/// The driver.
pub struct Qemu {
    version: String,
    launcher: Launcher,
    reason: String,
    templates: Option<Templates>,
}

impl Qemu {
    /// Checks that the binary runs and is new enough.
    pub async fn new(binary: &Path, spawner: Arc<dyn Spawner>, options: QemuOptions) -> Result<Self, VmError> {
        let version = version(binary).await?;
        let tsc_khz = options.tsc_khz.or_else(host_tsc_khz);
        let AccelDecision { accel, reason, .. } = options.accel;
        let host = HostFacts { accel, tsc_khz, sandbox: options.sandbox };
        let open = |folders| {
            let hypervisor = format!("{} {version} {host:?}", binary.display());
            Templates::open(folders, hypervisor).map_err(|e| boot_error::spawn(DRIVER, "folder of templates", &e))
        };
        let templates = options.templates.map(open).transpose()?;
        let launcher = Launcher { binary: binary.to_owned(), spawner, host, qmp_timeout: options.qmp_timeout };
        Ok(Self { version, launcher, reason, templates })
    }

    /// Boots it, or lets it go on from a template. On error nothing is left running.
    async fn run(&self, plan: &VmPlan, template: Option<Template>) -> Result<Arc<dyn Vm>, VmError> {
        let starting = match template {
            Some(Template { memory, state }) => {
                template::lay_serial(&plan.dir).map_err(|e| boot_error::spawn(DRIVER, "serial line", &e))?;
                let starting = self.launcher.start(plan, Memory::CopyOf(&memory), state).await?;
                self.settle(plan, starting, true).await?
            }
            None => {
                let starting = self.launcher.start(plan, Memory::Own, Stdio::null()).await?;
                self.settle(plan, starting, false).await?
            }
        };
        let Some(process) = starting.keep() else {
            return Err(VmError::Died { driver: DRIVER, reason: "it was stopped while it started".to_owned() });
        };
        let Identity { pid, start_ticks } = process.identity();
        let record = VmRecord { vm: plan.vm, driver: Driver::Qemu, pid, start_ticks, dir: plan.dir.clone() };
        Ok(self.vm(record, process))
    }

    /// Waits until it is set up, and kills it if that fails.
    async fn settle(&self, plan: &VmPlan, starting: Starting, copy: bool) -> Result<Starting, VmError> {
        let outcome = match starting.process() {
            Some(process) => self.set_up(plan, process, copy).await,
            None => Ok(()),
        };
        let Err(error) = outcome else { return Ok(starting) };
        let ended = starting.abandon().await;
        // Nobody can connect to it any more, and a retry in this directory must not meet it.
        let _ = files::remove(&plan.dir, files::QMP_SOCKET);
        Err(boot_error::explained(error, || ended.map(|ended| vm::describe(ended, &plan.dir))))
    }

    /// A guest that boots runs as soon as QEMU does; a copy has to be loaded and told who it is.
    async fn set_up(&self, plan: &VmPlan, process: &VmmProcess, copy: bool) -> Result<(), VmError> {
        let mut qmp = self.launcher.connect(&plan.dir, process).await?;
        if copy && let Err(error) = template::go_on(&mut qmp, plan).await {
            return Err(launch::failed(error, "migrate-incoming", process).await);
        }
        Ok(())
    }

    /// A copy of this plan's template, where there is one that works.
    async fn copy(&self, plan: &VmPlan) -> Option<Arc<dyn Vm>> {
        let templates = self.templates.as_ref()?;
        let template = templates.find(plan)?;
        match self.run(plan, Some(template)).await {
            Ok(vm) => Some(vm),
            Err(error) => {
                tracing::warn!(vm = %plan.vm, %error, "its template cannot be continued and goes; booting cold");
                templates.forget(plan);
                None
            }
        }
    }

    fn vm(&self, record: VmRecord, process: VmmProcess) -> Arc<dyn Vm> {
        Arc::new(QemuVm { record, process, qmp_timeout: self.launcher.qmp_timeout })
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn driver(&self) -> Driver {
        Driver::Qemu
    }

    fn describe(&self) -> String {
        let accel = match self.launcher.host.accel {
            Accel::Kvm => "KVM",
            Accel::Tcg => "TCG",
        };
        format!("QEMU {}, {accel} ({})", self.version, self.reason)
    }

    async fn boot(&self, plan: VmPlan) -> Result<Arc<dyn Vm>, VmError> {
        let plan = plan.with_absolute_paths().map_err(|e| boot_error::spawn(DRIVER, "paths of the plan", &e))?;
        if let Some(vm) = self.copy(&plan).await {
            return Ok(vm);
        }
        template::remove_serial(&plan.dir).map_err(|e| boot_error::spawn(DRIVER, "serial line", &e))?;
        self.run(&plan, None).await
    }

    fn learn(&self, plan: &VmPlan, ready: bool) {
        let Some(templates) = &self.templates else { return };
        let Ok(plan) = plan.clone().with_absolute_paths() else { return };
        if ready {
            templates.make_soon(&self.launcher, &plan);
        } else {
            templates.forget(&plan);
        }
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
