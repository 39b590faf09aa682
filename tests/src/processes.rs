//! Who works in an attempt's folder: a VMM has it as its working directory, or has its root below it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Process ids, in order. A dead process' folder may be gone; the process is found all the same.
pub fn working_in(dir: &Path) -> Vec<u32> {
    let real = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let jails = jails(&real);
    let works_here = |pid: &u32| {
        let process = Path::new("/proc").join(pid.to_string());
        let cwd = fs::read_link(process.join("cwd"));
        // Looked at by number: from outside, a jailed process' root is called `/`.
        let jailed = || identity(&process.join("root")).is_some_and(|root| jails.contains(&root));
        cwd.is_ok_and(|cwd| cwd.to_string_lossy().trim_end_matches(" (deleted)") == real.to_string_lossy()) || jailed()
    };
    let mut pids: Vec<u32> = all().filter(works_here).collect();
    pids.sort_unstable();
    pids
}

fn all() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// `<dir>/<program>/<vm>/root`
fn jails(dir: &Path) -> Vec<(u64, u64)> {
    let below = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let names = below(dir).flat_map(|program| below(&program).collect::<Vec<_>>());
    names.filter_map(|name| identity(&name.join("root"))).collect()
}

fn identity(folder: &Path) -> Option<(u64, u64)> {
    fs::metadata(folder).ok().map(|meta| (meta.dev(), meta.ino()))
}
