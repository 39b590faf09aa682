//! Keeps what the file of tokens says: a token that is taken out of it ends within a second,
//! without a restart.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::tokens::{self, Token, TokenErrors};

/// The file is looked at no more often than this.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Others than the owner may write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The tokens of a file.
pub struct Watched {
    path: PathBuf,
    kept: Mutex<Kept>,
}

struct Kept {
    tokens: Arc<[Token]>,
    stamp: Option<Stamp>,
    looked: Instant,
}

/// Tells one state of a file from another; an editor's replacement has another inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Watched {
    /// Reads the file; nothing is served from one with mistakes.
    pub fn open(path: &Path) -> Result<Self, TokenErrors> {
        let stamp = stamp(path);
        let tokens = tokens::read(path)?.into();
        warn_if_writable(path);
        Ok(Self { path: path.to_owned(), kept: Mutex::new(Kept { tokens, stamp, looked: Instant::now() }) })
    }

    /// The tokens as the file has them now, or as it last had them while it cannot be read.
    pub fn tokens(&self) -> Arc<[Token]> {
        // Held while the file is read: a page of text, once a change.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.looked.elapsed() >= LOOK_EVERY {
            kept.looked = Instant::now();
            self.look(&mut kept);
        }
        kept.tokens.clone()
    }

    /// Reads the file again if it is another one.
    fn look(&self, kept: &mut Kept) {
        let stamp = stamp(&self.path);
        if stamp == kept.stamp {
            return;
        }
        kept.stamp = stamp;
        match tokens::read(&self.path) {
            Ok(tokens) => {
                tracing::info!(file = %self.path.display(), tokens = tokens.len(), "tokens read again");
                warn_if_writable(&self.path);
                kept.tokens = tokens.into();
            }
            // Shutting everybody out for a typing error would also shut out who mends it.
            Err(error) => tracing::error!(%error, "tokens stay as they were: the file cannot be used"),
        }
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let data = std::fs::metadata(path).ok()?;
    Some(Stamp { inode: data.ino(), size: data.size(), changed: (data.ctime(), data.ctime_nsec()) })
}

fn warn_if_writable(path: &Path) {
    if std::fs::metadata(path).is_ok_and(|data| data.mode() & WRITABLE_BY_OTHERS != 0) {
        tracing::warn!(file = %path.display(), "others may write the file of tokens, and so let themselves in: chmod 600");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> String {
        let sha = super::super::secret::Fingerprint::of(name);
        format!("[[token]]\nname = \"{name}\"\nrole = \"read\"\nsha256 = \"{sha}\"\n")
    }

    #[test]
    fn a_changed_file_counts_and_a_broken_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.toml");
        std::fs::write(&path, entry("one")).unwrap();
        let watched = Watched::open(&path).unwrap();
        let names = || {
            // As if a second had passed.
            let mut kept = watched.kept.lock().unwrap();
            watched.look(&mut kept);
            kept.tokens.iter().map(|t| t.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(), ["one"]);
        std::fs::write(&path, entry("one") + &entry("other")).unwrap();
        assert_eq!(names(), ["one", "other"]);
        std::fs::write(&path, "[[token]").unwrap();
        assert_eq!(names(), ["one", "other"]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(names(), ["one", "other"]);
        std::fs::write(&path, entry("other")).unwrap();
        assert_eq!(names(), ["other"]);
        assert!(Watched::open(&dir.path().join("none")).is_err());
    }
}
