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
