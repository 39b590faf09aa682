//! Stoker's host agent: takes jobs from the broker, boots microVMs, proves that they can be
//! reached, and writes every step to its event log before it acts.
//!
//! Start at [`supervisor`] (the one task that owns a host's jobs) and [`attempt`] (the task that
//! owns one VM). [`ports`] are the traits towards the world; [`host`] puts a host together.

pub mod attempt;
pub mod backoff_policy;
pub mod blocking;
pub mod boots;
pub mod broker;
pub mod clock;
pub mod config;
pub mod console;
pub mod counts;
pub(crate) mod damaged;
pub mod dirs;
pub mod disk;
pub mod doctor;
mod equipment;
#[doc(hidden)]
pub mod fuzz;
pub mod host;
pub mod images;
pub mod log;
pub mod logging;
pub mod metrics;
pub mod metrics_file;
mod mounts;
pub mod net;
pub mod outbox;
pub mod ports;
pub mod probe;
pub mod reaper;
pub mod signals;
pub mod snapshots;
pub mod supervisor;
pub mod toml_text;
pub mod vm;
