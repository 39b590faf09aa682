//! What attempts report, turned into facts.

use stoker_schemas::Epoch;
use stoker_schemas::command::Command;
use stoker_schemas::event::GoneWhy;

use stoker_schemas::seeded::{self, Bug};

use super::books::Job;
use super::turn::Turn;
use super::{Supervisor, SupervisorError};
use crate::attempt::{Order, Report, Tagged, Whose};

impl Supervisor {
    pub(super) fn on_report(&mut self, tagged: Tagged, turn: &mut Turn) -> Result<(), SupervisorError> {
        let Tagged { whose, vm, report } = tagged;
        let Whose::Job(id, epoch) = whose else {
            self.on_warm_report(vm, report, turn);
            return Ok(());
        };
        let Some(mut job) = self.jobs.remove(&id) else { return Ok(()) };
        let recorded = match report {
            Report::Removed { why, detail } => self.on_removed(&mut job, epoch, why, detail, turn),
            Report::Failed { diagnosis, .. } if self.is_lost(&job) => {
                // Whoever holds the message decides what follows; here only the VM goes.
                job.live.lost = Some(diagnosis);
                if let Some(running) = &job.live.running {
                    running.order(Order::Remove(GoneWhy::Failed));
                }
                Ok(())
            }
            Report::Failed { diagnosis, marks } => {
                let fail = Command::Fail { epoch, diagnosis: *diagnosis, marks };
                self.fact(&mut job, fail, turn).map(drop)
            }
            Report::Ready(proof) => self.on_ready(&mut job, Command::Ready { epoch, proof: *proof }, turn),
            Report::Progress(marks) => self.fact(&mut job, Command::Progress { epoch, marks }, turn).map(drop),
            Report::Adopted { pid } => self.fact(&mut job, Command::Adopt { epoch, pid }, turn).map(drop),
        };
        self.jobs.insert(id, job);
        turn.touch(id);
        recorded
    }

    /// The message of this try went back to the queue when an earlier worker ended, and has not come
    /// here again: another host may be at it. (The broker in this process has no other hosts.)
    fn is_lost(&self, job: &Job) -> bool {
        // Where we settled it, no other host can have it.
        let settled = job.attempt().is_some_and(|a| a.message_settled.is_some());
        job.ack.is_none() && !settled && !job.live.is_up && !self.settings.shares_log
    }

    fn on_ready(&mut self, job: &mut Job, ready: Command, turn: &mut Turn) -> Result<(), SupervisorError> {
        if self.fact(job, ready, turn)? {
            job.live.is_up = true;
            self.up += 1;
            // Another may boot.
            job.live.boot = None;
            self.room_made = true;
            // For the queue, the attempt has ended.
            if let Some(held) = job.ack.take() {
                turn.settle_after(job.state.id, held.ack);
            }
        }
        Ok(())
    }

    fn on_removed(
        &mut self,
        job: &mut Job,
        epoch: Epoch,
        why: GoneWhy,
        detail: String,
        turn: &mut Turn,
    ) -> Result<(), SupervisorError> {
        match job.live.lost.take() {
            Some(diagnosis) if job.ack.is_none() || seeded::is_on(Bug::LostStaysLost) => {
                self.fact(job, Command::Lost { epoch, diagnosis: *diagnosis, detail }, turn)?;
            }
            lost => {
                if let Some(diagnosis) = lost {
                    // The message came back here after all.
                    self.fact(job, Command::Fail { epoch, diagnosis: *diagnosis, marks: Vec::new() }, turn)?;
                }
                self.fact(job, Command::Gone { epoch, why, detail }, turn)?;
            }
        }
        if let Some(held) = job.ack.take() {
            turn.settle_after(job.state.id, held.ack);
        }
        self.room_made = true;
        Ok(())
    }

    /// Records a command's facts on a job of this host; false when it was refused.
    fn fact(&mut self, job: &mut Job, command: Command, turn: &mut Turn) -> Result<bool, SupervisorError> {
        match self.record(&mut job.state, command, turn)? {
            Ok(()) => Ok(true),
            Err(rejection) => {
                // Ready and cancelled at the same moment: the first one told has won.
                tracing::debug!(job = %job.state.id, %rejection, "report came too late");
                Ok(false)
            }
        }
    }
}
