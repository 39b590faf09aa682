//! Commands to this host: facts that others wrote (somebody wants a job cancelled, a VM stopped,
//! the host drained, a pool paused). They are kept even for jobs not seen yet: a cancelled job may
//! still be in the queue, and whichever host gets it must know.

use stoker_schemas::JobState;
use stoker_schemas::event::{Event, EventData};
use stoker_schemas::seeded::{self, Bug};

use super::turn::Turn;
use super::{Supervisor, SupervisorError};
use crate::log::IndexChange;
use crate::ports::broker::Delivery;

impl Supervisor {
    pub(super) fn on_command(&mut self, delivery: Delivery, turn: &mut Turn) -> Result<(), SupervisorError> {
        match Event::decode(&delivery.body, self.rig.clock.now()) {
            Ok(event) => {
                self.obey(&event, turn)?;
                turn.settle_after(None, delivery.ack);
            }
            Err(error) => self.park(delivery, error.to_string()),
        }
        Ok(())
    }

    fn obey(&mut self, event: &Event, turn: &mut Turn) -> Result<(), SupervisorError> {
        match (&event.data, event.job()) {
            (
                EventData::CancelRequested(_)
                | EventData::StopRequested(_)
                | EventData::SnoozeRequested(_)
                | EventData::AttemptSuperseded(_),
                Some(id),
            ) => {
                if let EventData::SnoozeRequested(snooze) = &event.data {
                    self.snoozes.request(id, event.time, snooze.until);
                }
                if let Some(job) = self.jobs.get_mut(&id) {
                    let before = job.state.clone();
                    job.state.apply(event);
                    let changed = job.state != before;
                    turn.touch(id);
                    return if changed { self.keep(event, turn) } else { Ok(()) };
                }
                if !matches!(event.data, EventData::CancelRequested(_) | EventData::SnoozeRequested(_)) {
                    return Ok(()); // It runs elsewhere, or nowhere.
                }
                if seeded::is_on(Bug::CancelNotKept) {
                    return Ok(());
                }
                if let Some(state) = self.waiting_for(id).and_then(|waiting| waiting.state.as_mut()) {
                    let before = state.clone();
                    state.apply(event);
                    let changed = *state != before;
                    // It may not have to wait any more.
                    self.room_made = true;
                    return if changed { self.keep(event, turn) } else { Ok(()) };
                }
                let known = match self.load(id, turn) {
                    Err(SupervisorError::Log(damage)) if damage.is_damage() => {
                        // Its message says so when it comes.
                        tracing::error!(job = %id, error = %damage, "a request about a damaged job is dropped");
                        return Ok(());
                    }
                    known => known?,
                };
                let mut state = known.clone().unwrap_or_else(|| JobState::new(id));
                state.apply(event);
                if known.as_ref() == Some(&state) || state.phase().is_closed() {
                    Ok(())
                } else {
                    self.keep(event, turn)
                }
            }
            (EventData::PoolConfigured(rule), _) => self.configure_pool(event, rule, turn),
            (EventData::HostDrainRequested(request), _) => {
                tracing::info!(by = request.by, "asked to drain");
                self.drain(turn);
                Ok(())
            }
            (other, _) => {
                tracing::warn!(kind = other.kind(), "not a command, dropped");
                Ok(())
            }
        }
    }

    /// Writes somebody else's fact down, unless the log it came from is ours.
    pub(super) fn keep(&self, event: &Event, turn: &mut Turn) -> Result<(), SupervisorError> {
        if self.settings.shares_log { Ok(()) } else { self.write(turn, event, IndexChange::Keep) }
    }
}
