//! What attempts report, turned into facts.

use stoker_schemas::command::Command;
use stoker_schemas::{Epoch, JobId};

use super::turn::Turn;
use super::{Supervisor, SupervisorError};
use crate::attempt::{Report, Tagged};

impl Supervisor {
    pub(super) fn on_report(&mut self, tagged: Tagged, turn: &mut Turn) -> Result<(), SupervisorError> {
        let Tagged { job, epoch, report } = tagged;
        let is_removed = matches!(report, Report::Removed { .. });
        let is_ready = matches!(report, Report::Ready(_));
        let accepted = self.fact(job, command(epoch, report), turn)?;
        turn.touch(job);
        let Some(known) = self.jobs.get_mut(&job) else { return Ok(()) };
        if is_ready && accepted {
            known.live.is_up = true;
        }
        // The attempt has ended for the queue: up, or nothing of it left and what follows written.
        if (is_ready && accepted) || is_removed {
            turn.settle_after.extend(known.ack.take());
        }
        if is_removed {
            self.room_made = true;
        }
        Ok(())
    }

    /// Records a command's facts on a job of this host; false when it was refused.
    fn fact(&mut self, id: JobId, command: Command, turn: &mut Turn) -> Result<bool, SupervisorError> {
        let Some(mut job) = self.jobs.remove(&id) else { return Ok(false) };
        let recorded = self.record(&mut job.state, command, None, turn);
        self.jobs.insert(id, job);
        match recorded? {
            Ok(()) => Ok(true),
            Err(rejection) => {
                // Ready and cancelled at the same moment: the first one told has won.
                tracing::debug!(job = %id, %rejection, "report came too late");
                Ok(false)
            }
        }
    }
}

fn command(epoch: Epoch, report: Report) -> Command {
    match report {
        Report::Progress(marks) => Command::Progress { epoch, marks },
        Report::Adopted { pid } => Command::Adopt { epoch, pid },
        Report::Ready(proof) => Command::Ready { epoch, proof: *proof },
        Report::Failed { diagnosis, marks } => Command::Fail { epoch, diagnosis: *diagnosis, marks },
        Report::Removed { why, detail } => Command::Gone { epoch, why, detail },
    }
}
