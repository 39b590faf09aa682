//! What the suites share: skipping honestly, waiting with a deadline, a host in a box.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed expectation is a failed test")]

pub mod conformance;
pub mod control;
pub mod crowd;
pub mod front;
pub mod fuzz;
pub mod harness;
pub mod power;
pub mod processes;
pub mod sim;

use std::fmt::Write as _;
use std::future::Future;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

/// Longest wait for something that must happen. Generous: the machine may be slow; a wait that ends
/// here is a failure, not a measurement.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Says that a test did not run, and why: on its own output and in the run's summary.
pub fn skipped(test: &str, reason: &str) {
    let line = format!("SKIPPED {test}: {reason}");
    eprintln!("{line}");
    if let Some(path) = std::env::var_os("STOKER_TEST_SUMMARY") {
        let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
        if let Ok(mut file) = opened {
            let _ = writeln!(file, "{line}");
        }
    }
}

/// A setting of the test run; says SKIPPED and returns `None` when it is missing.
pub fn setting(test: &str, name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).filter(|v| !v.is_empty());
    if value.is_none() {
        skipped(test, &format!("{name} is not set (scripts/dev test sets it)"));
    }
    value.map(PathBuf::from)
}

/// Waits for something, at most [`DEADLINE`].
///
/// # Panics
/// When it does not happen in time.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => {
            let mut text = String::new();
            let _ = write!(text, "{what} did not happen within {DEADLINE:?}");
            std::panic::panic_any(text)
        }
    }
}
