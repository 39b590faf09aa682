//! Removes what no job owns: VMMs, taps and folders left by a crash in the middle of something.
//!
//! Runs at start, after the log has told which VMs are ours and before anything new is made, so
//! that "not known" cannot mean "just being made".

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::time::Duration;

use stoker_schemas::VmId;
use stoker_schemas::image::Driver;
use stoker_schemas::seeded::{self, Bug};

use crate::attempt::Rig;
use crate::dirs::Dirs;
use crate::ports::vm::VmRecord;
use crate::vm::firecracker::jail;

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reaped {
    /// VMMs that no job owns.
    pub vmms: u32,
    /// Attempts' folders.
    pub folders: u32,
    /// Tap devices.
    pub taps: u32,
    /// What could not be removed, and why.
    pub failed: Vec<String>,
}

/// Removes everything that belongs to none of the `known` VMs. One failure does not stop the rest.
pub async fn reap(rig: &Rig, known: &HashSet<VmId>) -> Reaped {
    let mut reaped = Reaped::default();
    if seeded::is_on(Bug::NothingReaped) {
        return reaped;
    }
    if let Some(dirs) = &rig.dirs {
        match dirs.vm_ids() {
            Ok(ids) => {
                for vm in ids.into_iter().filter(|vm| !known.contains(vm)) {
                    match reap_vm(rig, dirs, vm).await {
                        Ok(had_vmm) => {
                            reaped.folders += 1;
                            reaped.vmms += u32::from(had_vmm);
                        }
                        Err(why) => reaped.failed.push(format!("vm {vm}: {why}")),
                    }
                }
            }
            Err(error) => reaped.failed.push(format!("attempts' folders: {error}")),
        }
    }
    reap_taps(rig, known, &mut reaped).await;
    reaped
}

/// True when a VMM was still running.
async fn reap_vm(rig: &Rig, dirs: &Dirs, vm: VmId) -> Result<bool, String> {
    let record = dirs.read_record(vm).or_else(|| find_vmm(dirs, vm, rig.hypervisor.driver()));
    let mut had_vmm = false;
    if let Some(record) = record
        && let Some(running) = rig.hypervisor.adopt(record).await.map_err(|e| e.to_string())?
    {
        running.stop(Duration::ZERO).await.map_err(|e| e.to_string())?;
        had_vmm = true;
    }
    rig.hypervisor.clean_up(vm).await.map_err(|e| e.to_string())?;
    // Its address is not known any more; the reservation goes by MAC, the neighbour entry expires.
    rig.network.detach(vm, None).await.map_err(|e| e.to_string())?;
    dirs.remove_vm(vm).map_err(|e| e.to_string())?;
    Ok(had_vmm)
}

async fn reap_taps(rig: &Rig, known: &HashSet<VmId>, reaped: &mut Reaped) {
    let ours: HashSet<String> = known.iter().map(|vm| vm.tap()).collect();
    match rig.network.taps().await {
        Ok(taps) => {
            for tap in taps.iter().filter(|tap| !ours.contains(*tap)) {
                match rig.network.remove_tap(tap).await {
                    Ok(()) => reaped.taps += 1,
                    Err(error) => reaped.failed.push(format!("tap {tap}: {error}")),
                }
            }
        }
        Err(error) => reaped.failed.push(format!("taps: {error}")),
    }
}

/// The VMM of an attempt by its working directory, or by its root when it is jailed: found even when
/// the worker died between starting it and writing its record.
pub fn find_vmm(dirs: &Dirs, vm: VmId, driver: Driver) -> Option<VmRecord> {
    let dir = dirs.vm(vm);
    let jail = jail::find_root(&dir, vm).and_then(|root| identity(&root));
    let processes = std::fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        // The jailer starts in the attempt's folder and goes to its root from there.
        let works_here = std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == dir);
        let jailed_here = || jail.is_some() && identity(&entry.path().join("root")) == jail;
        if !works_here && !jailed_here() {
            return None;
        }
        let start_ticks = start_ticks(&entry.path()).ok()?;
        Some(VmRecord { vm, driver, pid, start_ticks, dir: dir.clone() })
    })
}

/// Which folder this is, whatever its path: a jailed process' root looks like `/` from here.
fn identity(folder: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(folder).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Field 22 of `/proc/<pid>/stat`. The second field, the name, may itself hold spaces and brackets.
fn start_ticks(process: &Path) -> io::Result<u64> {
    let stat = std::fs::read_to_string(process.join("stat"))?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let field = after_name.split_ascii_whitespace().nth(19);
    field.and_then(|f| f.parse().ok()).ok_or_else(|| io::Error::other("stat of a process is not as expected"))
}

/// A simulated VM is found by its id alone.
pub fn simulated_record(vm: VmId) -> VmRecord {
    VmRecord { vm, driver: Driver::Simulated, pid: 0, start_ticks: 0, dir: Default::default() }
}
