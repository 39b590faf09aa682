//! Makes an image of its parts: kernel, initial RAM disk, root file system, and what is to be said of them.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use stoker_schemas::ImageName;
use stoker_schemas::image::{IMAGE_SCHEMA, ImageManifest};

use super::import::{Draft, failed};
use super::{Image, Import, ImportError, MANIFEST};

const KERNEL: &str = "vmlinux";
const INITRD: &str = "initrd.cpio";
const ROOTFS: &str = "rootfs.ext4";
const MIB: u64 = 1 << 20;
/// Room in a file system beyond what is put into it, when no size is given: a quarter, and this much.
const SPARE_MIB: u64 = 64;
/// Of mke2fs' complaints, bytes.
const MAX_WORDS_BYTES: usize = 400;

/// What to make, and of what.
#[derive(Debug, Clone)]
pub struct Build {
    /// What it is to be called.
    pub name: ImageName,
    /// The store.
    pub store: PathBuf,
    /// Uncompressed ELF kernel.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// A file system in a file, or a folder that one is made of (ext4; as root, so that owners stay).
    pub rootfs: Option<PathBuf>,
    /// Size of a file system made of a folder, MiB; `None` for what it needs and some room.
    pub rootfs_mib: Option<u64>,
    /// Everything else that is said of it; files, name and digests are filled in.
    pub manifest: ImageManifest,
    /// Whether one of that name may go.
    pub replace: bool,
}

/// The manifest of an image of which nothing is said.
pub fn plain_manifest() -> ImageManifest {
    ImageManifest {
        schema: IMAGE_SCHEMA.to_owned(),
        name: String::new(),
        kernel: KERNEL.to_owned(),
        initrd: None,
        rootfs: None,
        kernel_args: String::new(),
        network: Default::default(),
        allow_static: false,
        agent_port: 8080,
        shutdown: None,
        units: Vec::new(),
        min_memory_mib: 0,
        drivers: Vec::new(),
        reach: Default::default(),
        prewarmed: false,
        digests: Default::default(),
    }
}

impl Build {
    /// Gathers the parts and takes them in.
    ///
    /// # Errors
    /// As for an import; or a file system cannot be made of the folder. Nothing is left then.
    pub fn run(self) -> Result<Image, ImportError> {
        fs::create_dir_all(&self.store).map_err(failed("making", &self.store))?;
        let draft = Draft::create(&self.store)?;
        let dir = draft.path();
        let mut manifest = self.manifest;
        self.name.as_str().clone_into(&mut manifest.name);
        KERNEL.clone_into(&mut manifest.kernel);
        stand_for(&self.kernel, &dir.join(KERNEL))?;
        manifest.initrd = match &self.initrd {
            Some(initrd) => stand_for(initrd, &dir.join(INITRD)).map(|()| Some(INITRD.to_owned()))?,
            None => None,
        };
        manifest.rootfs = match &self.rootfs {
            Some(rootfs) => {
                let to = dir.join(ROOTFS);
                if rootfs.is_dir() { file_system(rootfs, &to, self.rootfs_mib) } else { stand_for(rootfs, &to) }?;
                Some(ROOTFS.to_owned())
            }
            None => None,
        };
        let path = dir.join(MANIFEST);
        let text = serde_json::to_vec_pretty(&manifest).map_err(io::Error::other);
        text.and_then(|text| fs::write(&path, text)).map_err(failed("writing", &path))?;
        Import { from: dir.to_owned(), store: self.store, name: Some(self.name), replace: self.replace }.run()
    }
}

/// The import copies what the link leads to.
fn stand_for(file: &Path, link: &Path) -> Result<(), ImportError> {
    let file = file.canonicalize().map_err(failed("reading", file))?;
    symlink(&file, link).map_err(failed("linking to", &file))
}

fn file_system(folder: &Path, to: &Path, mib: Option<u64>) -> Result<(), ImportError> {
    let mib = match mib {
        Some(mib) => mib,
        None => {
            size_of(folder).map(|bytes| bytes.div_ceil(MIB) * 5 / 4 + SPARE_MIB).map_err(failed("reading", folder))?
        }
    };
    let mut command = Command::new(crate::vm::program::find("mke2fs".as_ref()));
    command.args(["-q", "-t", "ext4", "-m", "0", "-L", "root", "-d"]).arg(folder).arg(to).arg(format!("{mib}M"));
    let output = command.output().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => failed("running", Path::new("mke2fs"))(io::Error::other("install e2fsprogs")),
        _ => failed("running", Path::new("mke2fs"))(e),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words = stoker_schemas::limits::clip(words.trim(), MAX_WORDS_BYTES);
    let why = format!("{words}; a larger --rootfs-mib may help ({mib} MiB were tried)");
    Err(failed("making a file system of", folder)(io::Error::other(why)))
}

/// What is in a folder, bytes; links are not followed.
fn size_of(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += if meta.is_dir() { size_of(&entry.path())? } else { meta.len().next_multiple_of(4_096) };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(root: &Path) -> Build {
        fs::write(root.join("kernel"), "kernel").unwrap();
        Build {
            name: "mine@1".parse().unwrap(),
            store: root.join("images"),
            kernel: root.join("kernel"),
            initrd: None,
            rootfs: None,
            rootfs_mib: None,
            manifest: ImageManifest { units: vec!["Agent".to_owned()], ..plain_manifest() },
            replace: false,
        }
    }

    fn names(store: &Path) -> Vec<String> {
        let entries = fs::read_dir(store).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn an_image_is_made_of_its_parts() {
        let root = tempfile::tempdir().unwrap();
        let tree = root.path().join("tree/etc");
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join("hostname"), "guest\n").unwrap();
        let image = Build { rootfs: Some(root.path().join("tree")), ..build(root.path()) }.run().unwrap();
        assert_eq!((image.manifest.name.as_str(), image.manifest.units.len()), ("mine@1", 1));
        assert!(!image.kernel().is_symlink(), "its own, not a link to what may change");
        assert_eq!(image.manifest.digests.len(), 2);
        let superblock = fs::read(image.rootfs().unwrap()).unwrap();
        assert_eq!(superblock[1_024 + 0x38..1_024 + 0x3a], [0x53, 0xef], "ext4");
        assert_eq!(names(&root.path().join("images")), ["mine@1"]);
    }

    #[test]
    fn what_is_missing_is_named_and_nothing_is_left() {
        let root = tempfile::tempdir().unwrap();
        let parts = build(root.path());
        let missing = Some(root.path().join("nowhere"));
        for (what, build) in [
            ("initrd", Build { initrd: missing.clone(), ..parts.clone() }),
            ("rootfs", Build { rootfs: missing, ..parts.clone() }),
        ] {
            let error = build.run().unwrap_err().to_string();
            assert!(error.contains("nowhere"), "{what}: {error}");
            assert_eq!(names(&root.path().join("images")), Vec::<String>::new(), "{what}");
        }
        let tree = root.path().join("tree");
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join("large"), vec![7; 4 << 20]).unwrap();
        let error = Build { rootfs: Some(tree), rootfs_mib: Some(1), ..parts }.run().unwrap_err().to_string();
        assert!(error.contains("--rootfs-mib"), "{error}");
        assert_eq!(names(&root.path().join("images")), Vec::<String>::new());
    }
}
