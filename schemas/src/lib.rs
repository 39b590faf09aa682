//! Stoker's contract and its rules.
//!
//! Everything here is a value or a pure function of values: no IO, no clock, no randomness, no
//! runtime. Time and jitter come in as arguments, so that the same input gives the same output in
//! a test, in a replay and on a host. `clippy.toml` bans the calls that would break this.
//!
//! The way through: [`spec`] (raw text -> validated job) -> [`command`] + [`state`] ->
//! [`decide`](decide::decide) -> [`event`]s -> [`state`] again -> [`next`](next::next) says what
//! the host must do.

pub mod command;
pub mod decide;
pub mod diagnosis;
pub mod event;
#[doc(hidden)]
pub mod fuzz;
pub mod id;
pub mod image;
pub mod letter;
pub mod limits;
pub mod next;
pub mod published;
pub mod retry;
pub mod seeded;
pub mod spec;
pub mod state;
pub mod time;
pub mod topology;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod simulation;

pub use event::{Event, EventData};
pub use id::{Epoch, HostName, ImageName, JobId, LetterId, PoolName, VmId};
pub use spec::JobSpec;
pub use state::{JobState, Phase};
pub use time::Time;
