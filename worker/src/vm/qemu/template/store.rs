//! The folder of templates: found by key, checked before use, bounded.

use std::{
    fmt, fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use super::super::command::HostFacts;
use crate::{ports::vm::VmPlan, vm::files::FileFacts};

/// The guest's memory.
pub const MEMORY: &str = "memory";
/// Everything else of it: CPU, devices.
pub const STATE: &str = "state";
/// What is known of the two; without it the folder is not a template.
pub const NOTE: &str = "template.json";
/// The state of a few virtual devices has some 60 KB.
pub const MAX_STATE_BYTES: u64 = 16 << 20;
/// Templates kept; the oldest goes first. Each takes what its guest had written to, at most its memory.
const MAX_TEMPLATES: usize = 8;
/// Changes when what is saved, or how it is continued, changes.
const FORMAT: u32 = 1;
/// Bytes of a key, of 32 that the hash has.
const KEY_BYTES: usize = 16;

/// Names everything a template depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key(String);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key's ingredients.
#[derive(Serialize)]
struct Inputs<'a> {
    format: u32,
    version: &'a str,
    hypervisor: &'a str,
    host: String,
    host_boot: &'a str,
    vcpus: u32,
    memory_mib: u32,
    args: &'a str,
    files: Vec<FileFacts>,
}

/// What is written down about a template.
#[derive(Debug, Serialize, Deserialize)]
pub struct Note {
    host_boot: String,
    memory_bytes: u64,
    state_blake3: String,
}

/// A template, opened for one copy: it may be removed meanwhile.
#[derive(Debug)]
pub struct Template {
    /// File of its memory.
    pub memory: PathBuf,
    /// Its other state, to be read from the start.
    pub state: fs::File,
}

/// The folder.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    hypervisor: String,
    host_boot: String,
}

impl Store {
    /// Opens it and removes what an earlier boot of the host left.
    pub fn open(root: PathBuf, hypervisor: String) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
        let host_boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let store = Self { root, hypervisor, host_boot };
        for dir in store.folders()? {
            if read_note(&dir).is_none_or(|note| note.host_boot != store.host_boot) {
                remove(&dir);
            }
        }
        Ok(store)
    }

    /// The key for this plan on a host with these facts, with the template's kernel arguments.
    pub fn key(&self, host: HostFacts, plan: &VmPlan, args: &str) -> io::Result<Key> {
        let files = [Some(&plan.kernel), plan.initrd.as_ref()].into_iter().flatten();
        let inputs = Inputs {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION"),
            hypervisor: &self.hypervisor,
            host: format!("{host:?}"),
            host_boot: &self.host_boot,
            vcpus: plan.vcpus,
            memory_mib: plan.memory_mib,
            args,
            files: files.map(|file| FileFacts::of(file)).collect::<Result<_, _>>()?,
        };
        let hash = blake3::hash(&serde_json::to_vec(&inputs)?).to_hex();
        Ok(Key(hash.chars().take(2 * KEY_BYTES).collect()))
    }

    /// Whether there is one of that key, be it damaged.
    pub fn has(&self, key: &Key) -> bool {
        self.dir(key).exists()
    }

    /// The template of that key; a damaged one is removed.
    pub fn find(&self, key: &Key) -> Option<Template> {
        let dir = self.dir(key);
        if !dir.exists() {
            return None;
        }
        match open(&dir) {
            Ok(template) => Some(template),
            Err(why) => {
                tracing::warn!(%key, %why, "template removed");
                remove(&dir);
                None
            }
        }
    }

    /// Removes it. VMs that run on its memory keep the file until they end.
    pub fn remove(&self, key: &Key) {
        remove(&self.dir(key));
    }

    /// Takes a finished draft in, and the oldest out when there are too many.
    pub fn publish(&self, draft: &Path, key: &Key, state_blake3: String) -> io::Result<()> {
        let memory_bytes = fs::metadata(draft.join(MEMORY))?.len();
        let note = Note { host_boot: self.host_boot.clone(), memory_bytes, state_blake3 };
        fs::write(draft.join(NOTE), serde_json::to_vec(&note)?)?;
        let mut others = self.folders()?;
        others.sort_by_key(|dir| age(dir));
        for old in others.iter().rev().skip(MAX_TEMPLATES - 1) {
            remove(old);
        }
        fs::rename(draft, self.dir(key))
    }

    fn dir(&self, key: &Key) -> PathBuf {
        self.root.join(&key.0)
    }

    fn folders(&self) -> io::Result<Vec<PathBuf>> {
        Ok(fs::read_dir(&self.root)?.flatten().map(|entry| entry.path()).collect())
    }
}

fn age(dir: &Path) -> Option<SystemTime> {
    fs::metadata(dir.join(NOTE)).and_then(|meta| meta.modified()).ok()
}

fn remove(dir: &Path) {
    if let Err(error) = fs::remove_dir_all(dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), %error, "a template could not be removed");
    }
}

fn read_note(dir: &Path) -> Option<Note> {
    serde_json::from_slice(&fs::read(dir.join(NOTE)).ok()?).ok()
}

/// Opens it if it is as it was made. Its memory is not read, which would cost what it saves: a copy
/// that does not become ready is the check of that.
fn open(dir: &Path) -> Result<Template, String> {
    let note = read_note(dir).ok_or("its note is missing or not valid")?;
    let memory = dir.join(MEMORY);
    let bytes = fs::metadata(&memory).map_err(|e| format!("its memory: {e}"))?.len();
    if bytes != note.memory_bytes {
        return Err(format!("its memory has {bytes} bytes, not {}", note.memory_bytes));
    }
    let failed = |e: io::Error| format!("its state: {e}");
    let path = dir.join(STATE);
    if fs::metadata(&path).map_err(failed)?.len() > MAX_STATE_BYTES {
        return Err(format!("its state has more than {MAX_STATE_BYTES} bytes"));
    }
    if blake3::hash(&fs::read(&path).map_err(failed)?).to_hex().as_str() != note.state_blake3 {
        return Err("its state is not what was saved".to_owned());
    }
    Ok(Template { memory, state: fs::File::open(&path).map_err(failed)? })
}

#[cfg(test)]
mod tests {
    use stoker_schemas::{VmId, id::Mac};

    use super::*;
    use crate::{ports::net::Nic, vm::qemu::Accel};

    const HOST: HostFacts = HostFacts { accel: Accel::Tcg, tsc_khz: None, sandbox: true };

    fn plan(root: &Path) -> VmPlan {
        fs::write(root.join("kernel"), "k").unwrap();
        VmPlan {
            vm: VmId(uuid::Uuid::from_u128(7)),
            vcpus: 1,
            memory_mib: 64,
            kernel: root.join("kernel"),
            initrd: None,
            kernel_args: String::new(),
            template_args: Some("quiet".to_owned()),
            disk: None,
            nic: Nic::User { mac: Mac([2, 0, 0, 0, 0, 1]), host_port: 1, guest_port: 2 },
            dir: root.to_owned(),
            owner: None,
        }
    }

    fn store(root: &Path) -> Store {
        Store::open(root.join("templates"), "QEMU 1".to_owned()).unwrap()
    }

    fn keep(store: &Store, root: &Path, key: &Key) {
        let draft = root.join("draft");
        fs::create_dir(&draft).unwrap();
        fs::write(draft.join(MEMORY), [0; 100]).unwrap();
        fs::write(draft.join(STATE), "state").unwrap();
        store.publish(&draft, key, blake3::hash(b"state").to_hex().to_string()).unwrap();
    }

    #[test]
    fn the_key_knows_what_shaped_the_memory_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let (store, plan) = (store(root.path()), plan(root.path()));
        let key = |plan: &VmPlan, args: &str| store.key(HOST, plan, args).unwrap();
        let first = key(&plan, "quiet");
        let another_vm = VmPlan { vm: VmId(uuid::Uuid::from_u128(8)), ..plan.clone() };
        assert_eq!(first, key(&another_vm, "quiet"));
        assert_ne!(first, key(&plan, "loud"));
        let kvm = HostFacts { accel: Accel::Kvm, ..HOST };
        assert_ne!(first, store.key(kvm, &plan, "quiet").unwrap(), "saved by another accelerator");
        assert_ne!(first, key(&VmPlan { memory_mib: 65, ..plan.clone() }, "quiet"));
        assert_ne!(first, key(&VmPlan { initrd: Some(plan.kernel.clone()), ..plan.clone() }, "quiet"));
        fs::write(&plan.kernel, "another").unwrap();
        assert_ne!(first, key(&plan, "quiet"), "the kernel changed in its place");
    }

    #[test]
    fn what_is_damaged_is_removed_and_not_used() {
        let damages: [(&str, &[u8]); 4] =
            [(MEMORY, &[0; 99]), (STATE, b"stale"), (NOTE, b"{}"), (STATE, &[0; MAX_STATE_BYTES as usize + 1])];
        for (file, damage) in damages {
            let root = tempfile::tempdir().unwrap();
            let store = store(root.path());
            let key = store.key(HOST, &plan(root.path()), "quiet").unwrap();
            assert!(store.find(&key).is_none());
            keep(&store, root.path(), &key);
            assert!(store.find(&key).is_some());
            fs::write(store.dir(&key).join(file), damage).unwrap();
            assert!(store.find(&key).is_none(), "{file}");
            assert!(!store.has(&key), "{file}");
        }
    }

    #[test]
    fn the_oldest_go_and_those_of_an_earlier_boot() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        let plan = plan(root.path());
        let keys: Vec<Key> = (0..=MAX_TEMPLATES).map(|n| store.key(HOST, &plan, &n.to_string()).unwrap()).collect();
        for (n, key) in (0_u64..).zip(&keys) {
            keep(&store, root.path(), key);
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(n);
            fs::File::open(store.dir(key).join(NOTE)).unwrap().set_modified(at).unwrap();
        }
        let kept: Vec<bool> = keys.iter().map(|key| store.has(key)).collect();
        assert_eq!(kept.iter().filter(|kept| **kept).count(), MAX_TEMPLATES);
        assert!(!kept[0]);
        let note = store.dir(&keys[3]).join(NOTE);
        fs::write(&note, fs::read_to_string(&note).unwrap().replace(&store.host_boot, "earlier")).unwrap();
        let again = self::store(root.path());
        assert!(!again.has(&keys[3]) && again.has(&keys[4]));
    }
}
