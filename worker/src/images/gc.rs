//! Images that are not needed any more: old versions (`golden@6`, when there are `@7` and `@8`), and what
//! interrupted imports left. VMs that run on an image keep its files until they end.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::Serialize;

use super::{MANIFEST, import::DRAFT};

/// An import that has been at it for so long is none any more.
const ABANDONED: Duration = Duration::from_hours(24);

/// What may go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unneeded {
    /// The image, or the left-over's folder.
    pub name: String,
    /// Why it is not needed.
    pub why: String,
    /// Bytes of its files.
    pub bytes: u64,
    #[serde(skip)]
    path: PathBuf,
}

/// What may go from a store, of which so many versions of each image are kept, the latest by the time
/// they were taken in. Images without a version are never among it.
///
/// # Errors
/// The store cannot be read.
pub fn unneeded(store: &Path, keep: usize, now: SystemTime) -> io::Result<Vec<Unneeded>> {
    let mut versions: BTreeMap<String, Vec<(SystemTime, PathBuf, String)>> = BTreeMap::new();
    let mut found = Vec::new();
    for entry in fs::read_dir(store)? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if name.starts_with(DRAFT) {
            let age = entry.metadata()?.modified().ok().and_then(|at| now.duration_since(at).ok());
            if age.is_some_and(|age| age >= ABANDONED) {
                found.push(Unneeded {
                    why: "left by an import that was cut off".to_owned(),
                    bytes: bytes(&path),
                    name,
                    path,
                });
            }
        } else if let Some((image, _)) = name.split_once('@')
            && let Ok(taken_in) = fs::metadata(path.join(MANIFEST)).and_then(|meta| meta.modified())
        {
            versions.entry(image.to_owned()).or_default().push((taken_in, path, name));
        }
    }
    for (image, mut all) in versions {
        all.sort();
        let newer = all.len().saturating_sub(keep);
        for (_, path, name) in all.into_iter().take(newer) {
            let why = format!("an older version of {image}");
            found.push(Unneeded { name, why, bytes: bytes(&path), path });
        }
    }
    Ok(found)
}

impl Unneeded {
    /// Removes it: from one moment to the next nobody can boot it any more, then its files go.
    ///
    /// # Errors
    /// It cannot be moved or removed.
    pub fn remove(&self) -> io::Result<()> {
        let store = self.path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let gone = store.join(format!("{DRAFT}gone-{}", uuid::Uuid::now_v7()));
        fs::rename(&self.path, &gone)?;
        fs::remove_dir_all(gone)
    }
}

fn bytes(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(store: &Path, name: &str, age: u64) {
        let folder = store.join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(MANIFEST), "{}").unwrap();
        let at = SystemTime::now() - Duration::from_secs(age);
        fs::File::options().write(true).open(folder.join(MANIFEST)).unwrap().set_modified(at).unwrap();
        fs::File::open(&folder).unwrap().set_modified(at).unwrap();
    }

    #[test]
    fn the_latest_versions_stay_and_left_overs_go() {
        let store = tempfile::tempdir().unwrap();
        let (day, names) = (86_400, |found: &[Unneeded]| found.iter().map(|u| u.name.clone()).collect::<Vec<_>>());
        for (name, age) in [("a@9", 40), ("a@10", 30), ("a@11", 20), ("b@1", 99), ("c", 999)] {
            image(store.path(), name, age * day);
        }
        image(store.path(), &format!("{DRAFT}old"), 2 * day);
        image(store.path(), &format!("{DRAFT}new"), 60);
        let found = unneeded(store.path(), 2, SystemTime::now()).unwrap();
        assert_eq!(names(&found), [&format!("{DRAFT}old"), "a@9"]);
        for unneeded in &found {
            unneeded.remove().unwrap();
        }
        assert_eq!(names(&unneeded(store.path(), 2, SystemTime::now()).unwrap()), Vec::<String>::new());
        assert_eq!(names(&unneeded(store.path(), 0, SystemTime::now()).unwrap()), ["a@10", "a@11", "b@1"]);
        assert!(store.path().join("c").exists());
    }
}
