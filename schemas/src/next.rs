//! State -> what a host must do about its try at a job. Asked after every change; asking twice
//! gives the same answer, so a restarted worker continues where the log ends.

use crate::event::GoneWhy;
use crate::id::Epoch;
use crate::state::{JobState, Phase};

/// What a host must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Bring it up and prove it.
    Boot,
    /// Let it run and watch it.
    Watch,
    /// Remove everything of it, then say so.
    Remove(GoneWhy),
    /// Nothing: this try has ended, its message may be acknowledged.
    Settled,
}

/// What the host of try `epoch` must do.
pub fn next(state: &JobState, epoch: Epoch) -> Next {
    let Some(attempt) = state.attempts.get(&epoch).filter(|a| a.started.is_some()) else {
        return Next::Settled;
    };
    if attempt.gone.is_some() {
        Next::Settled
    } else if attempt.failed.is_some() {
        Next::Remove(GoneWhy::Failed)
    } else if state.pending_cancel().is_some() || called_cancelled(state, epoch) {
        Next::Remove(GoneWhy::Cancelled)
    } else if attempt.superseded.is_some() {
        Next::Remove(GoneWhy::Duplicate)
    } else if state.pending_stop(epoch).is_some() {
        Next::Remove(GoneWhy::Stopped)
    } else if attempt.ready.is_some() {
        Next::Watch
    } else {
        Next::Boot
    }
}

/// Another host called the job cancelled while this try had its VM.
fn called_cancelled(state: &JobState, epoch: Epoch) -> bool {
    state.phase() == Phase::Cancelled && state.cancelled.keys().next_back().is_some_and(|n| *n >= epoch.attempt)
}

#[cfg(test)]
mod tests;
