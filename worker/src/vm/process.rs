//! A VMM as an operating system process: started so that it outlives the worker, known by pid and
//! start time, waited for and killed through a pidfd, which never means another process.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, Stdio},
    sync::Arc,
};

use async_trait::async_trait;
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
};

/// Where processes are started: here, or inside a network namespace.
#[async_trait]
pub trait Spawner: Send + Sync + 'static {
    /// Starts the command. Must not add a parent-death signal: VMMs outlive the worker.
    async fn spawn(&self, command: Command) -> io::Result<Child>;
}

/// Starts processes in the worker's own namespaces.
#[derive(Debug, Clone, Copy, Default)]
pub struct Here;

#[async_trait]
impl Spawner for Here {
    async fn spawn(&self, mut command: Command) -> io::Result<Child> {
        // fork and exec block for up to milliseconds when the host is busy.
        tokio::task::spawn_blocking(move || command.spawn()).await.map_err(io::Error::other)?
    }
}

/// Which process, for good: a reused pid has another start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Process id.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`.
    pub start_ticks: u64,
}

/// A process as `/proc/<pid>/stat` shows it.
struct Stat {
    state: u8,
    start_ticks: u64,
}

fn read_stat(pid: u32) -> io::Result<Stat> {
    let text = std::fs::read(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/<pid>/stat is not as expected"))
}

fn parse_stat(text: &[u8]) -> Option<Stat> {
    // The command's name stands in parentheses and may hold anything, also ") ": search backwards.
    let after_name = text.iter().rposition(|&b| b == b')')?;
    let rest = std::str::from_utf8(text.get(after_name + 2..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    // The state is field 3, so field 22 is the 19th after it.
    let start_ticks = fields.nth(18)?.parse().ok()?;
    Some(Stat { state, start_ticks })
}

/// How a process ended, as far as the system tells: only a parent learns code and signal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ended {
    /// Exit code.
    pub code: Option<i32>,
    /// Signal.
    pub signal: Option<i32>,
}

/// A running or ended VMM. Dropping it leaves the process alone.
#[derive(Debug, Clone)]
pub struct VmmProcess {
    identity: Identity,
    pidfd: Arc<AsyncFd<OwnedFd>>,
    ended: watch::Receiver<Option<Ended>>,
}

impl VmmProcess {
    fn watch(identity: Identity, pidfd: OwnedFd) -> io::Result<Self> {
        #[expect(
            deprecated,
            reason = "its successor is unsafe, for types whose descriptor may change; an OwnedFd's cannot"
        )]
        let pidfd = Arc::new(AsyncFd::with_interest(pidfd, Interest::READABLE)?);
        let (tell, ended) = watch::channel(None);
        // A task, not a future of the handle: a child must be reaped even when nobody waits.
        tokio::spawn({
            let pidfd = Arc::clone(&pidfd);
            async move {
                if pidfd.readable().await.is_ok() {
                    tell.send_replace(Some(reap(pidfd.get_ref())));
                }
            }
        });
        Ok(Self { identity, pidfd, ended })
    }

    /// Finds a process again. `None` when it has ended or the pid is another process's by now.
    pub fn adopt(identity: Identity) -> io::Result<Option<Self>> {
        let Some(pid) = i32::try_from(identity.pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        // The pidfd first: what is read afterwards is either about the same process, or about a
        // later one, which then has another start time.
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            // INVAL: the pid is a thread's by now.
            Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match read_stat(identity.pid) {
            Ok(stat) if stat.start_ticks == identity.start_ticks && !matches!(stat.state, b'Z' | b'X') => {
                Self::watch(identity, pidfd).map(Some)
            }
            Ok(_) => Ok(None),
            Err(error) if matches!(error.raw_os_error(), Some(2 | 3)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Which process.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        *self.ended.borrow()
    }

    /// Waits for its end.
    pub async fn wait(&self) -> Ended {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await.map(|end| *end) {
            Ok(Some(end)) => end,
            // The runtime is shutting down: nothing was seen to end, so nothing is claimed.
            _ => std::future::pending().await,
        }
    }

    /// Kills it at once; an ended one is left alone.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Takes the exit status of an ended process: unknown unless it was our child and nobody else
/// took it.
fn reap(pidfd: &OwnedFd) -> Ended {
    match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        Ok(Some(status)) => Ended { code: status.exit_status(), signal: status.terminating_signal() },
        _ => Ended::default(),
    }
}

/// A VMM that is being set up: killed when this is dropped, so that neither an error nor a
/// cancelled boot leaves one behind.
#[derive(Debug)]
pub struct Starting(Option<VmmProcess>);

impl Starting {
    /// The process.
    pub fn process(&self) -> Option<&VmmProcess> {
        self.0.as_ref()
    }

    /// Set up: from now on it lives until it is stopped.
    pub fn keep(mut self) -> Option<VmmProcess> {
        self.0.take()
    }

    /// Failed: kills it, waits until it is gone and says how it ended.
    pub async fn abandon(mut self) -> Option<Ended> {
        let process = self.0.take()?;
        // A process that cannot be killed is not waited for: it might stay.
        process.kill().ok()?;
        Some(process.wait().await)
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(process) = &self.0
            && let Err(error) = process.kill()
        {
            tracing::warn!(pid = process.identity.pid, %error, "cannot kill a VMM whose boot was cancelled");
        }
    }
}

/// Starts a VMM in its own process group (a terminal's Ctrl-C for the worker is not for its VMs)
/// with nothing to read.
pub async fn start(spawner: &Arc<dyn Spawner>, command: Command) -> io::Result<Starting> {
    start_reading(spawner, command, Stdio::null()).await
}

/// The same with something to read.
pub async fn start_reading(
    spawner: &Arc<dyn Spawner>,
    mut command: Command,
    stdin: impl Into<Stdio>,
) -> io::Result<Starting> {
    command.stdin(stdin).process_group(0);
    let spawner = Arc::clone(spawner);
    // As a task, so that a caller who gives up between fork and the return value does not lose the
    // process: the task runs to its end and drops, that is kills, what nobody takes.
    let started = tokio::spawn(async move {
        let child = spawner.spawn(command).await?;
        let pid = child.id();
        // Nobody else reaps this child, so until we do the pid is its own, even if it ended.
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or_else(|| io::Error::other("the system gave an impossible pid"))?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
        let identity = Identity { pid, start_ticks: read_stat(pid)?.start_ticks };
        VmmProcess::watch(identity, pidfd).map(|process| Starting(Some(process)))
    });
    started.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    async fn started(script: &str) -> VmmProcess {
        let here: Arc<dyn Spawner> = Arc::new(Here);
        start(&here, shell(script)).await.unwrap().keep().unwrap()
    }

    #[test]
    fn a_name_with_parentheses_does_not_confuse_the_fields() {
        let text = b"7 (a) S (b) R 1 7 7 0 -1 4194560 1 0 0 0 2 3 0 0 20 0 1 0 4711 8 9";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.state, stat.start_ticks), (b'R', 4711));
        assert!(parse_stat(b"7 (a").is_none());
        assert!(parse_stat(b"7 (a) R 1 2").is_none());
    }

    #[tokio::test]
    async fn a_child_is_reaped_with_its_code() {
        let process = started("exit 3").await;
        assert_eq!(process.wait().await, Ended { code: Some(3), signal: None });
        assert!(read_stat(process.identity.pid).is_err(), "no zombie is left");
    }

    #[tokio::test]
    async fn kill_is_seen_and_may_be_repeated() {
        let process = started("exec sleep 60").await;
        assert_eq!(process.ended(), None);
        process.kill().unwrap();
        assert_eq!(process.wait().await.signal, Some(9));
        process.kill().unwrap();
    }

    #[tokio::test]
    async fn a_reused_pid_is_not_adopted() {
        let process = started("exec sleep 60").await;
        let identity = process.identity();
        let stale = Identity { start_ticks: identity.start_ticks - 1, ..identity };
        assert!(VmmProcess::adopt(stale).unwrap().is_none());
        let adopted = VmmProcess::adopt(identity).unwrap().unwrap();
        adopted.kill().unwrap();
        adopted.wait().await;
        process.wait().await;
        assert!(VmmProcess::adopt(identity).unwrap().is_none());
    }

    #[tokio::test]
    async fn a_cancelled_boot_leaves_no_process() {
        let here: Arc<dyn Spawner> = Arc::new(Here);
        let starting = start(&here, shell("exec sleep 60")).await.unwrap();
        let process = starting.process().unwrap().clone();
        drop(starting);
        assert_eq!(process.wait().await.signal, Some(9));
    }
}
