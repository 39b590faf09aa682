//! Control groups of jailed VMMs: which kind this host has, what limits a VM gets, and removing the
//! group afterwards (the jailer makes it and removes nothing).
//!
//! They lie below a parent of Stoker's own at the top, not below the worker's: a service manager
//! that ends the worker's group on a restart must not end its VMs.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::io::Errno;

/// What is limited; each is a controller's name.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// The VMM's own memory beside the guest's, MiB: Firecracker promises less than 5, the page cache of
/// its disks is given back under pressure, and a snapshot or a flood of input needs some more.
const OVERHEAD_MIB: u64 = 64;
/// Threads and the like beside one per virtual CPU.
const OTHER_TASKS: u32 = 16;
/// Period of the processor limit, microseconds (the kernel's default).
const PERIOD_MICROS: u64 = 100_000;
/// The kernel lets go of an ended process a moment after its parent has learnt of it.
const RELEASE: Duration = Duration::from_millis(2);
/// How often that is waited for, at most.
const RELEASE_TRIES: u32 = 100;

/// The control groups of this host, as far as they serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cgroups {
    /// One tree for all.
    V2 {
        /// Where it is mounted.
        root: PathBuf,
    },
    /// A tree per controller.
    V1 {
        /// Controllers that are mounted, and where.
        mounts: Vec<(&'static str, PathBuf)>,
    },
    /// None: VMs run unlimited.
    Absent,
}

impl Cgroups {
    /// Looks at what is mounted.
    pub fn detect() -> Self {
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        Self::of(&mounts, |root| std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default())
    }

    /// From a mount table. A tree of version 2 that holds no controllers (a hybrid host) does not serve.
    fn of(mounts: &str, controllers: impl Fn(&Path) -> String) -> Self {
        let entry = |line: &str| -> Option<(String, PathBuf, String)> {
            let mut fields = line.split(' ').skip(1);
            let (at, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
            Some((kind.to_owned(), PathBuf::from(at), options.to_owned()))
        };
        let entries: Vec<_> = mounts.lines().filter_map(entry).collect();
        for (_, root, _) in entries.iter().filter(|(kind, ..)| kind == "cgroup2") {
            let offered = controllers(root);
            let has = |wanted: &str| offered.split_ascii_whitespace().any(|name| name == wanted);
            if CONTROLLERS.iter().all(|c| has(c)) {
                return Self::V2 { root: root.clone() };
            }
        }
        let mounted = |controller: &'static str| {
            let holds = |options: &str| options.split(',').any(|option| option == controller);
            let found = entries.iter().find(|(kind, _, options)| kind == "cgroup" && holds(options));
            found.map(|(_, at, _)| (controller, at.clone()))
        };
        let mounts: Vec<_> = CONTROLLERS.into_iter().filter_map(mounted).collect();
        if mounts.is_empty() { Self::Absent } else { Self::V1 { mounts } }
    }

    /// The jailer's arguments for a VM of this size.
    pub fn arguments(&self, parent: &str, vcpus: u32, memory_mib: u32) -> Vec<String> {
        let memory = (u64::from(memory_mib) + OVERHEAD_MIB) << 20;
        let tasks = vcpus + OTHER_TASKS;
        // One more than the guest's: the VMM's own threads move its packets and blocks.
        let quota = u64::from(vcpus + 1) * PERIOD_MICROS;
        let (version, limits) = match self {
            Self::V2 { .. } => (
                "2",
                vec![
                    format!("cpu.max={quota} {PERIOD_MICROS}"),
                    format!("memory.max={memory}"),
                    // What a guest holds in memory is not to end up on the host's disk.
                    "memory.swap.max=0".to_owned(),
                    format!("pids.max={tasks}"),
                ],
            ),
            Self::V1 { mounts } => {
                let limit = |(controller, _): &(&'static str, PathBuf)| match *controller {
                    "cpu" => format!("cpu.cfs_quota_us={quota}"),
                    "memory" => format!("memory.limit_in_bytes={memory}"),
                    _ => format!("pids.max={tasks}"),
                };
                ("1", mounts.iter().map(limit).collect())
            }
            Self::Absent => return Vec::new(),
        };
        // Each value as an argument of its own: the jailer knows no `--name=value`.
        let mut arguments = ["--cgroup-version", version, "--parent-cgroup", parent].map(str::to_owned).to_vec();
        arguments.extend(limits.into_iter().flat_map(|limit| ["--cgroup".to_owned(), limit]));
        arguments
    }

    /// Where the group of this name lies: one folder, or one per controller.
    pub fn folders(&self, parent: &str, name: &str) -> Vec<PathBuf> {
        let below = |root: &PathBuf| root.join(parent).join(name);
        match self {
            Self::V2 { root } => vec![below(root)],
            Self::V1 { mounts } => mounts.iter().map(|(_, root)| below(root)).collect(),
            Self::Absent => Vec::new(),
        }
    }

    /// Removes the group of an ended process. Idempotent. Blocks for moments: not for an async task.
    pub fn remove(&self, parent: &str, name: &str) -> io::Result<()> {
        self.folders(parent, name).iter().try_for_each(|folder| remove(folder))
    }
}

fn remove(folder: &Path) -> io::Result<()> {
    let mut tries = 0;
    loop {
        match rustix::fs::rmdir(folder) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) if tries < RELEASE_TRIES => {
                tries += 1;
                std::thread::sleep(RELEASE);
            }
            Err(error) => {
                let cause = io::Error::from(error);
                return Err(io::Error::new(cause.kind(), format!("{}: {cause}", folder.display())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "sysfs /sys sysfs rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n";
    const HYBRID: &str = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
        cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
        cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n\
        cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";

    #[test]
    fn a_unified_tree_with_its_controllers_serves() {
        let found = Cgroups::of(UNIFIED, |_| "cpuset cpu io memory hugetlb pids\n".to_owned());
        assert_eq!(found, Cgroups::V2 { root: "/sys/fs/cgroup".into() });
        let arguments = found.arguments("stoker", 2, 128);
        assert_eq!(
            arguments,
            [
                "--cgroup-version",
                "2",
                "--parent-cgroup",
                "stoker",
                "--cgroup",
                "cpu.max=300000 100000",
                "--cgroup",
                "memory.max=201326592",
                "--cgroup",
                "memory.swap.max=0",
                "--cgroup",
                "pids.max=18",
            ]
        );
        assert_eq!(found.folders("stoker", "v"), [Path::new("/sys/fs/cgroup/stoker/v")]);
    }

    #[test]
    fn an_empty_unified_tree_gives_way_to_the_old_ones() {
        let found = Cgroups::of(HYBRID, |_| String::new());
        let Cgroups::V1 { mounts } = &found else { panic!("{found:?}") };
        let cpu = PathBuf::from("/sys/fs/cgroup/cpu,cpuacct");
        assert_eq!(mounts, &[("cpu", cpu), ("memory", "/sys/fs/cgroup/memory".into())]);
        let arguments = found.arguments("stoker", 1, 64);
        let limits = ["--cgroup", "cpu.cfs_quota_us=200000", "--cgroup", "memory.limit_in_bytes=134217728"];
        assert_eq!(arguments[4..], limits);
        assert_eq!(found.folders("stoker", "v").len(), 2);
    }

    #[test]
    fn without_any_nothing_is_asked_of_the_jailer() {
        let found = Cgroups::of("proc /proc proc rw 0 0\n", |_| String::new());
        assert_eq!(found, Cgroups::Absent);
        assert!(found.arguments("stoker", 1, 1).is_empty());
        found.remove("stoker", "v").unwrap();
    }

    #[test]
    fn removing_is_idempotent_and_names_what_stays() {
        let root = tempfile::tempdir().unwrap();
        let found = Cgroups::V2 { root: root.path().to_owned() };
        let group = root.path().join("stoker/v");
        std::fs::create_dir_all(&group).unwrap();
        found.remove("stoker", "v").unwrap();
        found.remove("stoker", "v").unwrap();
        assert!(!group.exists());
        std::fs::create_dir_all(group.join("child")).unwrap();
        let error = found.remove("stoker", "v").unwrap_err();
        assert!(error.to_string().contains("stoker/v"), "{error}");
    }
}
