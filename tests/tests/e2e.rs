//! The real programs end to end: `stoker up` on real hypervisors, in a network namespace of the
//! test's own, judged from outside: by what it prints, by its API and by what is left on the host.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a failed expectation is a failed test")]

#[path = "e2e/accel.rs"]
mod accel;
#[path = "e2e/causes.rs"]
mod causes;
#[path = "e2e/crash.rs"]
mod crash;
#[path = "e2e/golden.rs"]
mod golden;
#[path = "e2e/jobs.rs"]
mod jobs;
#[path = "e2e/kvm.rs"]
mod kvm;
#[path = "e2e/leaks.rs"]
mod leaks;
#[path = "e2e/stage.rs"]
mod stage;
#[path = "e2e/stranger.rs"]
mod stranger;
#[path = "e2e/templates.rs"]
mod templates;
#[path = "e2e/up.rs"]
mod up;
#[path = "e2e/warm.rs"]
mod warm;
