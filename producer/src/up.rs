//! `stoker up`: worker, broker, read model and API in one process, and a first VM to show that it
//! all works.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stoker_schemas::ImageName;
use stoker_schemas::image::Driver;
use stoker_worker::config::{Config, NetworkMode};
use stoker_worker::host::{Host, HostError};
use stoker_worker::signals;
use stoker_worker::supervisor::Shutdown;
use tokio::sync::watch;

use crate::console::{ConsoleSource, FolderConsoles, NoConsoles};
use crate::control_plane::{ControlError, ControlPlane, Front, Parts, warn_if_in_the_clear};
use crate::first_vm::{self, FirstVm};
use crate::http::ServeError;
use crate::readmodel::ReadModelError;
use crate::submit::PublishError;
use crate::unheard::Unheard;

/// What to bring up.
pub struct Up {
    /// The worker's settings.
    pub config: Config,
    /// Where API and pages are, and for whom.
    pub front: Front,
    /// Image of the first VM; `None` to boot none.
    pub first_image: Option<ImageName>,
    /// End after the first VM's report, instead of staying up.
    pub once: bool,
    /// The output is a terminal: progress is shown live.
    pub terminal: bool,
    /// Where log lines go, if not to stderr.
    pub log: Option<PathBuf>,
}

/// Why it ended.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// The worker.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The API.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// API, rows or what belongs to them.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The read model.
    #[error(transparent)]
    Model(#[from] ReadModelError),
    /// The first job could not be enqueued.
    #[error("the first job was not enqueued: {0}")]
    Enqueue(#[from] PublishError),
    /// A part of the process ended that should not have.
    #[error("{0} ended unexpectedly: {1}")]
    Part(&'static str, String),
    /// The process's signals cannot be followed, or its output not written.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The first VM did not become ready; its report has been printed.
    #[error("the first VM did not become ready; its report is above")]
    NotReady,
}

/// Runs until asked to end (or, with `once`, until the first VM's report).
pub async fn run(up: Up, out: &mut (dyn Write + Send)) -> Result<(), UpError> {
    let asked = signals::shutdown()?;
    let out = &mut Unheard(out);
    let listener = up.front.bind().await?;
    let host = Host::open(&up.config).await?;
    let broker = host.broker(&up.config).await.map_err(HostError::from)?;
    let consoles: Arc<dyn ConsoleSource> = match &host.rig().dirs {
        Some(dirs) => Arc::new(FolderConsoles(dirs.clone())),
        None => Arc::new(NoConsoles),
    };
    let address = listener.local_addr()?;
    warn_if_in_the_clear(address);
    let mut control = ControlPlane::start(Parts {
        name: "up",
        listener,
        front: up.front.clone(),
        data: up.config.data.clone(),
        broker: broker.clone(),
        consoles: consoles.clone(),
    })?;
    greet(out, &up, &host, address)?;

    let job = up.first_image.as_ref().map(|image| first_vm::job(image, &host, &up.config));
    let (model, submitter) = (control.model.clone(), control.submitter.clone());
    let network = host.rig().network.clone();
    let (shutdown, ordered) = watch::channel(Shutdown::No);
    let mut work = tokio::spawn(host.run(broker.clone(), ordered));

    let first = up.first_image.as_ref().zip(job.as_ref()).map(|(image, job)| FirstVm {
        image,
        host: &up.config.host,
        job,
        model: &model,
        submitter: &submitter,
        consoles: consoles.as_ref(),
        once: up.once,
        terminal: up.terminal,
    });
    let booted = async {
        match &first {
            Some(first) => first.boot(out).await.map(Some),
            None => Ok(None),
        }
    };
    let outcome = tokio::select! {
        outcome = booted => outcome?,
        ended = &mut work => return Err(ended_early("worker", ended)),
        failed = control.failed() => return Err(failed.into()),
        () = wait_asked(asked.clone()) => None,
    };
    // Without a first VM, or after Ctrl-C, nothing failed.
    let ready = outcome.is_none_or(|(_, ready)| ready);
    if let (true, Some(first), Some((id, true))) = (up.once, &first, outcome) {
        first.remove(id).await?;
    } else if !up.once {
        writeln!(out, "\nUp. Dashboard and API: http://{address}/   (Ctrl-C ends; VMs keep running)")?;
        out.flush()?;
        tokio::select! {
            ended = &mut work => return Err(ended_early("worker", ended)),
            failed = control.failed() => return Err(failed.into()),
            () = wait_asked(asked.clone()) => {}
        }
    }
    let relay = tokio::spawn(relay(asked, shutdown.clone()));
    let _ = shutdown.send(Shutdown::Drain);
    let ended = work.await.map_err(|e| UpError::Part("worker", e.to_string()))?;
    relay.abort();
    control.end().await;
    broker.close().await;
    ended?;
    if up.once
        && let Err(error) = network.close_unused().await
    {
        tracing::warn!(%error, "bridge, DHCP server or namespace could not be removed");
    }
    if up.once && !ready { Err(UpError::NotReady) } else { Ok(()) }
}

fn ended_early(part: &'static str, ended: Result<Result<(), HostError>, tokio::task::JoinError>) -> UpError {
    match ended {
        Ok(Ok(())) => UpError::Part(part, "without an error".to_owned()),
        Ok(Err(error)) => UpError::Host(error),
        Err(error) => UpError::Part(part, error.to_string()),
    }
}

async fn wait_asked(mut asked: watch::Receiver<Shutdown>) {
    // The sender lives as long as the process.
    let _ = asked.wait_for(|s| *s != Shutdown::No).await;
}

/// A second signal ends the worker at once.
async fn relay(mut asked: watch::Receiver<Shutdown>, shutdown: watch::Sender<Shutdown>) {
    if asked.wait_for(|s| *s == Shutdown::Now).await.is_ok() {
        let _ = shutdown.send(Shutdown::Now);
    }
}

/// A path below the folder that it was started in, as one would type it there.
fn short(path: &Path) -> &Path {
    std::env::current_dir().ok().and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path)
}

fn greet(out: &mut (dyn Write + Send), up: &Up, host: &Host, address: SocketAddr) -> std::io::Result<()> {
    let broker = up.config.broker.as_ref().map_or("in this process".to_owned(), ToString::to_string);
    writeln!(out, "Stoker {} on host {}", env!("CARGO_PKG_VERSION"), up.config.host)?;
    writeln!(out, "  hypervisor  {}", host.rig().hypervisor.describe())?;
    writeln!(out, "  network     {}", host.rig().network.describe())?;
    writeln!(out, "  broker      {broker}")?;
    writeln!(out, "  data        {}", short(&up.config.data).display())?;
    writeln!(out, "  dashboard   http://{address}/")?;
    if let Some(log) = &up.log {
        writeln!(out, "  log         {}", short(log).display())?;
    }
    if up.config.network == NetworkMode::User && up.config.driver != Driver::Simulated {
        let why = if rustix::process::geteuid().is_root() { "as asked" } else { "not root" };
        writeln!(out, "  note        user network ({why}): no tap, no bridge, no DHCP of the host's; a VM is reached")?;
        writeln!(out, "              through a forwarded port on loopback, and judged by HTTP only")?;
    }
    out.flush()
}
