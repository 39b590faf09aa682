//! Deterministic simulation of the real code: workers, control plane and event logs in one thread, on
//! virtual time, under one seed, against a model of RabbitMQ and simulated guests.
//!
//! ```text
//!  plan (drawn from the seed, or made smaller) -> run: step by step
//!      faults, users  ->  broker model  <- ports ->  processes (hosts, control plane), in a drawn order
//!      at the end: faults cease, everything is started, and all must come to rest as `check` says
//! ```
//!
//! Each process has a runtime of its own with a paused clock; the runner lets one after the other run for
//! a few milliseconds of virtual time. Between these steps the broker moves, processes are killed, links
//! are cut. What could differ from run to run (threads, random choices of `select!`, wall clocks) is not
//! on these paths; the same seed gives the same trace, which a test compares byte for byte.

pub mod broker;
pub mod check;
pub mod control;
pub mod host;
pub mod node;
pub mod plan;
pub mod rules;
pub mod run;
pub mod shrink;
pub mod trace;
pub mod user;

pub use plan::{Draw, Plan};
pub use run::{Outcome, run, run_seed};
pub use shrink::shrink;

/// Name of a host.
pub fn host_name(number: usize) -> String {
    format!("h-{}", number + 1)
}

/// Keeps what panics inside of runs out of the output: an outcome tells of it.
pub fn quiet_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let in_a_run = std::thread::current().name().is_some_and(|name| name.starts_with("seed-"));
        if in_a_run {
            run::note_panic(panic.to_string());
        } else {
            before(panic);
        }
    }));
}
