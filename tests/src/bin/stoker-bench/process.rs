//! What this process has used.

use std::time::Duration;

use crate::Fallible;

/// Ticks of a second in `/proc`, the same on all of Linux.
const TICKS: u64 = 100;

/// Processor time of all threads so far, to 10 ms.
pub fn cpu() -> Fallible<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name before may hold anything but this.
    let (_, fields) = stat.rsplit_once(") ").ok_or("/proc/self/stat has another form")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks = |n: usize| fields.get(n).and_then(|field| field.parse::<u64>().ok()).ok_or("/proc/self/stat is short");
    Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 1_000 / TICKS))
}

/// Memory that it has, KiB.
pub fn rss_kib() -> Fallible<u64> {
    status("VmRSS:")
}

/// Threads.
pub fn threads() -> Fallible<u64> {
    status("Threads:")
}

fn status(name: &str) -> Fallible<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let value = line.ok_or_else(|| format!("/proc/self/status has no {name}"))?;
    Ok(value.trim().trim_end_matches("kB").trim().parse()?)
}

/// Open files, sockets and the like.
pub fn open_files() -> Fallible<u64> {
    // One of them is the folder that is read here.
    Ok(std::fs::read_dir("/proc/self/fd")?.count().saturating_sub(1) as u64)
}
