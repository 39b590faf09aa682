//! A VM's disk: copy-on-write over the image's file system, made in milliseconds, never the
//! image itself.
//!
//! QEMU gets a qcow2 overlay. Firecracker takes raw files only: a reflink where the file system
//! can make one, else the base read-only as first drive and an empty sparse second one, which the
//! guest lays over it (overlayfs).

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::io::Errno;
use tokio::process::Command;

use crate::ports::vm::{Disk, DiskFormat};

/// The overlay of an attempt.
const OVERLAY: &str = "disk.qcow2";
/// The raw copy or second drive of an attempt.
const RAW: &str = "disk.raw";
/// Size of the second drive when a job leaves it open; sparse, so it costs what is written.
const DEFAULT_SCRATCH_MIB: u32 = 4 * 1024;
/// How long `qemu-img create` may take; it writes 200 KiB.
const CREATE_TIMEOUT: Duration = Duration::from_secs(20);
/// What is kept of its complaints, bytes.
const MAX_WORDS_BYTES: usize = 600;
/// How a qcow2 file begins.
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";
const MIB: u64 = 1024 * 1024;

/// What can go wrong with a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A file could not be read or written.
    #[error("{what} {path}: {cause}; check space, permissions and that the image is complete")]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's words.
        cause: io::Error,
    },
    /// `qemu-img` is not there.
    #[error("qemu-img could not be started: {0}; install it (Debian: qemu-utils)")]
    NoTool(io::Error),
    /// `qemu-img` said no.
    #[error("qemu-img create failed: {0}")]
    Tool(String),
    /// The base has a format that the driver cannot use.
    #[error("{0} is a qcow2 file, and this hypervisor takes raw ones only; convert it (qemu-img convert -O raw)")]
    Format(PathBuf),
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_owned();
    move |cause| DiskError::File { what, path, cause }
}

/// Makes an attempt's disk in `dir` in the format the driver wants; `None` when there is nothing
/// to have. Writable is at least `disk_mib`, and at least the base. On error nothing is left.
pub async fn prepare(
    base: Option<&Path>,
    dir: &Path,
    disk_mib: u32,
    wanted: DiskFormat,
) -> Result<Option<Disk>, DiskError> {
    let made = match (base, wanted) {
        (None, _) if disk_mib == 0 => return Ok(None),
        // An empty disk needs no format: every driver takes a sparse file.
        (None, _) => empty(dir, disk_mib).map(|path| raw(path, None)),
        (Some(base), DiskFormat::Qcow2) => overlay(base, dir, disk_mib).await,
        (Some(base), DiskFormat::Raw) => copy_on_write(base, dir, disk_mib),
    };
    match made {
        Ok(disk) => Ok(Some(disk)),
        Err(error) => {
            // The first error is the one to tell.
            let _ = remove(dir);
            Err(error)
        }
    }
}

/// A disk in words, with the size that the guest sees (`qcow2 overlay, 4096 MiB`).
pub fn describe(disk: &Disk) -> String {
    let (kind, size) = match (disk.format, &disk.read_only_base) {
        (DiskFormat::Qcow2, _) => ("qcow2 overlay", qcow2_size(&disk.path)),
        (DiskFormat::Raw, Some(_)) => ("second drive over a read-only base", raw_size(&disk.path)),
        (DiskFormat::Raw, None) => ("raw file", raw_size(&disk.path)),
    };
    size.map_or_else(|_| kind.to_owned(), |bytes| format!("{kind}, {} MiB", bytes / MIB))
}

fn raw_size(path: &Path) -> io::Result<u64> {
    Ok(path.metadata()?.len())
}

/// The size that a qcow2 file shows its guest: bytes 24 to 31 of its header.
fn qcow2_size(path: &Path) -> io::Result<u64> {
    let mut size = [0; 8];
    File::open(path)?.read_exact_at(&mut size, 24)?;
    Ok(u64::from_be_bytes(size))
}

/// Removes an attempt's disk. Idempotent; the image is not touched.
pub fn remove(dir: &Path) -> Result<(), DiskError> {
    for name in [OVERLAY, RAW] {
        let path = dir.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("cannot remove", &path)(error)),
            _ => {}
        }
    }
    Ok(())
}

fn raw(path: PathBuf, read_only_base: Option<PathBuf>) -> Disk {
    Disk { path, format: DiskFormat::Raw, read_only_base }
}

fn create(path: &Path) -> Result<File, DiskError> {
    // Never an existing file: attempts share nothing.
    OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(failed("cannot create", path))
}

fn empty(dir: &Path, mib: u32) -> Result<PathBuf, DiskError> {
    let path = dir.join(RAW);
    create(&path)?.set_len(u64::from(mib) * MIB).map_err(failed("cannot size", &path))?;
    Ok(path)
}

fn format_of(base: &Path) -> Result<DiskFormat, DiskError> {
    let mut magic = [0; 4];
    let mut file = File::open(base).map_err(failed("cannot open", base))?;
    // Told here and passed on, because a format guessed by QEMU could be a guest's choice.
    match file.read_exact(&mut magic) {
        Ok(()) if magic == QCOW2_MAGIC => Ok(DiskFormat::Qcow2),
        Ok(()) => Ok(DiskFormat::Raw),
        Err(error) => Err(failed("cannot read", base)(error)),
    }
}

fn copy_on_write(base: &Path, dir: &Path, disk_mib: u32) -> Result<Disk, DiskError> {
    if format_of(base)? == DiskFormat::Qcow2 {
        return Err(DiskError::Format(base.to_owned()));
    }
    let base = std::path::absolute(base).map_err(failed("cannot find", base))?;
    let source = File::open(&base).map_err(failed("cannot open", &base))?;
    let path = dir.join(RAW);
    let target = create(&path)?;
    let failed_here = |cause| failed("cannot clone to", &path)(cause);
    match rustix::fs::ioctl_ficlone(&target, &source) {
        Ok(()) => {
            let length = target.metadata().map_err(failed_here)?.len();
            let wanted = u64::from(disk_mib) * MIB;
            if wanted > length {
                target.set_len(wanted).map_err(failed("cannot size", &path))?;
            }
            Ok(raw(path, None))
        }
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS) => {
            let mib = if disk_mib == 0 { DEFAULT_SCRATCH_MIB } else { disk_mib };
            target.set_len(u64::from(mib) * MIB).map_err(failed("cannot size", &path))?;
            Ok(raw(path, Some(base)))
        }
        Err(error) => Err(failed_here(error.into())),
    }
}

async fn overlay(base: &Path, dir: &Path, disk_mib: u32) -> Result<Disk, DiskError> {
    let format = format_of(base)?;
    let length = base.metadata().map_err(failed("cannot read", base))?.len();
    let base = std::path::absolute(base).map_err(failed("cannot find", base))?;
    let path = dir.join(OVERLAY);
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-F"]);
    command.arg(if format == DiskFormat::Qcow2 { "qcow2" } else { "raw" });
    command.arg("-b").arg(&base).arg(&path);
    // A size is only for growing: smaller than the base would cut it off. A qcow2 base's size is
    // inside of it, so there the job's wish is taken as it is when it is larger than the file.
    let wanted = u64::from(disk_mib) * MIB;
    if wanted > length {
        command.arg(wanted.to_string());
    }
    let run = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = match tokio::time::timeout(CREATE_TIMEOUT, run).await {
        Ok(output) => output.map_err(DiskError::NoTool)?,
        Err(_) => return Err(DiskError::Tool(format!("no end within {CREATE_TIMEOUT:?}"))),
    };
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(DiskError::Tool(stoker_schemas::limits::clip(words.trim(), MAX_WORDS_BYTES)));
    }
    Ok(Disk { path, format: DiskFormat::Qcow2, read_only_base: None })
}

#[cfg(test)]
mod tests;
