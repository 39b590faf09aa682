//! The duties of a first process after boot: reap orphans, and end the machine on request: by signal,
//! or by its power button, which is how a hypervisor asks.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use rustix::system::{RebootCommand, reboot};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::console;

/// Where the kernel has keyboards and buttons.
const INPUT: &str = "/dev/input";
/// `struct input_event`: a time of two longs, type and code of 16 bits each, a value of 32.
const EVENT_BYTES: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

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

/// Asks the first process to end the machine as Ctrl-Alt-Del does: ours restarts it, systemd stops
/// everything in order first. A restart, because that ends every VMM, and a power-off needs ACPI.
pub fn ask_to_end() {
    if let Err(error) = kill_process(Pid::INIT, Signal::INT) {
        console::say(format_args!("cannot ask the first process to end the machine: {error}"));
    }
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

/// Buttons and keyboards that there are; each has to be listened to by itself.
pub fn inputs() -> Vec<PathBuf> {
    let entries = fs::read_dir(INPUT).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("event")).map(|entry| entry.path()).collect()
}

/// Ends the machine when the power button is pressed; returns when there is no such button.
pub fn watch_button(input: &Path) {
    match File::open(input).and_then(|mut file| wait_for_button(&mut file)) {
        Ok(()) => end(Ending::PowerOff),
        Err(error) => console::say(format_args!("{}: {error}", input.display())),
    }
}

fn wait_for_button(events: &mut impl Read) -> io::Result<()> {
    let mut event = [0; EVENT_BYTES];
    loop {
        events.read_exact(&mut event)?;
        if is_power(&event) {
            return Ok(());
        }
    }
}

/// Pressed, not released.
fn is_power(event: &[u8; EVENT_BYTES]) -> bool {
    let [.., t0, t1, c0, c1, v0, v1, v2, v3] = *event;
    u16::from_ne_bytes([t0, t1]) == EV_KEY
        && u16::from_ne_bytes([c0, c1]) == KEY_POWER
        && i32::from_ne_bytes([v0, v1, v2, v3]) == 1
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

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let time = [7; 16];
        [&time[..], &kind.to_ne_bytes(), &code.to_ne_bytes(), &value.to_ne_bytes()].concat()
    }

    #[test]
    fn only_the_power_button_pressed_counts() {
        let others = [event(0, 0, 0), event(EV_KEY, 30, 1), event(EV_KEY, KEY_POWER, 0), event(2, KEY_POWER, 1)];
        let mut noise = io::Cursor::new(others.concat());
        assert_eq!(wait_for_button(&mut noise).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let mut pressed = io::Cursor::new([others.concat(), event(EV_KEY, KEY_POWER, 1)].concat());
        wait_for_button(&mut pressed).unwrap();
    }

    #[test]
    fn reaping_ends_when_there_is_nobody_to_reap() {
        reap();
    }
}
