//! The image store: one folder per image with `image.json`. Manifests are read once per change of
//! the file, never per boot.

mod build;
mod digests;
mod gc;
mod import;

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use stoker_schemas::ImageName;
use stoker_schemas::image::{IMAGE_SCHEMA, ImageManifest};

pub use build::{Build, plain_manifest};
pub use digests::{Digests, digest_of};
pub use gc::{Unneeded, unneeded};
pub use import::{Import, ImportError};

/// The manifest's file.
const MANIFEST: &str = "image.json";
/// A manifest is a page of JSON; more is not one.
const MAX_MANIFEST_BYTES: u64 = 256 * 1024;
/// Of a path that an agent is asked at.
const MAX_PATH_BYTES: usize = 200;
/// Manifests kept in memory.
const MAX_CACHED: usize = 1_024;

/// An image on this host.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its folder.
    pub dir: PathBuf,
    /// What it holds and allows.
    pub manifest: ImageManifest,
}

impl Image {
    /// The kernel's file.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join(&self.manifest.kernel)
    }

    /// The initial RAM disk's file.
    pub fn initrd(&self) -> Option<PathBuf> {
        self.manifest.initrd.as_ref().map(|f| self.dir.join(f))
    }

    /// The root file system's file.
    pub fn rootfs(&self) -> Option<PathBuf> {
        self.manifest.rootfs.as_ref().map(|f| self.dir.join(f))
    }

    /// Its files, as the manifest names them.
    pub fn files(&self) -> Vec<&str> {
        let manifest = &self.manifest;
        let files = [Some(&manifest.kernel), manifest.initrd.as_ref(), manifest.rootfs.as_ref()];
        files.into_iter().flatten().map(String::as_str).collect()
    }
}

/// Why an image cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    /// It is not here.
    #[error("image {0} is not on this host; scripts/dev image builds the ones Stoker ships")]
    Missing(ImageName),
    /// Its manifest is wrong.
    #[error("image {name}: image.json {what}")]
    Manifest {
        /// Which image.
        name: ImageName,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// A file is not what the manifest says.
    #[error(
        "image {image}: {file} is not the file that image.json names ({expected}), but {found}; rebuild or import it \
         (stoker image verify {image} looks at all of it)"
    )]
    Damaged {
        /// Which image.
        image: String,
        /// Which file.
        file: String,
        /// The digest in the manifest.
        expected: String,
        /// The file's.
        found: String,
    },
    /// A file cannot be read.
    #[error("image {image}: {file} cannot be read: {why}")]
    Unreadable {
        /// Which image.
        image: String,
        /// Which file.
        file: String,
        /// The system's words.
        why: String,
    },
}

/// When a manifest was read, by the file's modification time.
type Cached = (SystemTime, Arc<Image>);

/// Images of one host.
#[derive(Debug)]
pub enum ImageStore {
    /// Folders below this one.
    Folder {
        /// The store's folder.
        root: PathBuf,
        /// Manifests already read.
        cache: Mutex<HashMap<ImageName, Cached>>,
        /// Files already read.
        digests: Arc<Digests>,
    },
    /// Every name is an image (simulated guests have no files).
    Simulated,
}

impl ImageStore {
    /// Images below `root`.
    pub fn folder(root: impl Into<PathBuf>) -> Self {
        Self::Folder { root: root.into(), cache: Mutex::default(), digests: Arc::default() }
    }

    /// The same; what is found of their files is written down in `note`.
    pub fn folder_with_note(root: impl Into<PathBuf>, note: PathBuf) -> Self {
        Self::Folder { root: root.into(), cache: Mutex::default(), digests: Arc::new(Digests::open(note)) }
    }

    /// Names of the images that are here, in order; they may be damaged.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn names(&self) -> std::io::Result<Vec<ImageName>> {
        let Self::Folder { root, .. } = self else { return Ok(Vec::new()) };
        let with_manifest = std::fs::read_dir(root)?.flatten().filter(|e| e.path().join(MANIFEST).is_file());
        let mut names: Vec<ImageName> = with_manifest.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
        names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        Ok(names)
    }

    /// Looks, once for each, whether the image's files are what its manifest says.
    ///
    /// # Errors
    /// Names the file that is not.
    pub async fn check(&self, image: &Arc<Image>) -> Result<(), ImageError> {
        match self {
            Self::Folder { digests, .. } => digests.check(image).await,
            Self::Simulated => Ok(()),
        }
    }

    /// The image of that name.
    pub fn load(&self, name: &ImageName) -> Result<Arc<Image>, ImageError> {
        match self {
            Self::Simulated => Ok(Arc::new(simulated(name))),
            Self::Folder { root, cache, .. } => {
                // ImageName allows no '/' and no '..': the folder lies below the root.
                let dir = root.join(name.as_str());
                let modified = std::fs::metadata(dir.join(MANIFEST))
                    .and_then(|m| m.modified())
                    .map_err(|_| ImageError::Missing(name.clone()))?;
                let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((at, image)) = cache.get(name)
                    && *at == modified
                {
                    return Ok(Arc::clone(image));
                }
                let image = Arc::new(read(name, dir)?);
                if cache.len() >= MAX_CACHED {
                    cache.clear();
                }
                cache.insert(name.clone(), (modified, Arc::clone(&image)));
                Ok(image)
            }
        }
    }
}

/// It is written into a request as it is.
fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.len() <= MAX_PATH_BYTES && text.bytes().all(|b| b.is_ascii_graphic())
}

/// The manifest in a folder; an error says what is wrong with it.
fn manifest_in(dir: &Path) -> Result<ImageManifest, String> {
    let path = dir.join(MANIFEST);
    let size = std::fs::metadata(&path).map_err(|e| format!("cannot be read: {e}"))?.len();
    if size > MAX_MANIFEST_BYTES {
        return Err(format!("has {size} bytes, at most {MAX_MANIFEST_BYTES}"));
    }
    let text = std::fs::read(&path).map_err(|e| format!("cannot be read: {e}"))?;
    let manifest: ImageManifest = serde_json::from_slice(&text).map_err(|e| format!("is not valid: {e}"))?;
    if manifest.schema != IMAGE_SCHEMA {
        return Err(format!("has schema {:?}, expected {IMAGE_SCHEMA:?}", manifest.schema));
    }
    if let Some(path) = manifest.shutdown.as_ref().filter(|path| !is_path(path)) {
        let shown = stoker_schemas::limits::clip(path, 80);
        return Err(format!("has shutdown {shown:?}, which is not a path; it is like \"/shutdown\""));
    }
    Ok(manifest)
}

fn read(name: &ImageName, dir: PathBuf) -> Result<Image, ImageError> {
    let wrong = |what: String| ImageError::Manifest { name: name.clone(), what };
    let manifest = manifest_in(&dir).map_err(wrong)?;
    let image = Image { dir, manifest };
    for file in image.files() {
        let plain = Path::new(file).components().all(|c| matches!(c, Component::Normal(_)));
        if !plain || file.is_empty() {
            return Err(wrong(format!("names {file:?}, which is not a file below the image's folder")));
        }
        if !image.dir.join(file).is_file() {
            return Err(wrong(format!("names {file:?}, which is not there; rebuild the image")));
        }
    }
    Ok(image)
}

fn simulated(name: &ImageName) -> Image {
    let manifest =
        ImageManifest { name: name.to_string(), kernel: String::new(), allow_static: true, ..plain_manifest() };
    Image { dir: PathBuf::new(), manifest }
}
