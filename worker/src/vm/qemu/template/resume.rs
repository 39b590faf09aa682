//! Continues a template as a VM of its own: loads the state, then tells the guest over its serial
//! line who it is. Before that its network is down, so no two guests ever speak as one.

use std::{
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::SystemTime,
};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use serde_json::json;

use super::super::qmp::{Qmp, QmpError};
use crate::{
    ports::{net::Nic, vm::VmPlan},
    vm::files,
};

/// Fresh randomness for the guest's kernel, bytes: what its generator is seeded with at boot.
const SEED_BYTES: usize = 32;

/// Makes the two ends of the serial line. Nobody reads what comes out: the console's file has it.
pub fn lay_serial(dir: &Path) -> io::Result<()> {
    fifo(&dir.join(files::SERIAL_IN))?;
    std::os::unix::fs::symlink("/dev/null", dir.join(files::SERIAL_OUT))
}

/// Removes them, for a VM that boots cold after all.
pub fn remove_serial(dir: &Path) -> io::Result<()> {
    files::remove(dir, files::SERIAL_IN)?;
    files::remove(dir, files::SERIAL_OUT)
}

/// A pipe with a name, for the worker and its VMM alone.
pub fn fifo(path: &Path) -> io::Result<()> {
    Ok(mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?)
}

/// Whether the guest in this folder knows who it is: what it was told through is removed then.
pub fn was_told(dir: &Path) -> bool {
    !dir.join(files::SERIAL_IN).exists()
}

/// Tells QEMU which parts of a saved guest lie in a file already.
pub async fn leave_out_memory(qmp: &mut Qmp) -> Result<(), QmpError> {
    let capabilities = json!({"capabilities": [{"capability": "x-ignore-shared", "state": true}]});
    qmp.execute_with("migrate-set-capabilities", capabilities).await.map(|_| ())
}

/// Lets a QEMU that was started with a template's memory, and its state to read, go on as this VM.
pub async fn go_on(qmp: &mut Qmp, plan: &VmPlan) -> Result<(), QmpError> {
    leave_out_memory(qmp).await?;
    qmp.execute_with("migrate-incoming", json!({"uri": "fd:0"})).await?;
    qmp.running().await?;
    Ok(tell(plan)?)
}

fn tell(plan: &VmPlan) -> io::Result<()> {
    let mut seed = [0; SEED_BYTES];
    getrandom::fill(&mut seed).map_err(|e| io::Error::other(format!("no randomness for the guest: {e}")))?;
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_millis();
    let line = line(plan, now, &seed)?;
    // QEMU holds the other end, so this neither waits nor is cut: the line fits a pipe.
    let nonblock = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    let mut pipe =
        std::fs::OpenOptions::new().write(true).custom_flags(nonblock).open(plan.dir.join(files::SERIAL_IN))?;
    pipe.write_all(line.as_bytes())?;
    files::remove(&plan.dir, files::SERIAL_IN)
}

fn line(plan: &VmPlan, unix_ms: u128, seed: &[u8]) -> io::Result<String> {
    let mac = match &plan.nic {
        Nic::Tap { mac, .. } | Nic::User { mac, .. } => mac,
        Nic::Simulated { .. } => return Err(io::ErrorKind::Unsupported.into()),
    };
    let seed: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("resume vm_id={} mac={mac} unix_ms={unix_ms} seed={seed}\n", plan.vm))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_line_can_be_laid_again() {
        let dir = tempfile::tempdir().unwrap();
        assert!(was_told(dir.path()), "a VM that booted needs to be told nothing");
        for _ in 0..2 {
            lay_serial(dir.path()).unwrap();
            assert!(!was_told(dir.path()));
            remove_serial(dir.path()).unwrap();
        }
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
    }
}
