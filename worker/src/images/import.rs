//! Takes an image into the store: whole, with a digest of every file, or not at all.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, FileExt},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use stoker_schemas::ImageName;

use super::{Image, ImageError, MANIFEST, digests::hex, manifest_in, read};

/// Copied at a time, bytes; what is all zeros becomes a hole.
const CHUNK_BYTES: usize = 256 * 1024;
/// Folders in the making and on their way out begin with this, which no image's name can.
pub(super) const DRAFT: &str = ".import-";

/// Why an image was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The folder does not hold an image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Its manifest names something that cannot be an image.
    #[error("{0}")]
    Name(String),
    /// There is one of that name.
    #[error("image {0} is here already; give another --name, or --replace it")]
    Exists(ImageName),
    /// A file could not be read or written.
    #[error("{what} {path}: {cause}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's words.
        cause: io::Error,
    },
}

pub(super) fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImportError {
    let path = path.to_owned();
    move |cause| ImportError::File { what, path, cause }
}

/// What to take in, and how.
#[derive(Debug, Clone)]
pub struct Import {
    /// A folder with an `image.json` and the files it names.
    pub from: PathBuf,
    /// The store.
    pub store: PathBuf,
    /// What it is to be called; `None` as its manifest says.
    pub name: Option<ImageName>,
    /// Whether one of that name may go. VMs that run on it keep its files until they end.
    pub replace: bool,
}

impl Import {
    /// Copies and checks every file, then shows the image under its name.
    pub fn run(self) -> Result<Image, ImportError> {
        let name = self.target()?;
        let mut image = read(&name, self.from.clone())?;
        let target = self.store.join(name.as_str());
        if target.exists() && !self.replace {
            return Err(ImportError::Exists(name));
        }
        fs::create_dir_all(&self.store).map_err(failed("making", &self.store))?;
        let draft = Draft::create(&self.store)?;
        for file in image.files().into_iter().map(str::to_owned).collect::<Vec<_>>() {
            let (from, to) = (image.dir.join(&file), draft.0.join(&file));
            let found = copy(&from, &to)?;
            let expected = image.manifest.digests.insert(file.clone(), found.clone());
            if let Some(expected) = expected.map(|digest| digest.to_ascii_lowercase()).filter(|digest| *digest != found)
            {
                return Err(ImageError::Damaged { image: name.to_string(), file, expected, found }.into());
            }
        }
        name.as_str().clone_into(&mut image.manifest.name);
        let path = draft.0.join(MANIFEST);
        let text = serde_json::to_vec_pretty(&image.manifest).map_err(io::Error::other);
        text.and_then(|text| fs::write(&path, text)).map_err(failed("writing", &path))?;
        sync(&path)?;
        sync(&draft.0)?;
        draft.show(&self.store, &target)?;
        image.dir = target;
        Ok(image)
    }

    fn target(&self) -> Result<ImageName, ImportError> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        // Errors name the file until the image's own name is known.
        let wrong = |what: String| ImportError::Name(format!("{} {what}", self.from.join(MANIFEST).display()));
        let name = manifest_in(&self.from).map_err(wrong)?.name;
        name.parse().map_err(|e| wrong(format!("has a name that cannot be used: {e}")))
    }
}

/// A folder that goes with this unless it is shown.
pub(super) struct Draft(PathBuf);

impl Draft {
    pub(super) fn create(store: &Path) -> Result<Self, ImportError> {
        let dir = store.join(format!("{DRAFT}{}", uuid::Uuid::now_v7()));
        // Read by whoever reads the store: jailed VMMs get their files by hard link or mount.
        fs::DirBuilder::new().mode(0o755).create(&dir).map_err(failed("making", &dir))?;
        Ok(Self(dir))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Under its name from one moment to the next; the one before goes.
    fn show(self, store: &Path, target: &Path) -> Result<(), ImportError> {
        let old = target.exists().then(|| store.join(format!("{DRAFT}old-{}", uuid::Uuid::now_v7())));
        if let Some(old) = &old {
            fs::rename(target, old).map_err(failed("moving away", target))?;
        }
        fs::rename(&self.0, target).map_err(failed("moving to", target))?;
        sync(store)?;
        old.map_or(Ok(()), |old| fs::remove_dir_all(&old).map_err(failed("removing", &old)))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Copies, keeps holes, and says the digest of what was read.
fn copy(from: &Path, to: &Path) -> Result<String, ImportError> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).map_err(failed("making", folder))?;
    }
    let mut source = File::open(from).map_err(failed("reading", from))?;
    let target = File::create_new(to).map_err(failed("writing", to))?;
    let (mut hasher, mut chunk, mut at) = (Sha256::new(), vec![0; CHUNK_BYTES], 0);
    loop {
        let read = source.read(&mut chunk).map_err(failed("reading", from))?;
        let Some(piece) = chunk.get(..read).filter(|piece| !piece.is_empty()) else { break };
        hasher.update(piece);
        if piece.iter().any(|byte| *byte != 0) {
            target.write_all_at(piece, at).map_err(failed("writing", to))?;
        }
        at += read as u64;
    }
    target.set_len(at).and_then(|()| target.sync_all()).map_err(failed("writing", to))?;
    Ok(hex(&hasher.finalize()))
}

fn sync(path: &Path) -> Result<(), ImportError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(failed("flushing", path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// A folder with a kernel that has a hole in it.
    fn folder(root: &Path, manifest: &serde_json::Value) -> PathBuf {
        let from = root.join("from");
        fs::create_dir_all(&from).unwrap();
        let kernel = File::create(from.join("vmlinux")).unwrap();
        kernel.write_all_at(b"head", 0).unwrap();
        kernel.write_all_at(b"tail", 8 << 20).unwrap();
        fs::write(from.join(MANIFEST), manifest.to_string()).unwrap();
        from
    }

    fn manifest() -> serde_json::Value {
        serde_json::json!({"schema": "dev.stoker.image.v1", "name": "mine", "kernel": "vmlinux"})
    }

    fn import(root: &Path, name: Option<&str>, replace: bool) -> Result<Image, ImportError> {
        let name = name.map(|name| name.parse().unwrap());
        Import { from: root.join("from"), store: root.join("images"), name, replace }.run()
    }

    fn left_over(root: &Path) -> usize {
        let entries = fs::read_dir(root.join("images")).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(DRAFT)).count()
    }

    #[test]
    fn an_image_comes_with_digests_holes_and_its_name() {
        let root = tempfile::tempdir().unwrap();
        folder(root.path(), &manifest());
        let image = import(root.path(), Some("yours"), false).unwrap();
        assert_eq!(image.dir, root.path().join("images/yours"));
        let again = read(&"yours".parse().unwrap(), image.dir.clone()).unwrap();
        assert_eq!(again.manifest, image.manifest);
        assert_eq!(again.manifest.name, "yours");
        let kernel = image.dir.join("vmlinux");
        assert_eq!(again.manifest.digests["vmlinux"], super::super::digest_of(&kernel).unwrap());
        assert_eq!(fs::read(&kernel).unwrap(), fs::read(root.path().join("from/vmlinux")).unwrap());
        assert!(fs::metadata(&kernel).unwrap().blocks() * 512 < 2 << 20, "the hole was filled");
        assert_eq!(left_over(root.path()), 0);
    }

    #[test]
    fn one_that_is_here_goes_only_when_asked() {
        let root = tempfile::tempdir().unwrap();
        folder(root.path(), &manifest());
        import(root.path(), None, false).unwrap();
        fs::write(root.path().join("from/vmlinux"), "new").unwrap();
        assert!(matches!(import(root.path(), None, false), Err(ImportError::Exists(_))));
        import(root.path(), None, true).unwrap();
        assert_eq!(fs::read(root.path().join("images/mine/vmlinux")).unwrap(), b"new");
        assert_eq!(left_over(root.path()), 0);
    }

    #[test]
    fn what_is_wrong_is_named_and_nothing_is_left() {
        let root = tempfile::tempdir().unwrap();
        let cases = [
            ("name", serde_json::json!("../etc"), "image.json has a name that cannot be used"),
            ("schema", serde_json::json!("dev.stoker.image.v9"), "dev.stoker.image.v9"),
            ("initrd", serde_json::json!("../../etc/passwd"), "not a file below"),
            ("rootfs", serde_json::json!("missing.ext4"), "not there"),
            ("digests", serde_json::json!({"vmlinux": "sha256:00"}), "vmlinux is not the file"),
        ];
        for (field, value, said) in cases {
            let mut manifest = manifest();
            manifest[field] = value;
            folder(root.path(), &manifest);
            let error = import(root.path(), None, true).unwrap_err().to_string();
            assert!(error.contains(said), "{field}: {error}");
            assert_eq!(left_over(root.path()), 0, "{field}");
        }
    }
}
