//! Lines for the serial console, in the form in which systemd reports its units. The host
//! reads them while the guest boots.

use std::fmt::Display;
use std::io::Write;

/// Unit name of the network in the golden image; the minimal guest reports the same.
pub const NETWORK_UNIT: &str = "Network Configuration";
/// Unit name of the agent.
pub const AGENT_UNIT: &str = "VM Browser OAuth Agent";

/// `[  OK  ] Started <unit>.`
pub fn started(unit: &str) {
    line(&started_line(unit));
}

/// `[FAILED] Failed to start <unit>.`
pub fn failed(unit: &str) {
    line(&failed_line(unit));
}

/// A line of the agent itself.
pub fn say(message: impl Display) {
    line(&format!("stoker-agent: {message}"));
}

/// What comes in over the console is not shown on it.
pub fn no_echo() -> std::io::Result<()> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let input = std::io::stdin();
    let mut settings = tcgetattr(&input)?;
    settings.local_modes.remove(LocalModes::ECHO | LocalModes::ECHONL);
    Ok(tcsetattr(&input, OptionalActions::Now, &settings)?)
}

fn started_line(unit: &str) -> String {
    format!("[  OK  ] Started {unit}.")
}

fn failed_line(unit: &str) -> String {
    format!("[FAILED] Failed to start {unit}.")
}

/// One write per line, so that lines of the kernel do not end up inside it. A console that
/// cannot be written to is no reason to stop: nobody could be told.
fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(format!("{text}\n").as_bytes());
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_as_systemd_prints_it() {
        assert_eq!(started_line(AGENT_UNIT), "[  OK  ] Started VM Browser OAuth Agent.");
        assert_eq!(failed_line("Openbox Window Manager"), "[FAILED] Failed to start Openbox Window Manager.");
    }
}
