//! `stoker image`: the images in a folder of this host. No server is asked.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde::Serialize;
use stoker_schemas::ImageName;
use stoker_schemas::image::{Driver, ImageManifest};
use stoker_worker::images::{
    Build, Image, ImageError, ImageStore, Import, ImportError, Unneeded, digest_of, plain_manifest, unneeded,
};

use crate::cli::CliError;
use crate::cli::printer::Printer;

const MIB: u64 = 1024 * 1024;
const NOT_HERE: &str = "name the folder with --images or STOKER_IMAGES; scripts/dev image builds the ones Stoker ships";

/// Flags of `image`.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// Folder with images
    #[arg(long, env = "STOKER_IMAGES", value_name = "DIR", default_value = "/var/lib/stoker/images", global = true)]
    images: PathBuf,
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// List images
    #[command(visible_alias = "ls")]
    List,
    /// Take a folder with an image.json and its files in as an image, with a digest of each file
    Import {
        /// The folder
        folder: PathBuf,
        /// What to call the image; without it, as its manifest says
        #[arg(long, value_name = "NAME")]
        name: Option<ImageName>,
        /// Take it in although there is an image of that name
        #[arg(long)]
        replace: bool,
    },
    /// Make an image of a kernel, an initial RAM disk and a root file system
    Build(BuildArgs),
    /// List old versions (name@version) and what interrupted imports left; remove them with --delete
    Gc {
        /// Versions of each image that stay, the latest ones
        #[arg(long, value_name = "N", default_value_t = 2)]
        keep: usize,
        /// Remove them; VMs that run on one keep its files until they end
        #[arg(long)]
        delete: bool,
    },
    /// Read every file of images and compare it with its digest in image.json
    Verify {
        /// Images; all of them when none is named
        #[arg(value_name = "IMAGE")]
        names: Vec<ImageName>,
    },
}

/// Flags of `image build`.
#[derive(Debug, Args)]
struct BuildArgs {
    /// What to call it, such as golden@8
    name: ImageName,
    /// Uncompressed ELF kernel
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// A file system in a file, or a folder to make one of (ext4; as root, so that owners stay)
    #[arg(long, value_name = "FILE|DIR")]
    rootfs: Option<PathBuf>,
    /// Size of a file system made of a folder; without it, what it needs and some room
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=4_194_304))]
    rootfs_mib: Option<u64>,
    /// Kernel arguments that every boot gets
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    kernel_args: String,
    /// A systemd unit that a healthy boot shows; may be given several times
    #[arg(long = "unit", value_name = "NAME")]
    units: Vec<String>,
    /// Below this memory it does not boot
    #[arg(long, value_name = "MIB", default_value_t = 0)]
    min_memory_mib: u32,
    /// The agent's port
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    agent_port: u16,
    /// Path where the agent takes a POST to end its guest
    #[arg(long, value_name = "PATH")]
    shutdown: Option<String>,
    /// A hypervisor it boots in; may be given several times; without it, any
    #[arg(long = "driver", value_name = "NAME", value_parser = driver)]
    drivers: Vec<Driver>,
    /// Its guest can wait, booted, to be told who it is
    #[arg(long)]
    prewarmed: bool,
    /// Make it although there is an image of that name
    #[arg(long)]
    replace: bool,
}

fn driver(text: &str) -> Result<Driver, String> {
    let known = [Driver::Firecracker, Driver::Qemu];
    known.into_iter().find(|driver| driver.as_str() == text).ok_or_else(|| "firecracker or qemu".to_owned())
}

#[derive(Debug, Serialize)]
struct Listed<'a> {
    mib: u64,
    #[serde(flatten)]
    manifest: &'a ImageManifest,
}

/// One file, judged.
#[derive(Debug, Serialize)]
struct Verdict {
    image: String,
    file: String,
    ok: bool,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<String>,
}

pub fn run(args: ImageArgs, printer: &mut Printer) -> Result<(), CliError> {
    let store = ImageStore::folder(&args.images);
    let all = || {
        let folder = args.images.display();
        store.names().map_err(|e| CliError::system(format!("images in {folder} cannot be listed"), e, NOT_HERE))
    };
    match args.command {
        ImageCommand::List => list(&store, &all()?, printer),
        ImageCommand::Import { folder, name, replace } => {
            import(Import { from: folder, store: args.images, name, replace }, printer)
        }
        ImageCommand::Build(args_of) => build(args_of, args.images, printer),
        ImageCommand::Gc { keep, delete } => gc(&args.images, keep, delete, printer),
        ImageCommand::Verify { names } if names.is_empty() => verify(&store, &all()?, printer),
        ImageCommand::Verify { names } => verify(&store, &names, printer),
    }
}

fn build(args: BuildArgs, store: PathBuf, printer: &mut Printer) -> Result<(), CliError> {
    let BuildArgs { name, kernel, initrd, rootfs, rootfs_mib, replace, .. } = args;
    let manifest = ImageManifest {
        kernel_args: args.kernel_args,
        units: args.units,
        min_memory_mib: args.min_memory_mib,
        agent_port: args.agent_port,
        shutdown: args.shutdown,
        drivers: args.drivers,
        prewarmed: args.prewarmed,
        ..plain_manifest()
    };
    taken_in(Build { name, store, kernel, initrd, rootfs, rootfs_mib, manifest, replace }.run(), "built", printer)
}

fn gc(store: &Path, keep: usize, delete: bool, printer: &mut Printer) -> Result<(), CliError> {
    let failed = |what: String| move |error| CliError::system(what, error, NOT_HERE);
    let found = unneeded(store, keep, std::time::SystemTime::now())
        .map_err(failed(format!("images in {} cannot be listed", store.display())))?;
    if delete {
        for unneeded in &found {
            unneeded.remove().map_err(failed(format!("{} cannot be removed", unneeded.name)))?;
        }
    }
    if printer.json() {
        return printer.value(&found);
    }
    if found.is_empty() {
        return printer.note("nothing to remove: versions are in names, such as golden@7");
    }
    let row = |u: &Unneeded| vec![u.name.clone(), format!("{} MiB", u.bytes.div_ceil(MIB)), u.why.clone()];
    printer.table(&[if delete { "REMOVED" } else { "MAY GO" }, "SIZE", "WHY"], found.iter().map(row).collect())?;
    if delete { Ok(()) } else { printer.note("nothing was removed; --delete does") }
}

fn import(import: Import, printer: &mut Printer) -> Result<(), CliError> {
    taken_in(import.run(), "imported", printer)
}

fn taken_in(done: Result<Image, ImportError>, how: &str, printer: &mut Printer) -> Result<(), CliError> {
    let image = done.map_err(|error| {
        let hint = "nothing was changed; schemas/json/image.json describes it";
        CliError::usage(format!("image not {how}: {error}"), hint)
    })?;
    if printer.json() {
        return printer.value(&Listed { mib: mib(&image), manifest: &image.manifest });
    }
    printer.line(&format!("{}  {how} to {}", image.manifest.name, image.dir.display()))
}

fn list(store: &ImageStore, names: &[ImageName], printer: &mut Printer) -> Result<(), CliError> {
    let loaded: Vec<_> = names.iter().map(|name| (name, store.load(name))).collect();
    if printer.json() {
        let images = loaded.iter().filter_map(|(_, image)| image.as_ref().ok());
        let images: Vec<_> = images.map(|image| Listed { mib: mib(image), manifest: &image.manifest }).collect();
        printer.value(&images)?;
    } else if loaded.is_empty() {
        printer.note(&format!("no images; {NOT_HERE}"))?;
    } else {
        let row = |(name, image): &(&ImageName, Result<Arc<Image>, ImageError>)| match image {
            Ok(image) => row(image),
            Err(_) => vec![name.to_string(), "cannot be used, see below".to_owned()],
        };
        let header = ["IMAGE", "DRIVERS", "NETWORK", "PORT", "MIN MEMORY", "SIZE", "PREWARMED", "UNITS"];
        printer.table(&header, loaded.iter().map(row).collect())?;
    }
    match loaded.into_iter().find_map(|(_, image)| image.err()) {
        None => Ok(()),
        Some(error) => Err(CliError::system("not every image can be used", error, "correct or rebuild it")),
    }
}

fn row(image: &Image) -> Vec<String> {
    let manifest = &image.manifest;
    let drivers: Vec<_> = manifest.drivers.iter().copied().map(Driver::as_str).collect();
    vec![
        manifest.name.clone(),
        if drivers.is_empty() { "any".to_owned() } else { drivers.join(",") },
        format!("{:?}", manifest.network).to_ascii_lowercase(),
        manifest.agent_port.to_string(),
        format!("{} MiB", manifest.min_memory_mib),
        format!("{} MiB", mib(image)),
        if manifest.prewarmed { "yes" } else { "no" }.to_owned(),
        manifest.units.len().to_string(),
    ]
}

/// MiB of its files, begun ones counted.
fn mib(image: &Image) -> u64 {
    let length = |file: &&str| std::fs::metadata(image.dir.join(file)).map_or(0, |meta| meta.len());
    image.files().iter().map(length).sum::<u64>().div_ceil(MIB)
}

fn verify(store: &ImageStore, names: &[ImageName], printer: &mut Printer) -> Result<(), CliError> {
    let mut verdicts = Vec::new();
    for name in names {
        match store.load(name) {
            Ok(image) => verdicts.extend(image.files().iter().map(|file| judge(&image, file))),
            Err(error) => {
                let (image, file) = (name.to_string(), "image.json".to_owned());
                verdicts.push(Verdict { image, file, ok: false, found: error.to_string(), expected: None });
            }
        }
    }
    if printer.json() {
        printer.value(&verdicts)?;
    } else if verdicts.is_empty() {
        printer.note(&format!("no images; {NOT_HERE}"))?;
    } else {
        let word = |ok| if ok { "ok" } else { "WRONG" };
        let row = |v: &Verdict| vec![word(v.ok).to_owned(), v.image.clone(), v.file.clone(), v.found.clone()];
        printer.table(&["STATUS", "IMAGE", "FILE", "FOUND"], verdicts.iter().map(row).collect())?;
    }
    match verdicts.iter().find(|verdict| !verdict.ok) {
        None => Ok(()),
        Some(Verdict { image, file, found, expected, .. }) => {
            let (what, cause) = match expected {
                Some(expected) => ("is damaged", format!("{file}: {found}, not {expected}")),
                None => ("cannot be used", found.clone()),
            };
            Err(CliError::system(format!("image {image} {what}"), cause, "rebuild or import it"))
        }
    }
}

fn judge(image: &Image, file: &str) -> Verdict {
    let expected = image.manifest.digests.get(file).map(|digest| digest.to_ascii_lowercase());
    let (ok, found) = match (digest_of(&image.dir.join(file)), &expected) {
        (Err(error), _) => (false, error.to_string()),
        // Nothing was promised of it.
        (Ok(digest), None) => (true, format!("{digest}, no digest in image.json")),
        (Ok(digest), Some(expected)) => (digest == *expected, digest),
    };
    Verdict { image: image.manifest.name.clone(), file: file.to_owned(), ok, found, expected }
}
