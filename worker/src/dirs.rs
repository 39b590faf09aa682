//! Where a host keeps things. Every path below the data folder is made here and nowhere else.
//!
//! ```text
//! <data>/log/            the event log (sled)
//! <data>/vms/<vm id>/    one attempt: sockets, overlay, console, vm.json
//! <data>/consoles/<vm>.log  consoles of attempts that are gone (bounded by count)
//! <data>/net/            dnsmasq's files
//! <data>/templates/      templates of prewarmed images, of this boot of the host
//! ```

use std::io;
use std::path::{Path, PathBuf};

use stoker_schemas::VmId;

use crate::console::{self, ConsoleSlice};
use crate::mounts;
use crate::ports::vm::VmRecord;

/// Consoles kept of attempts that are gone; the oldest go first. At 1 MiB each, 1 GiB at most.
pub const MAX_KEPT_CONSOLES: usize = 1_000;
/// Note of which accelerator works, below the data folder.
pub const ACCEL_NOTE: &str = "accel.json";
/// A record is a few hundred bytes; more is not one of ours.
const MAX_RECORD_BYTES: u64 = 64 * 1024;

/// The data folder of one host.
#[derive(Debug, Clone)]
pub struct Dirs {
    root: PathBuf,
}

impl Dirs {
    /// Makes the folders; only the owner may look inside (consoles can hold secrets).
    pub fn open(root: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::create_dir_all(root)?;
        let root = root.canonicalize()?;
        for name in ["vms", "consoles", "net"] {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root.join(name))?;
        }
        let dirs = Self { root };
        for dir in [dirs.log(), dirs.vms(), dirs.net()] {
            usable(&dir)?;
        }
        Ok(dirs)
    }

    /// The event log.
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// Templates of prewarmed images.
    pub fn templates(&self) -> PathBuf {
        self.root.join("templates")
    }

    /// dnsmasq's files.
    pub fn net(&self) -> PathBuf {
        self.root.join("net")
    }

    /// The data folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Note of which accelerator works, and of kernels that need another.
    pub fn accel(&self) -> PathBuf {
        self.root.join(ACCEL_NOTE)
    }

    /// Where the trial of an accelerator takes place.
    pub fn accel_trial(&self) -> PathBuf {
        self.root.join("accel-trial")
    }

    /// Note of images' files that were found right.
    pub fn digests(&self) -> PathBuf {
        self.root.join("digests.json")
    }

    /// What its VMMs count.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.prom")
    }

    /// All attempts' folders.
    pub fn vms(&self) -> PathBuf {
        self.root.join("vms")
    }

    /// One attempt's folder.
    pub fn vm(&self, vm: VmId) -> PathBuf {
        self.vms().join(vm.to_string())
    }

    /// Makes an attempt's folder. Left-overs under the same name would be of the same attempt, cut
    /// off before its first record: they go.
    pub fn create_vm(&self, vm: VmId) -> io::Result<PathBuf> {
        let dir = self.vm(vm);
        remove_all(&dir)?;
        std::fs::create_dir(&dir)?;
        Ok(dir)
    }

    /// Writes down how to find the VM again.
    pub fn write_record(&self, record: &VmRecord) -> io::Result<()> {
        let path = self.vm(record.vm).join("vm.json");
        let draft = path.with_extension("json.new");
        std::fs::write(&draft, serde_json::to_vec(record)?)?;
        std::fs::rename(draft, path)
    }

    /// How to find the VM again; `None` when nothing (readable) was written.
    pub fn read_record(&self, vm: VmId) -> Option<VmRecord> {
        let path = self.vm(vm).join("vm.json");
        let size = std::fs::metadata(&path).ok()?.len();
        if size > MAX_RECORD_BYTES {
            return None;
        }
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    /// VMs that have a folder.
    pub fn vm_ids(&self) -> io::Result<Vec<VmId>> {
        let entries = std::fs::read_dir(self.vms())?;
        Ok(entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect())
    }

    /// Reads a VM's console, wherever it is now: with the attempt, or kept after it.
    pub fn read_console(&self, vm: VmId, from: u64, max: usize) -> io::Result<ConsoleSlice> {
        match console::read_range(&self.vm(vm), from, max) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => console::read_kept(&self.kept_console(vm), from, max),
            read => read,
        }
    }

    /// The end of a VM's console, wherever it is now.
    pub fn tail_console(&self, vm: VmId, max: usize) -> io::Result<ConsoleSlice> {
        match console::read_tail(&self.vm(vm), max) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => console::read_kept_tail(&self.kept_console(vm), max),
            read => read,
        }
    }

    fn kept_console(&self, vm: VmId) -> PathBuf {
        self.root.join("consoles").join(format!("{vm}.log"))
    }

    /// Removes an attempt's folder, keeping its console.
    pub fn remove_vm(&self, vm: VmId) -> io::Result<()> {
        let dir = self.vm(vm);
        match console::keep(&dir, &self.kept_console(vm)) {
            Ok(()) => self.prune_consoles()?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        remove_all(&dir)
    }

    fn prune_consoles(&self) -> io::Result<()> {
        let mut kept: Vec<_> = std::fs::read_dir(self.root.join("consoles"))?
            .flatten()
            .filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path())))
            .collect();
        if kept.len() <= MAX_KEPT_CONSOLES {
            return Ok(());
        }
        kept.sort();
        let surplus = kept.len() - MAX_KEPT_CONSOLES;
        kept.into_iter().take(surplus).try_for_each(|(_, path)| std::fs::remove_file(path))
    }
}

/// A run as root leaves folders that nobody else may use: said here once, with the folder's name,
/// instead of by whichever part trips over it first.
fn usable(dir: &Path) -> io::Result<()> {
    use rustix::fs::{Access, access};
    match access(dir, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
        // Made later, by its owner.
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(io::Error::other(format!("{}: {}", dir.display(), io::Error::from(error)))),
    }
}

fn remove_all(dir: &Path) -> io::Result<()> {
    // A jail may hold a file of the image, mounted.
    mounts::release(dir)?;
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
