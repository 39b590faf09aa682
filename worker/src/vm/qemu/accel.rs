//! Which accelerator works here. That `/dev/kvm` opens proves nothing (some hosts offer one that
//! cannot run a kernel), so a tiny guest is booted on it and must be heard.

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::vm::{
    files,
    process::{self, Spawner, VmmProcess},
};

/// Between looks at the trial's console.
const LOOK: Duration = Duration::from_millis(5);
/// Memory of the trial guest, MiB.
const TRIAL_MEMORY_MIB: &str = "32";

/// How QEMU runs guest code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// Hardware virtualisation.
    Kvm,
    /// Translation in software: slow, works everywhere.
    Tcg,
}

/// A decision and why, for `describe` and the doctor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccelDecision {
    /// What to use.
    pub accel: Accel,
    /// Why.
    pub reason: String,
    /// A guest was tried. Without, only access is missing, which may be had at the next start.
    #[serde(default)]
    pub tried: bool,
}

/// Boots `probe_elf` with KVM in `dir` (which must exist and is left as it was) and decides by
/// whether its console says `expected` before the deadline.
pub async fn detect_accel(
    binary: &Path,
    probe_elf: &Path,
    expected: &str,
    dir: &Path,
    deadline: Duration,
) -> AccelDecision {
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        let remedy = match error.kind() {
            io::ErrorKind::PermissionDenied => "; a member of its group (kvm) may use it",
            _ => "",
        };
        return AccelDecision { accel: Accel::Tcg, reason: format!("/dev/kvm: {error}{remedy}"), tried: false };
    }
    let trial = dir.join("accel-trial");
    let outcome = match std::fs::create_dir_all(&trial) {
        Ok(()) => run_trial(binary, probe_elf, expected, &trial, deadline).await,
        Err(error) => Err(error.to_string()),
    };
    let _ = std::fs::remove_dir_all(&trial);
    let (accel, reason) = match outcome {
        Ok(()) => (Accel::Kvm, "a trial guest ran on /dev/kvm".to_owned()),
        Err(why) => (Accel::Tcg, format!("/dev/kvm opens, but a trial guest did not run on it: {why}")),
    };
    AccelDecision { accel, reason, tried: true }
}

async fn run_trial(
    binary: &Path,
    probe_elf: &Path,
    expected: &str,
    dir: &Path,
    deadline: Duration,
) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    let kernel = std::path::absolute(probe_elf).map_err(text)?;
    let mut command = Command::new(binary);
    command
        .current_dir(dir)
        .args(["-M", "microvm,acpi=on", "-accel", "kvm", "-cpu", "host", "-m", TRIAL_MEMORY_MIB])
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .args(["-chardev", &format!("file,id=console,path={},append=on", files::CONSOLE)])
        .args(["-serial", "chardev:console", "-append", "console=ttyS0"])
        .arg("-kernel")
        .arg(kernel)
        .stdout(std::process::Stdio::null())
        .stderr(files::append(dir, files::VMM_STDERR).map_err(text)?);
    let spawner: Arc<dyn Spawner> = Arc::new(process::Here);
    let trial = process::start(&spawner, command).await.map_err(text)?;
    let heard = match trial.process() {
        Some(process) => tokio::time::timeout(deadline, hear(process, dir.join(files::CONSOLE), expected)).await,
        None => Ok(false),
    };
    let _ = trial.abandon().await;
    match heard {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("QEMU ended: {}", crate::vm::exit::last_words(&[dir.join(files::VMM_STDERR)]))),
        Err(_) => Err(format!("its console did not say {expected:?} within {deadline:?}")),
    }
}

async fn hear(process: &VmmProcess, console: PathBuf, expected: &str) -> bool {
    loop {
        let ended = process.ended().is_some();
        let said = std::fs::read(&console).unwrap_or_default();
        if String::from_utf8_lossy(&said).contains(expected) {
            return true;
        }
        if ended {
            return false;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The host's TSC in kHz, best source first. `cpu MHz` comes last because it follows frequency
/// scaling where the processor does that; virtual hosts, where TCG is needed, do not show any.
pub fn host_tsc_khz() -> Option<u32> {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse().ok();
    number("/sys/devices/system/cpu/cpu0/tsc_freq_khz")
        .or_else(|| number("/sys/devices/system/cpu/cpu0/cpufreq/base_frequency"))
        .or_else(|| tsc_from_cpuinfo(&std::fs::read_to_string("/proc/cpuinfo").ok()?))
}

fn tsc_from_cpuinfo(text: &str) -> Option<u32> {
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_once(':').map(|(_, value)| value.trim())
    };
    let nominal =
        field("model name").and_then(|model| model.rsplit_once('@')?.1.trim().strip_suffix("GHz")?.parse::<f64>().ok());
    let mhz = nominal.map(|ghz| ghz * 1000.0).or_else(|| field("cpu MHz")?.parse::<f64>().ok())?;
    // Outside of this it is a misreading, and a wrong clock is worse than a calibrating one.
    (100.0..20_000.0).contains(&mhz).then_some((mhz * 1000.0).round() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nominal_frequency_wins_over_the_current_one() {
        let intel = "model name\t: Intel(R) Xeon(R) CPU @ 2.80GHz\ncpu MHz\t\t: 800.012\n";
        assert_eq!(tsc_from_cpuinfo(intel), Some(2_800_000));
        assert_eq!(tsc_from_cpuinfo("model name\t: AMD EPYC\ncpu MHz\t\t: 2596.150\n"), Some(2_596_150));
        assert_eq!(tsc_from_cpuinfo("cpu MHz\t: 0.0\n"), None);
        assert_eq!(tsc_from_cpuinfo(""), None);
    }

    #[tokio::test]
    async fn a_qemu_that_cannot_run_means_tcg_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let decision =
            detect_accel(Path::new("/no/such/qemu"), Path::new("/no/elf"), "x", dir.path(), Duration::from_secs(5))
                .await;
        assert_eq!(decision.accel, Accel::Tcg);
        assert!(decision.reason.contains("/dev/kvm"), "{}", decision.reason);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
    }
}
