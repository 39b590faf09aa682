//! Whether an image's files are what its manifest says: read once, then known by size, inode and time
//! of change, never per boot.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Image, ImageError};

/// Files remembered; more are forgotten together and read again.
const MAX_KNOWN: usize = 4_096;
/// Read at a time, bytes.
const CHUNK_BYTES: usize = 1 << 20;
/// How a digest begins.
const SHA256: &str = "sha256:";

/// What tells a file from the one it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    bytes: u64,
    inode: u64,
    changed: (i64, i64),
    /// What it must have been, and was.
    digest: String,
}

impl Facts {
    fn of(path: &Path, digest: &str) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        // Of the inode, which nobody can set back as they can the time of modification.
        let changed = (meta.ctime(), meta.ctime_nsec());
        Ok(Self { bytes: meta.len(), inode: meta.ino(), changed, digest: digest.to_owned() })
    }
}

/// What was found right before.
#[derive(Debug, Default)]
pub struct Digests {
    known: Mutex<HashMap<PathBuf, Facts>>,
    /// Where it is written down; a note, without which everything is read again.
    note: Option<PathBuf>,
    /// One file is read at a time: several would be slower together.
    reading: tokio::sync::Mutex<()>,
}

impl Digests {
    /// With what an earlier worker found.
    pub fn open(note: PathBuf) -> Self {
        let known = fs::read(&note).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Self { known: Mutex::new(known), note: Some(note), reading: tokio::sync::Mutex::default() }
    }

    /// Reads what is not known to be right. Files without a digest are not judged.
    pub async fn check(self: &Arc<Self>, image: &Arc<Image>) -> Result<(), ImageError> {
        if unknown(&self.known, image).is_empty() {
            return Ok(());
        }
        let _one = self.reading.lock().await;
        let (digests, of) = (Arc::clone(self), Arc::clone(image));
        // Reading a root file system takes a second.
        let read = tokio::task::spawn_blocking(move || digests.read(&of));
        read.await.unwrap_or_else(|error| Err(cannot(image, "its files", &io::Error::other(error))))
    }

    fn read(&self, image: &Image) -> Result<(), ImageError> {
        for (file, expected) in unknown(&self.known, image) {
            let path = image.dir.join(&file);
            let failed = |error: io::Error| cannot(image, &file, &error);
            // Looked at before it is read: a change in between is then seen the next time.
            let facts = Facts::of(&path, &expected).map_err(failed)?;
            let found = digest_of(&path).map_err(failed)?;
            if found != expected {
                return Err(ImageError::Damaged { image: image.manifest.name.clone(), file, expected, found });
            }
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= MAX_KNOWN {
                known.clear();
            }
            known.insert(path, facts);
        }
        self.write_down();
        Ok(())
    }

    fn write_down(&self) {
        let Some(note) = &self.note else { return };
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let draft = note.with_extension("new");
        let written = serde_json::to_vec(&known).map_err(io::Error::other).and_then(|text| fs::write(&draft, text));
        if let Err(error) = written.and_then(|()| fs::rename(&draft, note)) {
            tracing::warn!(%error, "what is known of images' files could not be written down; they are read again");
        }
    }
}

fn cannot(image: &Image, file: &str, error: &io::Error) -> ImageError {
    ImageError::Unreadable { image: image.manifest.name.clone(), file: file.to_owned(), why: error.to_string() }
}

/// Its files that have a digest and are not known to match it.
fn unknown(known: &Mutex<HashMap<PathBuf, Facts>>, image: &Image) -> Vec<(String, String)> {
    let known = known.lock().unwrap_or_else(PoisonError::into_inner);
    let digest_of = |file: &str| image.manifest.digests.get(file).map(|digest| digest.to_ascii_lowercase());
    let files = image.files().into_iter().filter_map(|file| Some((file, digest_of(file)?)));
    let fresh = files.filter(|(file, digest)| {
        let path = image.dir.join(file);
        let facts = Facts::of(&path, digest).ok();
        facts.is_none() || known.get(&path) != facts.as_ref()
    });
    fresh.map(|(file, digest)| (file.to_owned(), digest)).collect()
}

/// A file's digest as manifests have it.
///
/// # Errors
/// The file cannot be read.
pub fn digest_of(path: &Path) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match io::Read::read(&mut file, &mut chunk)? {
            0 => break,
            read => hasher.update(chunk.get(..read).unwrap_or_default()),
        }
    }
    Ok(hex(&hasher.finalize()))
}

/// A hash as manifests write it.
pub(super) fn hex(hash: &[u8]) -> String {
    hash.iter().fold(SHA256.to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use stoker_schemas::ImageName;

    use super::*;
    use crate::images::ImageStore;

    /// An image of a kernel only, with the digest of "kernel".
    fn image(root: &Path) -> (ImageStore, PathBuf) {
        let dir = root.join("small");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("vmlinux"), "kernel").unwrap();
        let digest = digest_of(&dir.join("vmlinux")).unwrap();
        assert_eq!(digest, "sha256:6923dd1bc0460082c5d55a831908c24a282860b7f1cd6c2b79cf1bc8857c639c");
        let manifest = serde_json::json!({
            "schema": "dev.stoker.image.v1", "name": "small", "kernel": "vmlinux", "digests": {"vmlinux": digest},
        });
        fs::write(dir.join("image.json"), manifest.to_string()).unwrap();
        (ImageStore::folder(root), dir.join("vmlinux"))
    }

    fn load(store: &ImageStore) -> Arc<Image> {
        store.load(&"small".parse::<ImageName>().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_changed_file_is_named_with_both_digests() {
        let root = tempfile::tempdir().unwrap();
        let (store, kernel) = image(root.path());
        let digests = Arc::new(Digests::default());
        digests.check(&load(&store)).await.unwrap();
        fs::write(&kernel, "kernex").unwrap();
        let error = digests.check(&load(&store)).await.unwrap_err();
        assert!(matches!(&error, ImageError::Damaged { file, .. } if file == "vmlinux"), "{error}");
        assert!(error.to_string().contains("stoker image verify small"), "{error}");
    }

    #[tokio::test]
    async fn what_was_right_is_not_read_again_also_by_the_next_worker() {
        let root = tempfile::tempdir().unwrap();
        let (store, kernel) = image(root.path());
        let note = root.path().join("digests.json");
        Arc::new(Digests::open(note.clone())).check(&load(&store)).await.unwrap();
        let next = Digests::open(note);
        assert_eq!(unknown(&next.known, &load(&store)), []);
        fs::File::options()
            .append(true)
            .open(&kernel)
            .unwrap()
            .set_modified(std::time::SystemTime::UNIX_EPOCH)
            .unwrap();
        assert_eq!(unknown(&next.known, &load(&store)).len(), 1, "touched");
    }
}
