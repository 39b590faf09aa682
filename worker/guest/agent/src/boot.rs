//! What a first process does before anything else: mount, load drivers, take a name.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount};
use rustix::system::{finit_module, sethostname};

use crate::console;

/// Drivers, named so that alphabetical order is load order.
const MODULES: &str = "/modules";
/// The machine's id.
pub const MACHINE_ID: &str = "/etc/machine-id";
/// The kernel's limit for a host name.
const MAX_HOSTNAME: usize = 64;

/// Mounts the kernel's file systems. One that fails is reported and survived: the console
/// then shows why the rest is incomplete.
pub fn mount_kernel_file_systems() {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        let result =
            fs::create_dir_all(target).and_then(|()| mount(kind, target, kind, flags, None).map_err(io::Error::from));
        match result {
            // The kernel mounts /dev by itself when built so.
            Err(error) if error.raw_os_error() != Some(rustix::io::Errno::BUSY.raw_os_error()) => {
                console::say(format_args!("cannot mount {target}: {error}"));
            }
            _ => {}
        }
    }
}

/// Loads every driver of the image, in order.
pub fn load_modules() {
    for path in modules_in(Path::new(MODULES)) {
        let result = File::open(&path).and_then(|file| finit_module(&file, c"", 0).map_err(io::Error::from));
        if let Err(error) = result {
            console::say(format_args!("cannot load {}: {error}", path.display()));
        }
    }
}

/// The machine's name; without one the kernel's own stays, because an empty name breaks programs.
pub fn set_hostname(name: &str) {
    if name.is_empty() {
        return;
    }
    let name = name.as_bytes();
    let cut = name.get(..MAX_HOSTNAME).unwrap_or(name);
    if let Err(error) = sethostname(cut) {
        console::say(format_args!("cannot set the host name: {error}"));
    }
}

/// What programs know the machine by, beside its name (machine-id(5)): the VM's id without hyphens.
/// An id of another form leaves the machine without one, rather than with a wrong one.
pub fn set_machine_id(vm_id: &str) {
    let Some(id) = machine_id(vm_id) else { return };
    if let Err(error) = fs::create_dir_all("/etc").and_then(|()| fs::write(MACHINE_ID, id)) {
        console::say(format_args!("cannot write {MACHINE_ID}: {error}"));
    }
}

fn machine_id(vm_id: &str) -> Option<String> {
    let digits: String = vm_id.chars().filter(|c| *c != '-').map(|c| c.to_ascii_lowercase()).collect();
    (digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit())).then(|| format!("{digits}\n"))
}

fn modules_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension() == Some(OsStr::new("ko")))
        .collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_id_is_made_of_a_uuid_only() {
        let id = machine_id("0199B0C4-7d3e-7000-8000-000000000001");
        assert_eq!(id.as_deref(), Some("0199b0c47d3e70008000000000000001\n"));
        assert_eq!(machine_id("vm-7"), None);
    }

    #[test]
    fn modules_come_in_order_and_other_files_do_not_count() {
        let folder = std::env::temp_dir().join(format!("stoker-agent-modules-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for name in ["02-b.ko", "10-c.ko", "01-a.ko", "notes.txt"] {
            File::create(folder.join(name)).unwrap();
        }
        let names: Vec<_> =
            modules_in(&folder).iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(names, ["01-a.ko", "02-b.ko", "10-c.ko"]);
        assert!(modules_in(&folder).is_empty());
    }
}
