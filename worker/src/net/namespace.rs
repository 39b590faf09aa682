//! A named network namespace and the threads that live in it.
//!
//! A thread's namespace is inherited by what it creates (sockets, child processes) and is the only
//! thing that decides where those belong. So work that must happen inside is handed to threads
//! which entered once, at their start, and never leave: no call site can forget to switch, and a
//! thread of the main runtime is never left in the wrong namespace.

use std::{fs::File, future::Future, os::fd::AsFd, path::PathBuf, sync::Arc, thread};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::{
    process::Command,
    runtime::Handle,
    sync::oneshot,
    task::{JoinError, JoinHandle},
};

use super::{links::Links, system};
use crate::ports::net::NetError;

/// Where `ip netns` keeps its namespaces; named there, they can be looked into with `ip -n`.
const NETNS_DIR: &str = "/run/netns";
/// Linux file names allow 255; `ip netns` prints worse with long ones.
const MAX_NAME: usize = 63;

/// A network namespace, or the host's own. Cheap to clone; the last clone ends the threads, the
/// namespace itself stays: VMs live in it.
#[derive(Clone)]
pub struct Namespace(Arc<Inner>);

struct Inner {
    name: Option<String>,
    io: Resident,
    ops: Resident,
    teardown: Resident,
}

/// A thread inside the namespace with a runtime of its own.
struct Resident {
    handle: Handle,
    /// Dropped with the namespace: the thread's runtime ends.
    _stop: oneshot::Sender<()>,
}

impl Namespace {
    /// The host's own network: same interface, no switch.
    pub fn host() -> Result<Self, NetError> {
        Self::start(None)
    }

    /// The namespace of this name; made, with `lo` up, where it is missing.
    pub async fn open(name: &str) -> Result<Self, NetError> {
        check_name(name)?;
        let path = path_of(name);
        if !path.exists() {
            ip_netns("add", name).await?;
        }
        let namespace = match Self::start(Some(name)) {
            // A file without a namespace behind it: left by a crash between the two steps of making it.
            Err(_) if !is_mounted(&path) => {
                ip_netns("delete", name).await?;
                ip_netns("add", name).await?;
                Self::start(Some(name))?
            }
            other => other?,
        };
        Links::open(&namespace).await?.set_up("lo").await?;
        Ok(namespace)
    }

    fn start(name: Option<&str>) -> Result<Self, NetError> {
        let enter = |role: &'static str| Resident::start(role, name.map(path_of));
        Ok(Self(Arc::new(Inner {
            name: name.map(str::to_owned),
            io: enter("net-io")?,
            ops: enter("net-ops")?,
            teardown: enter("net-teardown")?,
        })))
    }

    /// Its name; `None` for the host's own network.
    pub fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }

    /// Runs a closure inside, e.g. one that spawns a process. It may block for a few milliseconds,
    /// not longer: all closures share one thread.
    pub async fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        joined(self.0.ops.handle.spawn(async move { f() }).await)
    }

    /// Starts a task inside: sockets it makes belong to the namespace. It must not block.
    pub fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.0.io.handle.spawn(task)
    }

    /// Awaits a future inside; dropping the wait ends it, as with any other future.
    pub async fn within<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> T {
        let mut guard = AbortOnDrop(self.spawn(task));
        joined((&mut guard.0).await)
    }

    /// Threads for netlink: one for what is quick, one for removals, each of which holds its
    /// thread for a grace period of the kernel (25 ms) and must not delay a boot.
    pub(super) fn netlink_threads(&self) -> [&Handle; 2] {
        [&self.0.ops.handle, &self.0.teardown.handle]
    }

    /// Removes the name. The namespace ends with the last process and thread in it.
    pub async fn delete(&self) -> Result<(), NetError> {
        match self.name() {
            Some(name) => ip_netns("delete", name).await,
            None => Ok(()),
        }
    }
}

impl Resident {
    fn start(role: &'static str, namespace: Option<PathBuf>) -> Result<Self, NetError> {
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let body = move || {
            let runtime = enter(namespace).and_then(|()| {
                let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
                built.map_err(|e| system("start a runtime", &e))
            });
            match runtime {
                Err(error) => drop(ready.send(Err(error))),
                Ok(runtime) => {
                    let (stop, stopped) = oneshot::channel::<()>();
                    let _ = ready.send(Ok(Self { handle: runtime.handle().clone(), _stop: stop }));
                    let _ = runtime.block_on(stopped);
                    // Not a plain drop: a resolver or file task of a library must not hold up the end.
                    runtime.shutdown_background();
                }
            }
        };
        thread::Builder::new().name(role.to_owned()).spawn(body).map_err(|e| system("start a thread", &e))?;
        let gone = |_| NetError::System { what: format!("start thread {role}"), cause: "it ended".to_owned() };
        started.recv().map_err(gone)?
    }
}

/// Aborts its task when dropped.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A panic inside goes on outside, as if the closure had been called here.
fn joined<T>(result: Result<T, JoinError>) -> T {
    match result.map_err(JoinError::try_into_panic) {
        Ok(value) => value,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // Cancelled means aborted or runtime gone; we hold both the task and the namespace.
        Err(Err(error)) => unreachable!("{error}"),
    }
}

fn enter(namespace: Option<PathBuf>) -> Result<(), NetError> {
    let Some(path) = namespace else { return Ok(()) };
    let what = || format!("enter network namespace {}", path.display());
    let file = File::open(&path).map_err(|e| system(what(), &e))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).map_err(|e| system(what(), &e.into()))
}

fn path_of(name: &str) -> PathBuf {
    PathBuf::from(NETNS_DIR).join(name)
}

/// Whether a namespace is mounted there: then it is on another file system than its folder.
fn is_mounted(path: &std::path::Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &std::path::Path| std::fs::metadata(path).map(|m| m.dev()).ok();
    device(path) != device(std::path::Path::new(NETNS_DIR))
}

fn check_name(name: &str) -> Result<(), NetError> {
    let letters = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if letters && !name.is_empty() && !name.starts_with('-') && name.len() <= MAX_NAME {
        return Ok(());
    }
    let cause = format!("the name must be 1-{MAX_NAME} of a-z, 0-9 and '-'");
    Err(NetError::System { what: format!("network namespace {name:?}"), cause })
}

/// By `ip`, so that it is mounted in every detail as other tools expect. Start and end only.
async fn ip_netns(verb: &str, name: &str) -> Result<(), NetError> {
    let what = format!("ip netns {verb} {name}");
    let output = Command::new("ip").args(["netns", verb, name]).output().await.map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            NetError::Missing { what: "ip".to_owned(), hint: "install iproute2".to_owned() }
        }
        _ => system(what.clone(), &e),
    })?;
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    // Another worker may have been quicker.
    let there_already = verb == "add" && words.contains("File exists");
    if output.status.success() || there_already {
        return Ok(());
    }
    if words.contains("Operation not permitted") || words.contains("Permission denied") {
        return Err(NetError::Permission { what });
    }
    Err(NetError::System { what, cause: words })
}
