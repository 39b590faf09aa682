//! What a VMM keeps in its attempt's directory. Names are relative: the VMM runs with that
//! directory as its working directory, so its sockets fit `sun_path` however deep it lies.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

/// The guest's serial console; see [`crate::console`] for how it is bounded.
pub const CONSOLE: &str = "console.log";
/// The VMM's own log.
pub const VMM_LOG: &str = "vmm.log";
/// What the VMM wrote to stderr.
pub const VMM_STDERR: &str = "vmm.stderr";
/// Firecracker's counters, a pipe.
pub const METRICS: &str = "metrics.fifo";
/// Firecracker's API.
pub const API_SOCKET: &str = "api.sock";
/// The serial line to a copy of a template, as QEMU's pipes want it: this with `.in` and `.out`.
pub const SERIAL: &str = "serial";
/// What the guest is to read.
pub const SERIAL_IN: &str = "serial.in";
/// What the guest wrote; a VM's console is in [`CONSOLE`], so there it leads nowhere.
pub const SERIAL_OUT: &str = "serial.out";
/// QEMU's machine protocol.
pub const QMP_SOCKET: &str = "qmp.sock";

/// Opens a file of the attempt for appending. Always `O_APPEND`: a console that is cut back while
/// the VMM holds it open must not be continued at the old offset.
pub fn append(dir: &Path, name: &str) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(dir.join(name))
}

/// Removes a file of the attempt if it is there.
pub fn remove(dir: &Path, name: &str) -> io::Result<()> {
    match std::fs::remove_file(dir.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What tells a file from one that takes its place.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileFacts {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its inode's number.
    pub inode: u64,
    /// When its content last changed: seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
}

impl FileFacts {
    /// Those of a file that exists.
    pub fn of(path: &Path) -> io::Result<Self> {
        let meta = std::fs::metadata(path)?;
        let modified = (meta.mtime(), meta.mtime_nsec());
        Ok(Self { path: path.to_owned(), bytes: meta.len(), inode: meta.ino(), modified })
    }
}

/// An open directory, by which its files have a short path whatever its own length is
/// (`sun_path` holds 107 bytes; data directories are often longer).
#[derive(Debug)]
pub struct ShortDir(OwnedFd);

impl ShortDir {
    /// Opens the directory.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(dir, flags, Mode::empty())?))
    }

    /// A path to one of its files; valid as long as this value and only in this process.
    pub fn file(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_socket_in_a_deep_directory_can_be_reached() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        assert!(UnixListener::bind(deep.join("s")).is_err(), "too long for sun_path");
        let short = ShortDir::open(&deep).unwrap();
        let _listener = UnixListener::bind(short.file("s")).unwrap();
        UnixStream::connect(short.file("s")).unwrap();
    }
}
