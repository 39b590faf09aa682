//! The trial: the probe guest does a fixed amount of work with KVM and writes a line after each part; the
//! host times the lines. Only the host's clock counts, a guest's may be as slow as the guest.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{MIN_MIPS, Speed};
use crate::vm::{
    exit, files,
    process::{self, Spawner, VmmProcess},
};

/// Between looks at the trial's console.
const LOOK: Duration = Duration::from_millis(1);
/// Memory of the trial guest, MiB.
const MEMORY_MIB: &str = "32";
/// From QEMU's start to the guest's first line; a KVM that works needs some hundredths of a second.
const START_DEADLINE: Duration = Duration::from_secs(3);
/// How the guest begins each part: `trial: 64 slices of 1000000 instructions`.
const PART: &str = "trial: ";
/// A guest that has not finished its work by twice the time that the slowest acceptable one needs is too slow.
const PATIENCE: u32 = 2;

/// Why there is no measurement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrialError {
    /// The guest is missing.
    #[error("KVM was not tried: the trial guest {} is missing, scripts/dev image probe makes it", .0.display())]
    NoGuest(PathBuf),
    /// A file or the program could not be used.
    #[error("{0}")]
    Io(String),
    /// QEMU ended before the guest had said anything.
    #[error("QEMU ended: {0}")]
    Ended(String),
    /// The guest said nothing.
    #[error("a trial guest said nothing within {} s", START_DEADLINE.as_secs())]
    Silent,
}

impl From<io::Error> for TrialError {
    fn from(error: io::Error) -> Self {
        Self::Io(error.to_string())
    }
}

/// What a trial needs.
#[derive(Debug, Clone, Copy)]
pub struct Trial<'a> {
    /// QEMU's program.
    pub qemu: &'a Path,
    /// The probe guest.
    pub guest: &'a Path,
    /// A folder of its own: made for the trial, and gone after it. What a trial that was cut off left there is
    /// removed first.
    pub dir: &'a Path,
}

impl Trial<'_> {
    /// Runs the guest with KVM and measures it.
    pub async fn run(&self) -> Result<Speed, TrialError> {
        if !self.guest.is_file() {
            return Err(TrialError::NoGuest(self.guest.to_owned()));
        }
        make_empty(self.dir)?;
        let measured = self.run_in(self.dir).await;
        // Nothing of it is needed again; what stays is removed at the next trial's start.
        let _ = std::fs::remove_dir_all(self.dir);
        measured
    }

    async fn run_in(&self, dir: &Path) -> Result<Speed, TrialError> {
        let kernel = std::path::absolute(self.guest)?;
        let mut command = Command::new(self.qemu);
        command
            .current_dir(dir)
            .args(["-M", "microvm,acpi=on", "-accel", "kvm", "-cpu", "host", "-m", MEMORY_MIB])
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args(["-chardev", &format!("file,id=console,path={},append=on", files::CONSOLE)])
            .args(["-serial", "chardev:console", "-append", "console=ttyS0 probe.trial"])
            .arg("-kernel")
            .arg(kernel)
            .stdout(Stdio::null())
            .stderr(files::append(dir, files::VMM_STDERR)?);
        let spawner: Arc<dyn Spawner> = Arc::new(process::Here);
        let trial = process::start(&spawner, command).await?;
        let measured = match trial.process() {
            Some(process) => measure(process, &dir.join(files::CONSOLE)).await,
            None => Err(TrialError::Silent),
        };
        let _ = trial.abandon().await;
        measured.map_err(|error| match error {
            TrialError::Ended(_) => {
                TrialError::Ended(first_complaint(&exit::last_words(&[dir.join(files::VMM_STDERR)])))
            }
            other => other,
        })
    }
}

/// QEMU's first line without its name; what follows comes of it.
fn first_complaint(words: &str) -> String {
    let first = words.split(" | ").next().unwrap_or_default();
    first.rsplit_once("error: ").map_or(first, |(_, what)| what).to_owned()
}

fn make_empty(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => std::fs::create_dir(dir),
    }
}

/// Times the lines as they come.
async fn measure(process: &VmmProcess, console: &Path) -> Result<Speed, TrialError> {
    let mut meter = Meter::new(Instant::now());
    loop {
        // Before the console is read: an ended QEMU has written all it ever will.
        let ended = process.ended().is_some();
        let text = match std::fs::read(console) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            text => text.unwrap_or_default(),
        };
        meter.see(&String::from_utf8_lossy(&text), Instant::now());
        if let Some(speed) = meter.verdict(Instant::now()) {
            return speed.ok_or(TrialError::Silent);
        }
        if ended {
            return meter.so_far().ok_or(TrialError::Ended(String::new()));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// One part of the trial: so many slices of so many units.
#[derive(Debug, Clone, Copy)]
struct Part {
    slices: u64,
    units: u64,
    begun: Instant,
    /// Slices finished, and when that was first seen.
    done: (u64, Instant),
}

impl Part {
    fn is_complete(&self) -> bool {
        self.done.0 >= self.slices
    }

    /// Seconds for a unit, from the slices that were finished.
    fn seconds_each(&self, now: Instant) -> f64 {
        let (done, at) = self.done;
        // Nothing finished: a unit takes longer than a slice has taken until now.
        let (units, until) = if done == 0 { (self.units, now) } else { (done * self.units, at) };
        // A part that is faster than the host looks took less than a look, which is good enough to know.
        until.saturating_duration_since(self.begun).max(LOOK).as_secs_f64() / units.max(1) as f64
    }
}

/// Reads the trial's console. Pure: times come in with the text.
#[derive(Debug)]
struct Meter {
    started: Instant,
    work: Option<Part>,
    exits: Option<Part>,
    last: Instant,
}

impl Meter {
    fn new(now: Instant) -> Self {
        Self { started: now, work: None, exits: None, last: now }
    }

    /// Takes in what the console shows by now, from its beginning.
    fn see(&mut self, text: &str, now: Instant) {
        self.last = now;
        let complete = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        let mut parts: Vec<(u64, u64, u64)> = Vec::new();
        for line in complete.lines().map(str::trim_end) {
            if let Some((slices, units)) = line.strip_prefix(PART).and_then(header) {
                parts.push((slices, units, 0));
            } else if line == "."
                && let Some(part) = parts.last_mut()
            {
                part.2 += 1;
            }
        }
        for (slot, seen) in [&mut self.work, &mut self.exits].into_iter().zip(parts) {
            let (slices, units, done) = seen;
            let part = slot.get_or_insert(Part { slices, units, begun: now, done: (0, now) });
            if done > part.done.0 {
                part.done = (done, now);
            }
        }
    }

    /// `None` while there is something to wait for; `Some(None)` when the guest never began.
    fn verdict(&self, now: Instant) -> Option<Option<Speed>> {
        let Some(work) = &self.work else {
            return (now.saturating_duration_since(self.started) > START_DEADLINE).then_some(None);
        };
        let too_slow = now.saturating_duration_since(work.begun) > allowed(work) * PATIENCE;
        let finished = self.exits.is_some_and(|exits| exits.is_complete());
        (finished || too_slow).then(|| self.so_far())
    }

    fn so_far(&self) -> Option<Speed> {
        let work = self.work?;
        let mips = 1.0 / work.seconds_each(self.last) / 1e6;
        let exit_us = self.exits.filter(|exits| exits.done.0 > 0).map(|exits| exits.seconds_each(self.last) * 1e6);
        // Both are positive and far below what fits; less than 1 is not to look like 1.
        let mips = if mips < 1.0 { 0.0 } else { mips.round() };
        Some(Speed { mips: mips as u32, exit_us: exit_us.map(|us| us.ceil() as u32) })
    }
}

/// How long the work takes at the lowest speed that is accepted.
fn allowed(work: &Part) -> Duration {
    Duration::from_micros(work.slices.saturating_mul(work.units) / u64::from(MIN_MIPS))
}

/// `64 slices of 1000000 instructions`
fn header(text: &str) -> Option<(u64, u64)> {
    let (slices, rest) = text.split_once(" slices of ")?;
    Some((slices.parse().ok()?, rest.split(' ').next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: &str = "Stoker probe guest\r\ntrial: 64 slices of 1000000 instructions\r\n";
    const EXITS: &str = "trial: 20 slices of 100 exits\r\n";

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_guest_is_measured_by_when_its_lines_came() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        let mut text = WORK.to_owned();
        meter.see(&text, start + ms(50));
        assert_eq!(meter.verdict(start + ms(60)), None);
        text.push_str(&".\r\n".repeat(64));
        meter.see(&text, start + ms(82));
        text.push_str(EXITS);
        meter.see(&text, start + ms(82));
        text.push_str(&".\r\n".repeat(20));
        meter.see(&text, start + ms(90));
        assert_eq!(meter.verdict(start + ms(90)), Some(Some(Speed { mips: 2_000, exit_us: Some(4) })));
    }

    #[test]
    fn a_guest_that_crawls_is_not_waited_for() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        meter.see(WORK, start);
        // A line that is not complete does not count.
        meter.see(&format!("{WORK}.\r\n.\r\n."), start + ms(666));
        assert_eq!(meter.verdict(start + ms(1_000)), None, "twice the time of the slowest that is taken");
        assert_eq!(meter.verdict(start + ms(1_300)), Some(Some(Speed { mips: 3, exit_us: None })));
    }

    #[test]
    fn a_guest_that_does_not_finish_one_slice_is_slower_than_that() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        meter.see(WORK, start);
        meter.see(WORK, start + ms(1_300));
        assert_eq!(meter.verdict(start + ms(1_300)), Some(Some(Speed { mips: 0, exit_us: None })));
    }

    #[test]
    fn exits_that_take_long_are_seen_though_the_work_was_fast() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        meter.see(WORK, start);
        let worked = format!("{WORK}{}{EXITS}", ".\r\n".repeat(64));
        meter.see(&worked, start + ms(30));
        meter.see(&format!("{worked}.\r\n"), start + ms(1_030));
        let speed = meter.verdict(start + ms(1_400)).flatten().unwrap();
        assert_eq!((speed.mips, speed.exit_us), (2_133, Some(10_000)));
        assert!(!speed.is_enough());
    }

    #[test]
    fn of_qemus_last_words_the_first_complaint_is_repeated() {
        let words = "qemu-system-x86_64: error: failed to set MSR 0x10a to 0x69 | qemu: kvm.c:3183: Assertion failed.";
        assert_eq!(first_complaint(words), "failed to set MSR 0x10a to 0x69");
        assert_eq!(first_complaint("Could not access KVM kernel module"), "Could not access KVM kernel module");
    }

    #[test]
    fn silence_has_a_deadline() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        meter.see("Stoker probe guest (bare metal)\r\n", start + ms(2_900));
        assert_eq!(meter.verdict(start + ms(2_900)), None);
        assert_eq!(meter.verdict(start + ms(3_100)), Some(None));
    }

    #[tokio::test]
    async fn what_is_missing_is_named_and_nothing_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let (guest, scratch) = (dir.path().join("guest"), dir.path().join("trial"));
        let trial = Trial { qemu: Path::new("/no/such/qemu"), guest: &guest, dir: &scratch };
        assert_eq!(trial.run().await, Err(TrialError::NoGuest(guest.clone())));
        std::fs::write(&guest, "").unwrap();
        // Left by a trial that was cut off.
        std::fs::create_dir(&scratch).unwrap();
        std::fs::write(scratch.join("console.log"), "trial: done\n").unwrap();
        assert!(matches!(trial.run().await, Err(TrialError::Io(why)) if why.contains("No such file")));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
