//! The duties of a first process after boot: reap orphans, and end the machine on request.

use std::io;

use rustix::process::{WaitOptions, wait};
use rustix::system::{RebootCommand, reboot};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::console;

/// How the machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    PowerOff,
    Restart,
}

/// Waits for signals for ever; returns only when signals cannot be received.
pub fn run_first_process() -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGCHLD])?;
    // Ctrl-Alt-Del then arrives as SIGINT instead of an immediate restart.
    if let Err(error) = reboot(RebootCommand::CadOff) {
        console::say(format_args!("cannot take over Ctrl-Alt-Del: {error}"));
    }
    for signal in signals.forever() {
        reap();
        if let Some(ending) = ending_for(signal) {
            end(ending);
        }
    }
    Ok(())
}

fn ending_for(signal: i32) -> Option<Ending> {
    match signal {
        SIGTERM => Some(Ending::PowerOff),
        SIGINT => Some(Ending::Restart),
        _ => None,
    }
}

/// Orphans become children of the first process. One signal may stand for many of them.
fn reap() {
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}

fn end(ending: Ending) {
    let command = match ending {
        Ending::PowerOff => RebootCommand::PowerOff,
        Ending::Restart => RebootCommand::Restart,
    };
    console::say(format_args!("{ending:?}"));
    rustix::fs::sync();
    if let Err(error) = reboot(command) {
        console::say(format_args!("cannot end the machine: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_end_the_machine_as_systemd_would() {
        assert_eq!(ending_for(SIGTERM), Some(Ending::PowerOff));
        assert_eq!(ending_for(SIGINT), Some(Ending::Restart));
        assert_eq!(ending_for(SIGCHLD), None);
    }

    #[test]
    fn reaping_ends_when_there_is_nobody_to_reap() {
        reap();
    }
}
