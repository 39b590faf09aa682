//! The jailer: each VMM in a root of its own, as a user of its own, within limits.
//!
//! ```text
//! <attempt>/                      the worker's: console, the VMM's stderr, vm.json
//! <attempt>/<program>/<vm>/root/  what the VMM sees as `/`: its files, its socket, its devices
//! ```
//!
//! The root lies inside the attempt's folder, so removing the folder removes what the jailer leaves.
//! The image's files are lent, never given: a hard link where the file system allows one, else a
//! read-only bind mount; they are neither copied nor given another owner or mode.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, OpenOptionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::{
    fs::StatVfsMountFlags,
    io::Errno,
    mount::{MountFlags, mount_bind, mount_remount},
};
use stoker_schemas::VmId;

use crate::{
    ports::vm::{Disk, VmPlan},
    vm::{cgroup::Cgroups, files},
};

/// The user of the first address; the other addresses' follow. Nobody else's: systemd lists
/// 1879048192-2147483647 as not used by anything.
pub const DEFAULT_UID_BASE: u32 = 1_900_000_000;
/// The group that VMs' control groups lie in.
pub const DEFAULT_CGROUP_PARENT: &str = "stoker";

/// How VMMs are jailed.
#[derive(Debug, Clone)]
pub struct Jailer {
    /// The jailer's program.
    pub program: PathBuf,
    /// Control groups of this host.
    pub cgroups: Cgroups,
    /// The group that VMs' groups lie in, relative to the top.
    pub cgroup_parent: String,
}

impl Jailer {
    /// The command that becomes the VMM `binary` with these arguments.
    pub fn command(&self, binary: &Path, plan: &VmPlan, uid: u32) -> Command {
        let uid = uid.to_string();
        let mut command = Command::new(&self.program);
        command
            .args(["--id", &plan.vm.to_string(), "--uid", &uid, "--gid", &uid])
            .arg("--exec-file")
            .arg(binary)
            .arg("--chroot-base-dir")
            .arg(&plan.dir)
            .args(self.cgroups.arguments(&self.cgroup_parent, plan.vcpus, plan.memory_mib))
            .arg("--");
        command
    }

    /// Removes what a VMM that has ended leaves outside its folder. Blocks for moments.
    pub fn clean_up(&self, vm: VmId) -> io::Result<()> {
        self.cgroups.remove(&self.cgroup_parent, &vm.to_string())
    }
}

/// The root of a VM's jail.
pub fn root(binary: &Path, plan: &VmPlan) -> io::Result<PathBuf> {
    let program = binary.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(plan.dir.join(program).join(plan.vm.to_string()).join("root"))
}

/// The root of a VM's jail below its attempt's folder, if it has one: whatever the program was
/// called that an earlier worker started.
pub fn find_root(dir: &Path, vm: VmId) -> Option<PathBuf> {
    let name = vm.to_string();
    let entries = fs::read_dir(dir).ok()?.flatten();
    entries.map(|entry| entry.path().join(&name).join("root")).find(|root| root.is_dir())
}

/// Fills the jail; returns the plan as the VMM in there sees it.
pub fn fill(plan: &VmPlan, root: &Path, uid: u32) -> io::Result<VmPlan> {
    fs::create_dir_all(root)?;
    check_mount(root)?;
    let owned = files::append(root, files::VMM_LOG)?;
    std::os::unix::fs::fchown(&owned, Some(uid), Some(uid))?;
    let within = |name: &str| Path::new("/").join(name);
    let mut seen = plan.clone();
    lend(&plan.kernel, &root.join("kernel"))?;
    seen.kernel = within("kernel");
    if let Some(initrd) = &plan.initrd {
        lend(initrd, &root.join("initrd"))?;
        seen.initrd = Some(within("initrd"));
    }
    if let Some(disk) = &plan.disk {
        seen.disk = Some(fill_disk(disk, root, uid)?);
    }
    Ok(seen)
}

fn fill_disk(disk: &Disk, root: &Path, uid: u32) -> io::Result<Disk> {
    let mut seen = disk.clone();
    if let Some(base) = &disk.read_only_base {
        lend(base, &root.join("base"))?;
        seen.read_only_base = Some("/base".into());
    }
    // The attempt's own file, in the attempt's own folder: given, not lent.
    let inside = root.join("disk");
    fs::hard_link(&disk.path, &inside).map_err(|e| named(&disk.path, &e.to_string()))?;
    chown(&inside, Some(uid), Some(uid))?;
    seen.path = "/disk".into();
    Ok(seen)
}

/// The jailer makes device nodes and starts a program in there.
fn check_mount(root: &Path) -> io::Result<()> {
    let flags = rustix::fs::statvfs(root)?.f_flag;
    for (flag, name) in [(StatVfsMountFlags::NODEV, "nodev"), (StatVfsMountFlags::NOEXEC, "noexec")] {
        if flags.contains(flag) {
            let why =
                format!("its file system is mounted {name}, and a jail needs it otherwise; choose another --data");
            return Err(named(root, &why));
        }
    }
    Ok(())
}

/// Makes a file of the image appear in the jail.
fn lend(from: &Path, to: &Path) -> io::Result<()> {
    // A hard link to a symbolic link would be another symbolic link.
    let from = from.canonicalize().map_err(|e| named(from, &e.to_string()))?;
    let mode = fs::metadata(&from)?.mode();
    if mode & 0o004 == 0 {
        return Err(named(&from, "VMs run as users of their own and may not read it; chmod o+r it"));
    }
    if mode & 0o002 != 0 {
        return Err(named(&from, "every VM could write to it; chmod o-w it"));
    }
    match rustix::fs::link(&from, to) {
        Ok(()) => Ok(()),
        Err(Errno::XDEV | Errno::PERM | Errno::MLINK | Errno::NOTSUP) => bind(&from, to),
        Err(error) => Err(named(&from, &io::Error::from(error).to_string())),
    }
}

fn bind(from: &Path, to: &Path) -> io::Result<()> {
    fs::OpenOptions::new().create_new(true).write(true).mode(0o444).open(to)?;
    let bound = mount_bind(from, to).and_then(|()| mount_remount(to, MountFlags::BIND | MountFlags::RDONLY, ""));
    bound.map_err(|e| named(from, &format!("cannot be mounted at {}: {}", to.display(), io::Error::from(e))))
}

fn named(path: &Path, what: &str) -> io::Error {
    io::Error::other(format!("{}: {what}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn files_that_others_may_not_read_or_may_write_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kernel");
        fs::write(&file, "x").unwrap();
        for (mode, way_out) in [(0o600, "chmod o+r"), (0o646, "chmod o-w")] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            let error = lend(&file, &dir.path().join("lent")).unwrap_err().to_string();
            assert!(error.contains(way_out) && error.contains("kernel"), "{error}");
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        lend(&file, &dir.path().join("lent")).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().nlink(), 2);
    }

    #[test]
    fn the_jail_is_found_whatever_the_program_was_called() {
        let dir = tempfile::tempdir().unwrap();
        let vm = VmId(uuid::Uuid::from_u128(7));
        assert_eq!(find_root(dir.path(), vm), None);
        let root = dir.path().join("firecracker-v1.12.1").join(vm.to_string()).join("root");
        fs::create_dir_all(&root).unwrap();
        assert_eq!(find_root(dir.path(), vm), Some(root));
    }
}
