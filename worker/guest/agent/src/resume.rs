//! Becoming somebody: a template guest waits, booted but without identity, while the host saves its
//! memory; each copy of it is then told over the serial console who it is.
//!
//! Everything that two copies would otherwise share is made new here, before the first packet: id,
//! host name, machine id, MAC, clock and the kernel's random numbers.

use std::io::{self, BufRead, Read};
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_settime};
use smoltcp::wire::EthernetAddress;

use crate::{boot, console, entropy, net};

/// What the host waits for before it saves the guest.
pub const READY: &str = "template ready";
/// A line of the host is far shorter; more is not one.
const MAX_LINE_BYTES: u64 = 1_024;
/// Bytes of fresh randomness that each copy gets.
pub const SEED_BYTES: usize = 32;

/// Who a copy is. `Debug` leaves out the seed, which is a secret.
#[derive(PartialEq, Eq)]
pub struct Resume {
    /// Its VM id.
    pub vm_id: String,
    /// Its hardware address.
    pub mac: EthernetAddress,
    now: Duration,
    seed: [u8; SEED_BYTES],
}

impl std::fmt::Debug for Resume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resume").field("vm_id", &self.vm_id).field("mac", &self.mac).finish_non_exhaustive()
    }
}

/// Says that it is ready and waits to be told who it is. Its memory is saved somewhere in here, so
/// that every copy goes on from here.
pub fn wait() -> io::Result<Resume> {
    // Before anything is said: the seed must not be echoed to a console that is kept in a file.
    console::no_echo()?;
    console::say(READY);
    read(&mut io::stdin().lock())
}

/// The first line that can be understood.
fn read(input: &mut impl BufRead) -> io::Result<Resume> {
    loop {
        let mut line = Vec::new();
        if input.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match Resume::parse(&String::from_utf8_lossy(&line)) {
            Some(resume) => return Ok(resume),
            // Not repeated: it may hold a seed.
            None => console::say("not understood; expected: resume vm_id=ID mac=MAC unix_ms=N seed=HEX"),
        }
    }
}

impl Resume {
    /// Reads the line that says it.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("resume") {
            return None;
        }
        let (mut vm_id, mut mac, mut now, mut seed) = (None, None, None, None);
        for word in words {
            match word.split_once('=')? {
                ("vm_id", id) if !id.is_empty() => vm_id = Some(id.to_owned()),
                ("mac", text) => mac = Some(net::parse_mac(text)?),
                ("unix_ms", text) => now = Some(Duration::from_millis(text.parse().ok()?)),
                ("seed", text) => seed = Some(from_hex(text)?),
                // A newer host may say more.
                _ => {}
            }
        }
        Some(Self { vm_id: vm_id?, mac: mac?, now: now?, seed: seed? })
    }

    /// Takes the new identity. What fails is reported and survived, as in an ordinary boot.
    pub fn apply(&self) {
        let now = Timespec::try_from(self.now).map_err(io::Error::other);
        if let Err(error) = now.and_then(|now| Ok(clock_settime(ClockId::Realtime, now)?)) {
            console::say(format_args!("cannot set the clock: {error}"));
        }
        if let Err(error) = entropy::reseed(&self.seed) {
            console::say(format_args!("cannot reseed the kernel's random numbers: {error}"));
        }
        boot::set_hostname(&self.vm_id);
        boot::set_machine_id(&self.vm_id);
    }
}

fn from_hex(text: &str) -> Option<[u8; SEED_BYTES]> {
    let mut bytes = [0; SEED_BYTES];
    if text.len() != 2 * SEED_BYTES || !text.is_ascii() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> String {
        format!("resume vm_id=vm-7 mac=52:54:00:00:00:07 unix_ms=1700000000123 seed={}\n", "a5".repeat(SEED_BYTES))
    }

    #[test]
    fn a_whole_line_is_understood_and_its_seed_is_not_shown() {
        let resume = Resume::parse(&line()).unwrap();
        assert_eq!(resume.vm_id, "vm-7");
        assert_eq!(resume.mac.0, [0x52, 0x54, 0, 0, 0, 7]);
        assert_eq!(resume.now, Duration::from_millis(1_700_000_000_123));
        assert_eq!(resume.seed, [0xa5; SEED_BYTES]);
        assert!(!format!("{resume:?}").contains("165"), "{resume:?}");
    }

    #[test]
    fn what_a_newer_host_says_besides_is_passed_over() {
        assert!(Resume::parse(&line().replace("resume ", "resume zone=eu ")).is_some());
    }

    #[test]
    fn anything_less_is_refused() {
        for wrong in ["", "resume", "hello", "resume vm_id=a mac=52:54:00:00:00:07 unix_ms=1"] {
            assert_eq!(Resume::parse(wrong), None, "{wrong}");
        }
        for (from, to) in [("vm_id=vm-7", "vm_id="), ("52:54", "52:5x"), ("1700", "x"), ("a5a5", "zz"), ("seed", "s")] {
            assert_eq!(Resume::parse(&line().replacen(from, to, 1)), None, "{from} -> {to}");
        }
    }

    #[test]
    fn noise_before_the_line_does_not_matter_and_an_end_is_an_error() {
        let mut input = io::Cursor::new(format!("\nnoise\n{}", line()));
        assert_eq!(read(&mut input).unwrap().vm_id, "vm-7");
        assert_eq!(read(&mut input).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
