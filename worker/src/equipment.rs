//! Chooses a host's equipment by its settings: hypervisor, network, prober.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;

use async_trait::async_trait;
use stoker_schemas::image::Driver;

use crate::config::{Config, JailerMode, NetworkMode};
use crate::dirs::Dirs;
use crate::host::HostError;
use crate::net::{BridgeConfig, BridgedNetwork, Namespace, UserNetwork};
use crate::ports::net::Network;
use crate::ports::probe::Prober;
use crate::ports::vm::{Hypervisor, VmError};
use crate::probe::HttpProber;
use crate::vm::{
    Firecracker, FirecrackerOptions, Jailer, Kernels, Qemu, QemuOptions, SimWorld, Simulated, SimulatedNetwork,
    SimulatedProber, Spawner, TemplateFolders, Trial,
    cgroup::Cgroups,
    program,
    qemu::{Note, choose, probe_guest},
};

/// What boots, connects and asks.
pub(crate) struct Equipment {
    pub(crate) hypervisor: Arc<dyn Hypervisor>,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) prober: Arc<dyn Prober>,
}

/// Opens the equipment that the settings ask for.
pub(crate) async fn equip(config: &Config, dirs: &Dirs) -> Result<Equipment, HostError> {
    if config.driver == Driver::Simulated {
        let world = SimWorld::new();
        return Ok(Equipment {
            hypervisor: Arc::new(Simulated::new(world.clone())),
            network: Arc::new(SimulatedNetwork::new(world.clone())),
            prober: Arc::new(SimulatedProber::new(world)),
        });
    }
    match &config.network {
        NetworkMode::User => {
            let namespace = Namespace::host()?;
            let hypervisor = hypervisor(config, dirs, namespace.clone()).await?;
            let network = Arc::new(UserNetwork::open(dirs.net())?);
            let prober = Arc::new(HttpProber::new(namespace, None)?);
            Ok(Equipment { hypervisor, network, prober })
        }
        NetworkMode::Bridge { namespace, bridge, gateway, prefix, firewall } => {
            let files = runtime_dir(namespace.as_deref().unwrap_or("host"), bridge);
            let namespace = match namespace {
                Some(name) => Namespace::open(name).await?,
                None => Namespace::host()?,
            };
            let hypervisor = hypervisor(config, dirs, namespace.clone()).await?;
            let jailed = jailer(config)?.is_some();
            let settings = BridgeConfig {
                firewall: *firewall,
                uid_base: jailed.then_some(config.jailer_uid_base),
                ..bridge_config(files, bridge, *gateway, *prefix)
            };
            let network = Arc::new(BridgedNetwork::open(namespace.clone(), settings).await?);
            let prober = Arc::new(HttpProber::new(namespace, Some(network.neighbours()))?);
            Ok(Equipment { hypervisor, network, prober })
        }
    }
}

/// All addresses of the subnet but the network's, the bridge's own and the broadcast one.
fn bridge_config(files: PathBuf, bridge: &str, gateway: Ipv4Addr, prefix: u8) -> BridgeConfig {
    let hosts = u32::MAX >> prefix;
    let network = u32::from(gateway) & !hosts;
    BridgeConfig {
        bridge: bridge.to_owned(),
        address: gateway,
        prefix,
        first: Ipv4Addr::from(network + 1),
        last: Ipv4Addr::from(network + hosts - 1),
        ..BridgeConfig::new(files)
    }
}

/// dnsmasq's files lie in memory: it syncs its leases before each answer, and none outlives a
/// reboot of the host anyway.
fn runtime_dir(namespace: &str, bridge: &str) -> PathBuf {
    PathBuf::from("/run/stoker").join(format!("{namespace}-{bridge}"))
}

async fn hypervisor(config: &Config, dirs: &Dirs, namespace: Namespace) -> Result<Arc<dyn Hypervisor>, VmError> {
    let spawner = Arc::new(InNamespace(namespace));
    Ok(match config.driver {
        Driver::Firecracker => {
            let options =
                FirecrackerOptions { jailer: jailer(config)?, rates: config.rates, ..FirecrackerOptions::default() };
            if options.jailer.is_none() {
                tracing::warn!("Firecracker runs without its jailer: VMMs are this user's; meant for development");
            }
            Arc::new(Firecracker::new(&config.firecracker, spawner, options).await?)
        }
        Driver::Qemu | Driver::Simulated => {
            let templates = config.prewarm.then(|| TemplateFolders { store: dirs.templates(), drafts: dirs.vms() });
            let options = QemuOptions { templates, ..QemuOptions::with_accel(accel(config, dirs).await?) };
            Arc::new(Qemu::new(&config.qemu, spawner, options).await?)
        }
    })
}

/// Firecracker's jailer: by default as root, where leaving it out is a decision that must be written down.
fn jailer(config: &Config) -> Result<Option<Jailer>, VmError> {
    let program = match &config.jailer {
        _ if config.driver != Driver::Firecracker => return Ok(None),
        JailerMode::Off => return Ok(None),
        JailerMode::Auto if !rustix::process::geteuid().is_root() => return Ok(None),
        JailerMode::Auto => jailer_beside(&program::find(&config.firecracker)),
        JailerMode::Program(program) => program::find(program),
    };
    if !program.is_file() {
        let cause = format!("{} is not there", program.display());
        let hint = "install the jailer of the same release beside Firecracker, or set jailer = \"off\" (--jailer off)";
        return Err(VmError::Spawn { driver: "The jailer", cause, hint });
    }
    let cgroups = Cgroups::detect();
    if cgroups == Cgroups::Absent {
        tracing::warn!("this host has no control groups for cpu, memory and pids: VMs run unlimited");
    }
    Ok(Some(Jailer { program, cgroups, cgroup_parent: config.cgroup_parent.clone() }))
}

/// Releases come as one folder; distributions put both along PATH.
pub(crate) fn jailer_beside(firecracker: &Path) -> PathBuf {
    let beside = firecracker.with_file_name("jailer");
    if beside.is_file() { beside } else { program::find(Path::new("jailer")) }
}

/// What runs guest code: KVM or TCG by settings, by a trial once per boot of the host, and kernel by kernel.
async fn accel(config: &Config, dirs: &Dirs) -> Result<Kernels, VmError> {
    let note = Note::open(dirs.accel(), &config.qemu);
    let guest = probe_guest(&config.images);
    let scratch = dirs.accel_trial();
    let trial = Trial { qemu: &config.qemu, guest: &guest, dir: &scratch };
    let decision = choose(config.accel, &trial, Some(&note)).await.map_err(|cause| VmError::Spawn {
        driver: "KVM",
        cause,
        hint: "accel is set to kvm: set it to auto or tcg to boot without",
    })?;
    tracing::info!(accel = ?decision.accel, reason = decision.reason, "accelerator chosen");
    Ok(Kernels::new(decision, Some(note)))
}

/// Starts programs inside the VMs' namespace.
struct InNamespace(Namespace);

#[async_trait]
impl Spawner for InNamespace {
    async fn spawn(&self, mut command: Command) -> io::Result<Child> {
        self.0.run(move || command.spawn()).await
    }
}
