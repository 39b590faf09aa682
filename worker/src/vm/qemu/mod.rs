//! QEMU's `microvm` machine: virtio over MMIO, direct kernel boot; on KVM where that works, else
//! translated (TCG).

mod accel;
mod command;
mod launch;
pub(crate) mod qmp;
mod template;
mod vm;

use std::{path::Path, process::Stdio, sync::Arc, time::Duration};

use async_trait::async_trait;
use stoker_schemas::image::Driver;
use tokio::{sync::watch, time::Instant};

pub use self::{
    accel::{
        Accel, AccelDecision, AccelMode, Kernels, Note, Speed, Trial, TrialError, choose, host_tsc_khz, measure,
        probe_guest,
    },
    template::TemplateFolders,
};
use self::{
    accel::{FirstByte, first_byte},
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
use crate::{
    boots::Boots,
    ports::vm::{Hypervisor, Vm, VmError, VmPlan, VmRecord},
};

/// Its name in errors.
const DRIVER: &str = "QEMU";
/// How long `qemu-system-x86_64 --version` may take.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);
/// The oldest version known to boot `microvm` with ACPI.
const OLDEST: (u32, u32) = (5, 2);

/// Settings of the driver.
#[derive(Debug, Clone)]
pub struct QemuOptions {
    /// How guest code is run: for each kernel what does run it.
    pub accel: Kernels,
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
    /// With TCG, which works everywhere; KVM only after a trial ([`choose`]).
    fn default() -> Self {
        let reason = "KVM was not tried".to_owned();
        let decision = AccelDecision { accel: Accel::Tcg, reason, speed: None, lasting: false };
        Self::with_accel(Kernels::new(decision, None))
    }
}

impl QemuOptions {
    /// The usual settings with this accelerator.
    pub fn with_accel(accel: Kernels) -> Self {
        Self { accel, qmp_timeout: Duration::from_secs(10), sandbox: true, tsc_khz: None, templates: None }
    }
}

/// The driver.
pub struct Qemu {
    version: String,
    launcher: Launcher,
    accel: Kernels,
    templates: Option<Templates>,
}

impl Qemu {
    /// Checks that the binary runs and is new enough.
    pub async fn new(binary: &Path, spawner: Arc<dyn Spawner>, options: QemuOptions) -> Result<Self, VmError> {
        let version = version(binary).await?;
        let tsc_khz = options.tsc_khz.or_else(host_tsc_khz);
        // Each launch has the accelerator of its kernel.
        let host = HostFacts { accel: Accel::Tcg, tsc_khz, sandbox: options.sandbox };
        let open = |folders| {
            let hypervisor = format!("{} {version}", binary.display());
            Templates::open(folders, hypervisor).map_err(|e| boot_error::spawn(DRIVER, "folder of templates", &e))
        };
        let templates = options.templates.map(open).transpose()?;
        let launcher = Launcher { binary: binary.to_owned(), spawner, host, qmp_timeout: options.qmp_timeout };
        Ok(Self { version, launcher, accel: options.accel, templates })
    }

    /// Starts with what runs this plan's kernel.
    fn launcher(&self, plan: &VmPlan) -> Launcher {
        self.launcher.with(self.accel.accel(&plan.kernel))
    }

    /// Starts it, cold or from a template, and waits until it is set up. Dropped, it is killed.
    async fn launch(
        &self,
        launcher: &Launcher,
        plan: &VmPlan,
        template: Option<Template>,
    ) -> Result<Starting, VmError> {
        let copy = template.is_some();
        let starting = match template {
            Some(Template { memory, state }) => {
                template::lay_serial(&plan.dir).map_err(|e| boot_error::spawn(DRIVER, "serial line", &e))?;
                launcher.start(plan, Memory::CopyOf(&memory), state).await?
            }
            None => launcher.start(plan, Memory::Own, Stdio::null()).await?,
        };
        self.settle(plan, starting, copy).await
    }

    /// From now on it lives until it is stopped.
    fn keep(&self, launcher: &Launcher, plan: &VmPlan, starting: Starting) -> Result<QemuVm, VmError> {
        let Some(process) = starting.keep() else {
            return Err(VmError::Died { driver: DRIVER, reason: "it was stopped while it started".to_owned() });
        };
        let Identity { pid, start_ticks } = process.identity();
        let record = VmRecord { vm: plan.vm, driver: Driver::Qemu, pid, start_ticks, dir: plan.dir.clone() };
        let label = self.accel.label(launcher.host.accel);
        Ok(QemuVm { accelerator: Some(label), ..self.vm(record, process) })
    }

    /// Boots it, with TCG when KVM does not run its kernel. That is found out here, not by a failed attempt.
    async fn boot_cold(&self, plan: &VmPlan) -> Result<QemuVm, VmError> {
        let began = Instant::now();
        let launcher = self.launcher(plan);
        let within = self.accel.must_speak_within(&plan.kernel, &plan.kernel_args);
        let launched = self.launch(&launcher, plan, None).await;
        let Some(within) = within else { return self.keep(&launcher, plan, launched?) };
        let error = match launched {
            Ok(starting) => {
                if let Some(process) = starting.process()
                    && first_byte(&plan.dir, process, Some(within)).await == FirstByte::Came
                {
                    self.accel.runs(&plan.kernel);
                    return self.keep(&launcher, plan, starting);
                }
                starting.abandon().await;
                files::remove(&plan.dir, files::QMP_SOCKET).map_err(|e| boot_error::spawn(DRIVER, "socket", &e))?;
                None
            }
            Err(error) => Some(error),
        };
        let lost = began.elapsed();
        tracing::warn!(
            vm = %plan.vm, kernel = %plan.kernel.display(), error = error.map(tracing::field::display),
            "the kernel does not boot with KVM: no byte on its console after {lost:.1?}; booting it with TCG"
        );
        let launcher = launcher.with(Accel::Tcg);
        let starting = self.launch(&launcher, plan, None).await?;
        let vm = self.keep(&launcher, plan, starting)?;
        self.accel.decide_by_tcg(&plan.kernel, &plan.dir, vm.process.clone(), lost);
        let label = format!("{}, after {lost:.1?} without a console byte with KVM", self.accel.label(Accel::Tcg));
        Ok(QemuVm { lost, accelerator: Some(label), ..vm })
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
        let launcher = self.launcher(plan);
        let template = templates.find(&launcher, plan)?;
        let launched = self.launch(&launcher, plan, Some(template)).await;
        match launched.and_then(|starting| self.keep(&launcher, plan, starting)) {
            Ok(vm) => Some(Arc::new(vm)),
            Err(error) => {
                tracing::warn!(vm = %plan.vm, %error, "its template cannot be continued and goes; booting cold");
                templates.forget(&launcher, plan);
                None
            }
        }
    }

    fn vm(&self, record: VmRecord, process: VmmProcess) -> QemuVm {
        let qmp_timeout = self.launcher.qmp_timeout;
        QemuVm { record, process, qmp_timeout, accelerator: None, lost: Duration::ZERO }
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn driver(&self) -> Driver {
        Driver::Qemu
    }

    fn describe(&self) -> String {
        format!("QEMU {}, {}", self.version, self.accel.describe())
    }

    fn changes(&self) -> Option<watch::Receiver<Option<String>>> {
        Some(self.accel.changes())
    }

    async fn boot(&self, plan: VmPlan) -> Result<Arc<dyn Vm>, VmError> {
        let plan = plan.with_absolute_paths().map_err(|e| boot_error::spawn(DRIVER, "paths of the plan", &e))?;
        if let Some(vm) = self.copy(&plan).await {
            return Ok(vm);
        }
        template::remove_serial(&plan.dir).map_err(|e| boot_error::spawn(DRIVER, "serial line", &e))?;
        Ok(Arc::new(self.boot_cold(&plan).await?))
    }

    fn learn(&self, plan: &VmPlan, ready: bool) {
        let Some(templates) = &self.templates else { return };
        let Ok(plan) = plan.clone().with_absolute_paths() else { return };
        let launcher = self.launcher(&plan);
        if ready {
            templates.make_soon(&launcher, &plan);
        } else {
            templates.forget(&launcher, &plan);
        }
    }

    fn share_boots(&self, boots: Boots) {
        if let Some(templates) = &self.templates {
            templates.share_boots(boots);
        }
    }

    async fn adopt(&self, record: VmRecord) -> Result<Option<Arc<dyn Vm>>, VmError> {
        let identity = Identity { pid: record.pid, start_ticks: record.start_ticks };
        let found = VmmProcess::adopt(identity).map_err(|e| boot_error::spawn(DRIVER, "adopting a VMM", &e))?;
        Ok(found.map(|process| {
            let accelerator = accel::of_process(record.pid).map(|accel| self.accel.label(accel));
            Arc::new(QemuVm { accelerator, ..self.vm(record, process) }) as Arc<dyn Vm>
        }))
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
