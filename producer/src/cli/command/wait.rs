//! Waiting for jobs to settle: live stages on stderr, the outcome on stdout.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use stoker_schemas::{Event, JobId, JobState, Phase, Time};

use crate::cli::CliError;
use crate::cli::describe;
use crate::cli::follow::Follower;
use crate::cli::printer::Printer;
use crate::cli::settings::Settings;
use crate::http::Submitted;
use crate::progress::{SIGN_OF_LIFE, line, settled, waiting_for};
use crate::view::{JobView, duration, ms_between, short_id};

/// Waits for all of them; an error when one did not become ready.
pub async fn until_settled(
    submitted: &Submitted,
    within: Duration,
    settings: &Settings,
    printer: &mut Printer,
) -> Result<(), CliError> {
    let mut waiter = Waiter::new(submitted.jobs.iter().map(|j| j.id));
    let following = waiter.follow(submitted, settings, printer);
    let Ok(followed) = tokio::time::timeout(within, following).await else {
        let open = waiter.open().len();
        let message = format!("{open} of {} jobs were not settled within {} s", waiter.jobs.len(), within.as_secs());
        return Err(CliError::system(message, "time was up", "they go on: stoker watch, stoker show"));
    };
    followed?;
    let views: Vec<_> = submitted.jobs.iter().filter_map(|j| waiter.jobs.get(&j.id)).map(JobView::of).collect();
    print(&views, printer)?;
    verdict(&views)
}

/// Prints outcomes.
fn print(views: &[JobView], printer: &mut Printer) -> Result<(), CliError> {
    if printer.json() {
        return printer.value(&views);
    }
    for view in views {
        let rest = match view.last().and_then(|a| a.proof.as_ref()) {
            Some(proof) if view.phase == Phase::Ready => format!(" {} {}", view.id, proof.agent),
            _ => format!(" {}", view.id),
        };
        printer.phase_line(view.phase, &rest)?;
    }
    Ok(())
}

/// Whether all are ready, and if not, why the first is not.
pub fn verdict(views: &[JobView]) -> Result<(), CliError> {
    let failed: Vec<_> = views.iter().filter(|v| v.phase != Phase::Ready).collect();
    let Some(first) = failed.first() else { return Ok(()) };
    let message = match failed.len() {
        1 => format!("job {} is {}", first.id, first.phase),
        n => format!("{n} of {} jobs are not ready; the first is {}, {}", views.len(), first.id, first.phase),
    };
    let diagnosis = first.attempts.iter().rev().find_map(|a| a.diagnosis.as_ref());
    let dead = first.dead.as_ref().map(|d| describe::dead_reason(d.reason).to_owned());
    Err(CliError::JobFailed {
        message,
        cause: diagnosis.map(|d| d.summary.clone()).or(dead).unwrap_or_default(),
        hint: diagnosis.map(|d| d.remedy.clone()).unwrap_or_default(),
    })
}

struct Waiter {
    jobs: BTreeMap<JobId, JobState>,
    /// By this machine's clock: the server's may differ.
    began: Instant,
}

impl Waiter {
    fn new(ids: impl Iterator<Item = JobId>) -> Self {
        Self { jobs: ids.map(|id| (id, JobState::new(id))).collect(), began: Instant::now() }
    }

    fn open(&self) -> Vec<JobId> {
        self.jobs.values().filter(|state| !settled(state.phase())).map(|state| state.id).collect()
    }

    async fn follow(
        &mut self,
        submitted: &Submitted,
        settings: &Settings,
        printer: &mut Printer,
    ) -> Result<(), CliError> {
        // What was enqueued before has a past: that comes first.
        for job in submitted.jobs.iter().filter(|j| j.duplicate) {
            let id = job.id.to_string();
            let events: Vec<Box<serde_json::value::RawValue>> =
                settings.client.get(&["v1", "jobs", &id, "events"], &[]).await?;
            for raw in events {
                let event = Event::decode(raw.get().as_bytes(), Time::UNIX_EPOCH);
                let event = event.map_err(|e| CliError::system("an event is not understood", e, ""))?;
                self.take(&event, printer)?;
            }
        }
        // One job has its own stream; for several, everything is looked through.
        let one = if self.jobs.len() == 1 { self.jobs.keys().next().map(ToString::to_string) } else { None };
        let from = one.is_none().then_some(submitted.from);
        let mut follower = Follower::new(&settings.client, one, from);
        while !self.open().is_empty() {
            let live = {
                let mut next = std::pin::pin!(follower.next());
                loop {
                    match tokio::time::timeout(SIGN_OF_LIFE, &mut next).await {
                        Ok(live) => break live?,
                        Err(_) => self.sign_of_life(printer)?,
                    }
                }
            };
            self.take(&live.event, printer)?;
        }
        Ok(())
    }

    /// Nothing has happened for a while: what is waited for.
    fn sign_of_life(&self, printer: &mut Printer) -> Result<(), CliError> {
        let open: Vec<_> = self.jobs.values().filter(|state| !settled(state.phase())).collect();
        let Some(first) = open.first() else { return Ok(()) };
        let others = match open.len() - 1 {
            0 => String::new(),
            n => format!(" (and {n} more)"),
        };
        let waited = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        printer.note(&line(waited, &format!("waiting for {}{others}", waiting_for(first))))
    }

    fn take(&mut self, event: &Event, printer: &mut Printer) -> Result<(), CliError> {
        let several = self.jobs.len() > 1;
        let Some(state) = event.job().and_then(|id| self.jobs.get_mut(&id)) else { return Ok(()) };
        let before = state.clone();
        state.apply(event);
        // Told before: the past of a duplicate comes again in its stream.
        if *state == before {
            return Ok(());
        }
        let since = state.enqueued_at().unwrap_or(event.time);
        let id = state.id.to_string();
        let whose = if several { format!("{}  ", short_id(&id)) } else { String::new() };
        for line in describe::lines(event) {
            printer.note(&format!("{whose}{:>9}  {}", duration(ms_between(since, line.at)), line.text))?;
        }
        Ok(())
    }
}
