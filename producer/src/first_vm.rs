//! The first VM of `stoker up`: boots it (or finds the one of an earlier `up`), shows how far it is, and prints
//! its report.

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stoker_schemas::event::{Event, EventData, JOB_LEVEL, JobStopRequested};
use stoker_schemas::limits::DEFAULT_MEMORY_MIB;
use stoker_schemas::{HostName, ImageName, JobId, JobState, Phase};
use stoker_worker::config::Config;
use stoker_worker::host::Host;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{MissedTickBehavior, interval};

use crate::console::{ConsoleSource, last_words};
use crate::progress::{Screen, settled};
use crate::readmodel::{Change, Filter, ReadModel};
use crate::report::Report;
use crate::submit::{self, Asker, Interrupted, Submitter};
use crate::up::UpError;
use crate::view::short_id;

/// Label of the VM that `up` boots to show that everything works; a later `up` finds it again.
const LABEL: (&str, &str) = ("stoker.up", "first-vm");
/// Bytes of console that the report looks at.
const CONSOLE_TAIL: usize = 16 * 1024;
/// On a terminal: how often the line that says what is waited for is written again.
const REFRESH: Duration = Duration::from_secs(1);

/// What it takes to boot one and to follow it.
pub(crate) struct FirstVm<'a> {
    pub(crate) image: &'a ImageName,
    pub(crate) host: &'a HostName,
    /// The job to enqueue when there is none.
    pub(crate) job: &'a Value,
    pub(crate) model: &'a ReadModel,
    pub(crate) submitter: &'a Submitter,
    pub(crate) consoles: &'a dyn ConsoleSource,
    /// It is removed after its report.
    pub(crate) once: bool,
    /// The output is a terminal.
    pub(crate) terminal: bool,
}

impl FirstVm<'_> {
    /// Boots it and prints its report: which job, and whether it is ready.
    pub(crate) async fn boot(&self, out: &mut (dyn Write + Send)) -> Result<(JobId, bool), UpError> {
        let mut changes = self.model.changes();
        let id = match find(self.model, self.image, self.host)? {
            Some(id) => {
                writeln!(out, "\nVM of job {id} is still up from an earlier run")?;
                id
            }
            None => {
                let id = enqueue(self.submitter, self.job).await?;
                writeln!(out, "\njob {id}: booting {}", self.image)?;
                id
            }
        };
        out.flush()?;
        let state = self.follow(id, &mut changes, out).await?;
        let console = last_words(self.consoles, &state, CONSOLE_TAIL).await;
        let report = Report::of(&state, console.as_deref());
        // A failure is to be understood from what is on the screen.
        let text = if report.verified { report.to_summary() } else { report.to_markdown() };
        writeln!(out, "\n{text}")?;
        if report.verified && !self.once {
            writeln!(out, "The whole report: stoker report {}", short_id(&id.to_string()))?;
        }
        out.flush()?;
        Ok((id, report.verified))
    }

    /// Shows its progress until it is ready or closed.
    async fn follow(
        &self,
        id: JobId,
        changes: &mut broadcast::Receiver<Change>,
        out: &mut (dyn Write + Send),
    ) -> Result<JobState, UpError> {
        let mut screen = Screen::new(self.terminal, Instant::now());
        let mut tick = interval(REFRESH);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Some(state) = self.model.job(id)? {
                screen.show(&state, Instant::now(), out)?;
                if settled(state.phase()) {
                    return Ok(state);
                }
            }
            tokio::select! {
                changed = changes.recv() => stop_at_end(changed)?,
                _ = tick.tick() => {}
            }
        }
    }

    /// Stops the VM and waits until nothing of it is left.
    pub(crate) async fn remove(&self, id: JobId) -> Result<(), UpError> {
        let mut changes = self.model.changes();
        let attempt = self.model.job(id)?.map(|state| state.last_attempt());
        let stop = EventData::StopRequested(JobStopRequested {
            attempt,
            by: "cli/up".to_owned(),
            reason: "--once".to_owned(),
        });
        let event = Event::about_job(id, JOB_LEVEL, self.submitter.source(), self.submitter.now(), stop);
        submit::publish_event(self.submitter.broker().as_ref(), &event).await?;
        while !self.model.job(id)?.is_some_and(|state| state.phase().is_closed()) {
            stop_at_end(changes.recv().await)?;
        }
        Ok(())
    }
}

/// Lagging behind means that something changed, too; only the end of changes is one.
fn stop_at_end(changed: Result<Change, RecvError>) -> Result<(), UpError> {
    match changed {
        Err(RecvError::Closed) => Err(UpError::Part("read model", "no more changes".to_owned())),
        Ok(_) | Err(RecvError::Lagged(_)) => Ok(()),
    }
}

/// The job to boot: as large as its image needs, ready when every service is up that the image is to have.
pub(crate) fn job(image: &ImageName, host: &Host, config: &Config) -> Value {
    let mut job = json!({
        "image": image.as_str(),
        "pool": config.pools.first().map(ToString::to_string),
        "labels": { LABEL.0: LABEL.1 },
        "retry": { "max_attempts": 2 },
    });
    // The attempt reports an image that cannot be read.
    if let Ok(image) = host.rig().images.load(image) {
        let manifest = &image.manifest;
        if manifest.min_memory_mib > DEFAULT_MEMORY_MIB {
            job["memory_mib"] = manifest.min_memory_mib.into();
        }
        if !manifest.units.is_empty() {
            job["readiness"] = json!({ "units": manifest.units });
        }
    }
    job
}

fn find(model: &ReadModel, image: &ImageName, host: &HostName) -> Result<Option<JobId>, UpError> {
    let filter = Filter {
        image: Some(image.to_string()),
        // On a shared broker there may be other hosts' first VMs.
        host: Some(host.to_string()),
        label: Some(format!("{}={}", LABEL.0, LABEL.1)),
        ..Filter::in_phase(Phase::Ready)
    };
    Ok(model.list(&filter, None, 1)?.jobs.first().map(|job| job.id))
}

async fn enqueue(submitter: &Submitter, job: &Value) -> Result<JobId, UpError> {
    let prepared = submit::prepare(job, None).map_err(|e| UpError::Part("first job", e.to_string()))?;
    let id = prepared.first().map(|job| job.id);
    let asker = Asker { by: "cli/up".to_owned(), traceparent: None };
    submitter.submit_all(prepared, &asker).await.map_err(|Interrupted { cause, .. }| cause)?;
    id.ok_or_else(|| UpError::Part("first job", "nothing to submit".to_owned()))
}
