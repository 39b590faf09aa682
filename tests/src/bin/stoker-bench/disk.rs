//! What folders take on disk.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::{DEADLINE, Fallible};

/// Between two looks at what is open.
const LOOK: Duration = Duration::from_millis(1);

/// Whole mebibytes that a folder's files take, holes not counted.
pub fn mebibytes(dir: &Path) -> Fallible<u64> {
    Ok(bytes(dir)? >> 20)
}

/// Bytes that a folder's files take, holes not counted.
pub fn bytes(dir: &Path) -> Fallible<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let Ok(meta) = entry.metadata() else { continue };
        // A file may go while it is looked at.
        sum += if meta.is_dir() { bytes(&entry.path()).unwrap_or(0) } else { meta.blocks() * 512 };
    }
    Ok(sum)
}

/// Waits until this process has nothing below a folder open: tasks that were ended hold a log for a moment.
pub async fn closed(dir: &Path) -> Fallible<()> {
    let dir = dir.canonicalize()?;
    let closed = async {
        while is_open(&dir)? {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    };
    tokio::time::timeout(DEADLINE, closed).await.map_err(|_| format!("{} is still open", dir.display()))?
}

fn is_open(dir: &Path) -> Fallible<bool> {
    let open = std::fs::read_dir("/proc/self/fd")?.flatten();
    Ok(open.filter_map(|entry| std::fs::read_link(entry.path()).ok()).any(|file| file.starts_with(dir)))
}
