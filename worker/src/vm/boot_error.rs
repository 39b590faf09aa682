//! Turns "the VMM does not do what it should" into the error that says why.

use std::{io, time::Duration};

use super::process::VmmProcess;
use crate::ports::vm::{VmError, VmExit};

/// How long a VMM may take to end after it cut its socket, before that is called something else
/// than its death.
const LAST_BREATH: Duration = Duration::from_millis(500);

/// The VMM could not even be started.
pub fn spawn(driver: &'static str, what: &str, error: &io::Error) -> VmError {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => "install it or set its path in the configuration",
        io::ErrorKind::PermissionDenied => "check that the file is executable and the worker may use it",
        io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock => {
            "the host is out of memory or processes: lower the capacity"
        }
        _ => "see the cause",
    };
    VmError::Spawn { driver, cause: format!("{what}: {error}"), hint }
}

/// The VMM's socket cannot be reached.
pub fn silent(
    driver: &'static str,
    socket: &str,
    process: &VmmProcess,
    within: Duration,
    error: &io::Error,
) -> VmError {
    if process.ended().is_some() {
        return VmError::Died { driver, reason: format!("before it opened {socket}") };
    }
    match error.kind() {
        io::ErrorKind::TimedOut => VmError::Unresponsive { driver, request: format!("connection to {socket}"), within },
        _ => spawn(driver, socket, error),
    }
}

/// Whether the VMM is gone or about to go.
pub async fn died(process: &VmmProcess) -> bool {
    tokio::time::timeout(LAST_BREATH, process.wait()).await.is_ok()
}

/// Adds exit code and last words, once they are known, to the report of a VMM's death.
pub fn explained(error: VmError, exit: impl FnOnce() -> Option<VmExit>) -> VmError {
    match error {
        VmError::Died { driver, reason } => {
            let told = exit().map_or_else(|| reason.clone(), |exit| format!("{} ({reason})", exit.reason));
            VmError::Died { driver, reason: told }
        }
        error => error,
    }
}
