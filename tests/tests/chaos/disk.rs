//! Disks that fill up or fail to order, mounted for one test.

use std::{
    fs::File,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::Command,
};

use stoker_tests::skipped;

/// What a test's workers write, several times over.
const SIZE_MIB: u64 = 96;
/// As a disk that fails shows itself larger than what is behind it.
const SHOWN_MIB: u64 = 512;
const BLOCK: usize = 64 * 1024;

/// A disk to put data on, on which all writing fails as long as it is told to.
pub struct Disk {
    /// Where it is mounted, and what its writes end in.
    pub path: PathBuf,
    below: PathBuf,
    _mounts: Vec<Mount>,
    _dir: tempfile::TempDir,
}

impl Disk {
    /// One that says it is full (ENOSPC). `None`, and said so, where nothing can be mounted.
    pub fn that_fills_up(test: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let mount = said(test, Mount::memory(&path))?;
        Some(Self { below: path.clone(), path, _mounts: vec![mount], _dir: dir })
    }

    /// One that takes writes and fails when they are written back: a file system without a journal in a file that has
    /// nowhere to grow. The kernel says ENOSPC here as well; EIO would need a device mapper, or a FUSE layer.
    pub fn that_fails(test: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let (below, path) = (dir.path().join("below"), dir.path().join("disk"));
        let memory = said(test, Mount::memory(&below))?;
        let image = below.join("image");
        File::create(&image).unwrap().set_len(SHOWN_MIB << 20).unwrap();
        said(test, run("mkfs.ext2", &["-q", "-F", &image.display().to_string()]))?;
        let disk = said(test, Mount::new(&path, &["-o", "loop,errors=continue", &image.display().to_string()]))?;
        // The last is dropped first.
        Some(Self { path, below, _mounts: vec![disk, memory], _dir: dir })
    }

    /// From now on it is full, or fails.
    pub fn fail(&self) {
        let mut fill = File::create(self.below.join("fill")).unwrap();
        // Byte by byte at the end, so that nothing is left.
        for size in [BLOCK, 1] {
            loop {
                match fill.write(&vec![0; size]) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    pub fn recover(&self) {
        std::fs::remove_file(self.below.join("fill")).unwrap();
    }
}

fn said<T>(test: &str, made: Result<T, String>) -> Option<T> {
    made.map_err(|error| skipped(test, &error)).ok()
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    output.status.success().then_some(()).ok_or_else(|| format!("{program}: {}", said.trim()))
}

/// Unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(at: &Path, what: &[&str]) -> Result<Self, String> {
        std::fs::create_dir_all(at).map_err(|error| error.to_string())?;
        run("mount", &[what, &[&at.display().to_string()]].concat())?;
        Ok(Self(at.to_owned()))
    }

    fn memory(at: &Path) -> Result<Self, String> {
        Self::new(at, &["-t", "tmpfs", "-o", &format!("size={SIZE_MIB}m"), "stoker-test"])
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a worker of a test that failed may still be about to end.
        if let Err(error) = run("umount", &["-l", &self.0.display().to_string()]) {
            eprintln!("{error}");
        }
    }
}
