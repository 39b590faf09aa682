//! Undoing mounts below a folder, before the folder is removed: what is mounted there belongs to
//! somebody else.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use rustix::{
    io::Errno,
    mount::{UnmountFlags, unmount},
};

/// Undoes every mount below a folder, innermost first. Idempotent. Whoever removes an attempt's
/// folder calls this before: what is mounted there is the image.
pub fn release(dir: &Path) -> io::Result<()> {
    let Ok(dir) = dir.canonicalize() else { return Ok(()) };
    let table = fs::read("/proc/self/mountinfo")?;
    for at in mounts_below(&table, &dir).into_iter().rev() {
        match unmount(&at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => {
                let what = format!("{} cannot be unmounted: {}", at.display(), io::Error::from(error));
                return Err(io::Error::other(what));
            }
        }
    }
    Ok(())
}

/// Mount points below a folder, in the order of the table.
fn mounts_below(table: &[u8], dir: &Path) -> Vec<PathBuf> {
    let point = |line: &[u8]| Some(unescaped(line.split(|b| *b == b' ').nth(4)?));
    table.split(|b| *b == b'\n').filter_map(point).filter(|at| at.starts_with(dir) && at != dir).collect()
}

/// The table writes space, tab, newline and backslash as three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let digits = tail.get(..3).filter(|d| *first == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match digits {
            Some(digits) => {
                bytes.push(digits.iter().fold(0_u8, |n, b| n.wrapping_mul(8).wrapping_add(b - b'0')));
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_table_is_read_with_its_escapes() {
        let table = b"36 35 98:0 / /d/vms/a\\040b/root/base ro - ext4 /dev/x ro\n37 35 98:0 / /d/vms/ab rw - x y z\n";
        assert_eq!(mounts_below(table, Path::new("/d/vms/a b")), [PathBuf::from("/d/vms/a b/root/base")]);
        assert!(mounts_below(table, Path::new("/d/vms/a")).is_empty(), "a name that only begins alike");
        assert!(mounts_below(b"garbage\n\n", Path::new("/")).is_empty());
    }
}
