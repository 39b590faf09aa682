//! What a host needs, looked at one by one, each with what to do when it is missing.

use std::path::{Path, PathBuf};

use serde::Serialize;
use stoker_schemas::image::Driver;

use crate::config::{Config, JailerMode, NetworkMode};
use crate::dirs::ACCEL_NOTE;
use crate::equipment::jailer_beside;
use crate::vm::qemu::{Accel, AccelDecision, Kernels, Note, Trial, TrialError, choose, measure, probe_guest};

/// What to do without a jailer.
const NO_JAILER: &str = "install it beside firecracker, from the same release, or set --jailer off";

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// Whether it will do.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What to do, when it will not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

impl Check {
    fn new(name: &'static str, found: Result<String, (String, &str)>) -> Self {
        match found {
            Ok(found) => Self { name, ok: true, found, remedy: String::new() },
            Err((found, remedy)) => Self { name, ok: false, found, remedy: remedy.to_owned() },
        }
    }
}

/// Looks at everything these settings need. Measures KVM with a trial guest, which takes some seconds where it
/// is slow.
pub async fn examine(config: &Config) -> Vec<Check> {
    let mut checks = vec![data(&config.data)];
    match config.driver {
        Driver::Firecracker => {
            checks.push(program("firecracker", &config.firecracker, "install it, or set --firecracker to its path"));
            match &config.jailer {
                JailerMode::Auto if rustix::process::geteuid().is_root() => {
                    let beside = jailer_beside(&crate::vm::program::find(&config.firecracker));
                    checks.push(program("jailer", &beside, NO_JAILER));
                }
                JailerMode::Program(path) => checks.push(program("jailer", path, NO_JAILER)),
                JailerMode::Auto | JailerMode::Off => {}
            }
            checks.push(device("kvm", "/dev/kvm", "enable virtualisation, load kvm_intel or kvm_amd, join group kvm"));
            // The trial guest is started by QEMU; without, the speed of KVM is not known here.
            if find(&config.qemu).is_some() {
                checks.extend(speed_of_kvm(config).await);
            }
        }
        Driver::Qemu => {
            checks.push(program("qemu", &config.qemu, "install qemu-system-x86"));
            checks.push(accelerator(config).await);
            checks.push(program("qemu-img", Path::new("qemu-img"), "install qemu-utils"));
        }
        Driver::Simulated => {}
    }
    if config.driver != Driver::Simulated {
        checks.push(images(&config.images));
        if let NetworkMode::Bridge { firewall, .. } = config.network {
            if firewall {
                checks.push(program(
                    "nft",
                    Path::new("nft"),
                    "install nftables, or set firewall = false under [network]",
                ));
            }
            checks.push(root());
            checks.push(device("tun", "/dev/net/tun", "load the tun module: modprobe tun"));
            checks.push(program("dnsmasq", Path::new("dnsmasq"), "install dnsmasq-base"));
            checks.push(program("ip", Path::new("ip"), "install iproute2"));
        }
    }
    checks
}

fn data(dir: &Path) -> Check {
    let made = std::fs::create_dir_all(dir).and_then(|()| std::fs::metadata(dir));
    let found = match made {
        Ok(meta) if !meta.permissions().readonly() => Ok(dir.display().to_string()),
        Ok(_) => Err((format!("{} is read-only", dir.display()), "choose another folder with --data")),
        Err(e) => Err((format!("{}: {e}", dir.display()), "choose a folder this user may write with --data")),
    };
    Check::new("data folder", found)
}

fn images(dir: &Path) -> Check {
    let names: Vec<String> = std::fs::read_dir(dir)
        .map(|entries| {
            let with_manifest = entries.flatten().filter(|e| e.path().join("image.json").is_file());
            with_manifest.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default();
    let found = if names.is_empty() {
        Err((format!("none in {}", dir.display()), "build the ones Stoker ships: scripts/dev image"))
    } else {
        Ok(names.join(", "))
    };
    Check::new("images", found)
}

/// For a trial of this process; a worker's is below its data folder.
fn scratch() -> PathBuf {
    std::env::temp_dir().join(format!("stoker-trial-{}", std::process::id()))
}

/// Whether KVM runs guests fast enough for a kernel to boot; `None` without the image that measures it.
async fn speed_of_kvm(config: &Config) -> Option<Check> {
    let guest = probe_guest(&config.images);
    let scratch = scratch();
    let trial = Trial { qemu: &config.qemu, guest: &guest, dir: &scratch };
    let outcome = measure(&trial).await;
    if let Err(TrialError::NoGuest(_)) = outcome {
        return None;
    }
    let decision = AccelDecision::judge(outcome);
    let found = match decision.accel {
        Accel::Kvm => Ok(decision.reason),
        Accel::Tcg => Err((decision.reason, "use --driver qemu, which boots with TCG, or another host")),
    };
    Some(Check::new("speed of kvm", found))
}

/// What boots guests on this host. TCG will do: a host that is to have KVM and has none is the operator's to judge.
async fn accelerator(config: &Config) -> Check {
    let guest = probe_guest(&config.images);
    // Beside the worker's own note, which only the worker writes.
    let note = Note::open(config.data.join(ACCEL_NOTE), &config.qemu);
    let scratch = scratch();
    let trial = Trial { qemu: &config.qemu, guest: &guest, dir: &scratch };
    let found = match choose(config.accel, &trial, None).await {
        Ok(decision) => Ok(Kernels::new(decision, Some(note)).describe()),
        Err(why) => Err((why, "set accel to auto or tcg (--accel), or give this user access to /dev/kvm")),
    };
    Check::new("accelerator", found)
}

fn root() -> Check {
    let found = if rustix::process::geteuid().is_root() {
        Ok("yes".to_owned())
    } else {
        Err(("no".to_owned(), "run as root, or with --unprivileged for QEMU's user network"))
    };
    Check::new("root", found)
}

fn device(name: &'static str, path: &str, remedy: &'static str) -> Check {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open(path);
    Check::new(name, opened.map(|_| path.to_owned()).map_err(|e| (format!("{path}: {e}"), remedy)))
}

fn program(name: &'static str, program: &Path, remedy: &'static str) -> Check {
    let found = find(program);
    let missing = || (format!("{} not found", program.display()), remedy);
    Check::new(name, found.map(|p| p.display().to_string()).ok_or_else(missing))
}

fn find(program: &Path) -> Option<PathBuf> {
    Some(crate::vm::program::find(program)).filter(|file| file.is_file())
}

/// As lines for people.
pub fn table(checks: &[Check]) -> String {
    let line = |check: &Check| {
        let word = if check.ok { "ok" } else { "MISSING" };
        let remedy = if check.remedy.is_empty() { String::new() } else { format!("\n{:>24} {}", "->", check.remedy) };
        format!("{word:<8}{:<14}{}{remedy}", check.name, check.found)
    };
    checks.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// As JSON.
pub fn json(checks: &[Check]) -> String {
    serde_json::to_string_pretty(checks).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
}
