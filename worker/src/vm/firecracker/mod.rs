//! Firecracker: one process per VM, set up over its API in the documented order.

pub(crate) mod api;
mod config;
pub mod jail;
pub(crate) mod metrics;
mod vm;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use stoker_schemas::{VmId, image::Driver};

use self::{
    api::Api,
    config::{Action, Entropy, Features, Metrics, Setup, Version},
    metrics::{Reader, Totals, make_pipe},
    vm::FirecrackerVm,
};
pub use self::{config::Rates, jail::Jailer};
use super::{
    boot_error, files,
    process::{self, Identity, Spawner, VmmProcess},
    program,
};
use crate::ports::vm::{Counter, Hypervisor, Vm, VmError, VmPlan, VmRecord};

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
    /// Jails VMMs; without it they run as the worker's own user.
    pub jailer: Option<Jailer>,
    /// What each VM may move at most.
    pub rates: Rates,
}

impl Default for FirecrackerOptions {
    fn default() -> Self {
        Self { api_timeout: Duration::from_secs(10), jailer: None, rates: Rates::default() }
    }
}

/// The driver.
pub struct Firecracker {
    binary: PathBuf,
    version: String,
    spawner: Arc<dyn Spawner>,
    api_timeout: Duration,
    jailer: Option<Arc<Jailer>>,
    rates: Rates,
    totals: Arc<Totals>,
}

impl Firecracker {
    /// Checks that the binary runs, is new enough and may use `/dev/kvm`.
    pub async fn new(binary: &Path, spawner: Arc<dyn Spawner>, options: FirecrackerOptions) -> Result<Self, VmError> {
        let binary = std::path::absolute(program::find(binary)).map_err(|e| boot_error::spawn(DRIVER, "binary", &e))?;
        let version = version(DRIVER, &binary, "Firecracker v").await?;
        if let Some(jailer) = &options.jailer {
            version_of_jailer(&jailer.program, &version).await?;
        }
        // Firecracker itself says so only when the first VM starts.
        std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .map_err(|e| boot_error::spawn(DRIVER, "/dev/kvm", &e))?;
        let FirecrackerOptions { api_timeout, jailer, rates } = options;
        Ok(Self { binary, version, spawner, api_timeout, jailer: jailer.map(Arc::new), rates, totals: Arc::default() })
    }

    /// Puts the VMM's files where it will find them; says where that is, what the plan is in its
    /// eyes, and how it is started.
    async fn prepare(&self, plan: &VmPlan) -> std::io::Result<Prepared> {
        let log = "--log-path";
        let (home, seen, mut command) = match (&self.jailer, plan.owner) {
            (Some(jailer), Some(uid)) => {
                let home = jail::root(&self.binary, plan)?;
                let (plan, root) = (plan.clone(), home.clone());
                let filled =
                    tokio::task::spawn_blocking(move || jail::fill(&plan, &root, uid).map(|seen| (plan, seen)));
                let (plan, seen) = filled.await.map_err(std::io::Error::other)??;
                let mut command = jailer.command(&self.binary, &plan, uid);
                command.args(["--api-sock", "/api.sock", log, "/vmm.log"]);
                (home, seen, command)
            }
            (Some(_), None) => {
                let why = "the jailer needs to know the tap's owner, and this network has none; use a bridge";
                return Err(std::io::Error::other(why));
            }
            (None, _) => {
                // The VMM wants its log to exist.
                files::append(&plan.dir, files::VMM_LOG)?;
                // A socket file left behind makes Firecracker refuse to start.
                files::remove(&plan.dir, files::API_SOCKET)?;
                let mut command = Command::new(&self.binary);
                command.args(["--id", &plan.vm.to_string()]);
                command.args(["--api-sock", files::API_SOCKET, log, files::VMM_LOG]);
                (plan.dir.clone(), plan.clone(), command)
            }
        };
        make_pipe(&home, self.jailer.as_ref().and(plan.owner))?;
        command
            .current_dir(&plan.dir)
            // Without its own log the VMM's lines end up among the guest's on stdout.
            .args(["--level", "Warn"])
            .stdout(files::append(&plan.dir, files::CONSOLE)?)
            .stderr(files::append(&plan.dir, files::VMM_STDERR)?);
        Ok(Prepared { home, seen, command })
    }

    async fn set_up(&self, home: &Path, setup: &Setup<'_>, process: &VmmProcess) -> Result<(), VmError> {
        let api = Api::new(home, self.api_timeout)?;
        api.listening(process).await?;
        // Asked of the process, not of the program: an upgrade may have replaced it a moment ago.
        let told: Version = api.get(process, "/version").await?;
        let known = program::version_after(&told.firecracker_version, "").map(|(_, numbers)| numbers);
        let features = Features::of(known.unwrap_or(OLDEST));
        api.put(process, "/metrics", &Metrics { metrics_path: self.metrics_path() }).await?;
        api.put(process, "/machine-config", &setup.machine).await?;
        api.put(process, "/boot-source", &setup.boot).await?;
        for drive in &setup.drives {
            api.put(process, &format!("/drives/{}", drive.drive_id), drive).await?;
        }
        api.put(process, &format!("/network-interfaces/{}", setup.nic.iface_id), &setup.nic).await?;
        if features.entropy {
            api.put(process, "/entropy", &Entropy {}).await?;
        }
        api.put(process, "/actions", &Action { action_type: "InstanceStart" }).await
    }

    /// As the VMM sees it: from its jail's root, or from the attempt's folder.
    fn metrics_path(&self) -> String {
        let root = if self.jailer.is_some() { "/" } else { "" };
        format!("{root}{}", files::METRICS)
    }

    fn vm(&self, record: VmRecord, process: VmmProcess, home: PathBuf) -> Arc<dyn Vm> {
        let metrics = Reader::start(&home, Arc::clone(&self.totals));
        let (api_timeout, jailer) = (self.api_timeout, self.jailer.clone());
        Arc::new(FirecrackerVm { record, process, api_timeout, home, jailer, metrics })
    }
}

/// What a VMM is started with.
struct Prepared {
    home: PathBuf,
    seen: VmPlan,
    command: Command,
}

#[async_trait]
impl Hypervisor for Firecracker {
    fn driver(&self) -> Driver {
        Driver::Firecracker
    }

    fn describe(&self) -> String {
        let jailed = if self.jailer.is_some() { "jailed" } else { "not jailed" };
        format!("Firecracker {}, KVM, {jailed}", self.version)
    }

    async fn boot(&self, plan: VmPlan) -> Result<Arc<dyn Vm>, VmError> {
        let plan = plan.with_absolute_paths().map_err(|e| boot_error::spawn(DRIVER, "paths of the plan", &e))?;
        // What it cannot do is said before anything is made.
        Setup::of(&plan, self.rates)?;
        let failed = |error| boot_error::spawn(DRIVER, &self.binary.display().to_string(), &error);
        let Prepared { home, seen, command } = self.prepare(&plan).await.map_err(failed)?;
        let setup = Setup::of(&seen, self.rates)?;
        let starting = process::start(&self.spawner, command).await.map_err(failed)?;
        let outcome = match starting.process() {
            Some(process) => self.set_up(&home, &setup, process).await,
            None => Ok(()),
        };
        if let Err(error) = outcome {
            let ended = starting.abandon().await;
            // Nobody can connect to it any more, and a retry in this directory must not meet it.
            let _ = files::remove(&home, files::API_SOCKET);
            if let Err(left) = vm::clean_up(self.jailer.as_ref(), plan.vm).await {
                // Tried again when the attempt is removed.
                tracing::warn!(vm = %plan.vm, error = %left, "a failed boot left something");
            }
            return Err(boot_error::explained(error, || ended.map(|ended| vm::describe(ended, &plan.dir, &home))));
        }
        let Some(process) = starting.keep() else {
            return Err(VmError::Died { driver: DRIVER, reason: "it was stopped while it started".to_owned() });
        };
        let Identity { pid, start_ticks } = process.identity();
        let record = VmRecord { vm: plan.vm, driver: Driver::Firecracker, pid, start_ticks, dir: plan.dir.clone() };
        Ok(self.vm(record, process, home))
    }

    async fn adopt(&self, record: VmRecord) -> Result<Option<Arc<dyn Vm>>, VmError> {
        let identity = Identity { pid: record.pid, start_ticks: record.start_ticks };
        let found = VmmProcess::adopt(identity).map_err(|e| boot_error::spawn(DRIVER, "adopting a VMM", &e))?;
        let home = jail::find_root(&record.dir, record.vm).unwrap_or_else(|| record.dir.clone());
        Ok(found.map(|process| self.vm(record, process, home)))
    }

    fn counters(&self) -> Vec<Counter> {
        self.totals.counters()
    }

    async fn clean_up(&self, vm: VmId) -> Result<(), VmError> {
        vm::clean_up(self.jailer.as_ref(), vm).await
    }
}

async fn version(driver: &'static str, binary: &Path, name: &str) -> Result<String, VmError> {
    let text = program::version_output(driver, binary, VERSION_TIMEOUT).await?;
    match program::version_after(&text, name) {
        Some((version, numbers)) if numbers >= OLDEST => Ok(version),
        Some((version, _)) => {
            Err(VmError::Unsupported { driver, what: format!("version {version} is too old: 1.0 or newer is needed") })
        }
        None => Err(program::not_it(driver, binary, &text)),
    }
}

/// The two are released together, and the jailer passes its arguments on as its Firecracker knows them.
async fn version_of_jailer(jailer: &Path, firecracker: &str) -> Result<(), VmError> {
    let found = version("The jailer", jailer, "Jailer v").await?;
    if found != firecracker {
        let cause = format!("{} is version {found}, Firecracker is {firecracker}", jailer.display());
        return Err(VmError::Spawn { driver: "The jailer", cause, hint: "install both from one release" });
    }
    Ok(())
}
