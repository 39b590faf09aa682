//! A log file that does not grow for ever: when it is full it becomes the earlier one, and a new one begins.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Size of a file, bytes; there are two at most.
const MAX_BYTES: u64 = 8 << 20;

/// The file, and how much it holds.
#[derive(Debug)]
pub struct BoundedFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    max: u64,
}

impl BoundedFile {
    /// Opens it to append to; makes its folder where that is missing.
    pub fn open(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        Self::with_max(path, MAX_BYTES)
    }

    fn with_max(path: &Path, max: u64) -> io::Result<Self> {
        // Consoles and errors may hold what is not for everybody.
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, bytes, max })
    }

    fn turn_over(&mut self) -> io::Result<()> {
        fs::rename(&self.path, self.path.with_extension("log.1"))?;
        *self = Self::with_max(&self.path, self.max)?;
        Ok(())
    }
}

impl Write for BoundedFile {
    /// Takes whole lines: the logger writes each at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.max {
            self.turn_over()?;
        }
        self.file.write_all(line)?;
        self.bytes += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_becomes_the_earlier_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stoker.log");
        let mut log = BoundedFile::with_max(&path, 10).unwrap();
        for line in ["first\n", "two\n", "three\n", "longer than a file\n", "five\n"] {
            log.write_all(line.as_bytes()).unwrap();
        }
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!(read(&path), "five\n");
        assert_eq!(read(&path.with_extension("log.1")), "longer than a file\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        let mut again = BoundedFile::with_max(&path, 10).unwrap();
        again.write_all(b"six\n").unwrap();
        assert_eq!(read(&path), "five\nsix\n");
    }
}
