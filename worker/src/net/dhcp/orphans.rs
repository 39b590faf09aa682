//! The dnsmasq of a worker that is gone. It is known by its lease file, which stands among its
//! arguments: surer than a pid file, which may be missing, stale, or name a reused pid.

use std::{ffi::OsString, fs, os::unix::ffi::OsStringExt, path::PathBuf, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::{net::system, ports::net::NetError};

/// How long it may take to end when asked; it has nothing to write.
const GRACE: Duration = Duration::from_secs(2);

/// The argument by which a dnsmasq is ours.
pub(super) fn lease_file_argument(leases: &std::path::Path) -> OsString {
    let mut argument = OsString::from("--dhcp-leasefile=");
    argument.push(leases);
    argument
}

/// Ends every dnsmasq that uses this lease file.
pub(super) async fn end(leases: PathBuf) -> Result<(), NetError> {
    let ended = tokio::task::spawn_blocking(move || {
        let mark = lease_file_argument(&leases).into_vec();
        fs::read_dir("/proc")?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .try_for_each(|pid| end_if_marked(pid, &mark))
    });
    let ended = ended.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
    ended.map_err(|e| system("end the DHCP server of an earlier worker", &e))
}

fn end_if_marked(pid: i32, mark: &[u8]) -> std::io::Result<()> {
    let Some(process) = Pid::from_raw(pid) else { return Ok(()) };
    if !has_argument(pid, mark) {
        return Ok(());
    }
    // The descriptor holds the process, not its number: looked at again, nothing can come between.
    let Ok(handle) = pidfd_open(process, PidfdFlags::empty()) else { return Ok(()) };
    if !has_argument(pid, mark) {
        return Ok(());
    }
    tracing::info!(pid, "replacing the DHCP server of an earlier worker");
    for signal in [Signal::TERM, Signal::KILL] {
        pidfd_send_signal(&handle, signal)?;
        let patience = Timespec { tv_sec: GRACE.as_secs().cast_signed(), tv_nsec: 0 };
        if poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&patience))? > 0 {
            return Ok(());
        }
    }
    Err(std::io::Error::other(format!("process {pid} does not end")))
}

fn has_argument(pid: i32, mark: &[u8]) -> bool {
    fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| line.starts_with(b"dnsmasq\0") && line.split(|b| *b == 0).any(|argument| argument == mark))
}
