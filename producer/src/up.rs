//! `stoker up`: worker, broker, read model and API in one process, and a first VM to show that it
//! all works.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Value, json};
use stoker_schemas::event::{Event, EventData, JOB_LEVEL, Request};
use stoker_schemas::image::Driver;
use stoker_schemas::limits::DEFAULT_MEMORY_MIB;
use stoker_schemas::{HostName, ImageName, JobId, JobState, Phase};
use stoker_worker::config::{Config, NetworkMode};
use stoker_worker::host::{Host, HostError};
use stoker_worker::signals;
use stoker_worker::supervisor::Shutdown;
use tokio::sync::watch;

use crate::console::{ConsoleSource, FolderConsoles, NoConsoles, last_words};
use crate::control_plane::{ControlError, ControlPlane, Front, Parts, warn_if_in_the_clear};
use crate::http::ServeError;
use crate::readmodel::{Filter, ReadModel, ReadModelError};
use crate::report::Report;
use crate::submit::{self, Asker, Interrupted, PublishError, Submitter};
use crate::unheard::Unheard;

/// Label of the VM that `up` boots to show that everything works; a later `up` finds it again.
const FIRST_VM_LABEL: (&str, &str) = ("stoker.up", "first-vm");
/// Bytes of console that the report of the first VM looks at.
const CONSOLE_TAIL: usize = 16 * 1024;

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

    let wish = up.first_image.as_ref().map(|image| wish(image, &host, &up.config));
    let (model, submitter) = (control.model.clone(), control.submitter.clone());
    let (shutdown, ordered) = watch::channel(Shutdown::No);
    let mut work = tokio::spawn(host.run(broker.clone(), ordered));

    let first = first_vm(&up, wish.as_ref(), &model, &submitter, consoles.as_ref(), out);
    let outcome = tokio::select! {
        outcome = first => outcome,
        ended = &mut work => return Err(ended_early("worker", ended)),
        failed = control.failed() => return Err(failed.into()),
        () = wait_asked(asked.clone()) => Ok((None, true)),
    };
    let (first, ready) = outcome?;
    if let (true, true, Some(id)) = (up.once, ready, first) {
        remove_first(&model, &submitter, id).await?;
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

fn greet(out: &mut (dyn Write + Send), up: &Up, host: &Host, address: SocketAddr) -> std::io::Result<()> {
    let broker = up.config.broker.as_ref().map_or("in this process".to_owned(), ToString::to_string);
    writeln!(out, "Stoker {} on host {}", env!("CARGO_PKG_VERSION"), up.config.host)?;
    writeln!(out, "  hypervisor  {}", host.rig().hypervisor.describe())?;
    writeln!(out, "  network     {}", host.rig().network.describe())?;
    writeln!(out, "  broker      {broker}")?;
    writeln!(out, "  data        {}", up.config.data.display())?;
    writeln!(out, "  dashboard   http://{address}/")?;
    if up.config.network == NetworkMode::User && up.config.driver != Driver::Simulated {
        let why = if rustix::process::geteuid().is_root() { "as asked" } else { "not root" };
        writeln!(out, "  note        user network ({why}): no tap, no bridge, no DHCP of the host's; a VM is reached")?;
        writeln!(out, "              through a forwarded port on loopback, and judged by HTTP only")?;
    }
    out.flush()
}

/// Boots the first VM (or finds the one of an earlier `up`) and prints its report. Tells its job, and
/// whether it is ready (or none was wanted).
async fn first_vm(
    up: &Up,
    wish: Option<&Value>,
    model: &ReadModel,
    submitter: &Submitter,
    consoles: &dyn ConsoleSource,
    out: &mut (dyn Write + Send),
) -> Result<(Option<JobId>, bool), UpError> {
    let (Some(image), Some(wish)) = (&up.first_image, wish) else { return Ok((None, true)) };
    let id = match find_first(model, image, &up.config.host)? {
        Some(id) => {
            writeln!(out, "\nVM of job {id} is still up from an earlier run")?;
            id
        }
        None => enqueue_first(submitter, wish).await?,
    };
    writeln!(out, "\njob {id}: booting {image} …")?;
    out.flush()?;
    let state = until(model, id, |phase| phase == Phase::Ready || phase.is_closed()).await?;
    let console = last_words(consoles, &state, CONSOLE_TAIL).await;
    let report = Report::of(&state, console.as_deref());
    writeln!(out, "\n{}", report.to_markdown())?;
    out.flush()?;
    Ok((Some(id), report.verified))
}

/// Stops the first VM and waits until nothing of it is left.
async fn remove_first(model: &ReadModel, submitter: &Submitter, id: JobId) -> Result<(), UpError> {
    let request = Request { by: "cli/up".to_owned(), reason: "--once".to_owned() };
    let stop = EventData::StopRequested(request);
    let event = Event::about_job(id, JOB_LEVEL, submitter.source(), submitter.now(), stop);
    submit::publish_event(submitter.broker().as_ref(), &event).await?;
    until(model, id, |phase| phase.is_closed()).await.map(drop)
}

fn find_first(model: &ReadModel, image: &ImageName, host: &HostName) -> Result<Option<JobId>, UpError> {
    let label = format!("{}={}", FIRST_VM_LABEL.0, FIRST_VM_LABEL.1);
    let filter = Filter {
        image: Some(image.to_string()),
        // On a shared broker there may be other hosts' first VMs.
        host: Some(host.to_string()),
        label: Some(label),
        ..Filter::in_phase(Phase::Ready)
    };
    Ok(model.list(&filter, None, 1)?.jobs.first().map(|job| job.id))
}

/// The first job: as large as its image needs, ready when every service is up that the image is to have.
fn wish(image: &ImageName, host: &Host, config: &Config) -> Value {
    let mut wish = json!({
        "image": image.as_str(),
        "pool": config.pools.first().map(ToString::to_string),
        "labels": { FIRST_VM_LABEL.0: FIRST_VM_LABEL.1 },
        "retry": { "max_attempts": 2 },
    });
    // An image that cannot be read is told about by the attempt.
    if let Ok(image) = host.rig().images.load(image) {
        let manifest = &image.manifest;
        if manifest.min_memory_mib > DEFAULT_MEMORY_MIB {
            wish["memory_mib"] = manifest.min_memory_mib.into();
        }
        if !manifest.units.is_empty() {
            wish["readiness"] = json!({ "units": manifest.units });
        }
    }
    wish
}

async fn enqueue_first(submitter: &Submitter, wish: &Value) -> Result<JobId, UpError> {
    let prepared = submit::prepare(wish, None).map_err(|e| UpError::Part("first job", e.to_string()))?;
    let id = prepared.first().map(|job| job.id);
    let asker = Asker { by: "cli/up".to_owned(), traceparent: None };
    submitter.submit_all(prepared, &asker).await.map_err(|Interrupted { cause, .. }| cause)?;
    id.ok_or_else(|| UpError::Part("first job", "nothing to submit".to_owned()))
}

/// Waits until a job is in a phase that will do.
async fn until(model: &ReadModel, id: JobId, will_do: fn(Phase) -> bool) -> Result<JobState, UpError> {
    let mut changes = model.changes();
    loop {
        if let Some(state) = model.job(id)?
            && will_do(state.phase())
        {
            return Ok(state);
        }
        // Lagging behind means that something changed: look again either way.
        if let Err(tokio::sync::broadcast::error::RecvError::Closed) = changes.recv().await {
            return Err(UpError::Part("read model", "no more changes".to_owned()));
        }
    }
}
