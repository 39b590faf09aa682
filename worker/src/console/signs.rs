//! What a console's lines say about the boot.

use std::net::Ipv4Addr;

use super::lines::Lines;
use stoker_schemas::limits::{MAX_TEXT_BYTES, clip};

/// Events about units that one console may cause; a guest prints as much as it likes.
const MAX_UNIT_EVENTS: usize = 512;
/// Other events that one console may cause; apart, so that units cannot crowd out a panic.
const MAX_OTHER_EVENTS: usize = 64;
/// All events of one console.
pub(super) const MAX_EVENTS: usize = MAX_UNIT_EVENTS + MAX_OTHER_EVENTS;

/// Something the console told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsoleEvent {
    /// The first byte.
    KernelStarted,
    /// systemd begins to start a unit.
    UnitStarting(String),
    /// A unit is up (or has done its work, or a target is reached).
    UnitStarted(String),
    /// A unit failed, itself or for lack of one it needs.
    UnitFailed(String),
    /// The kernel gave up; its reason.
    KernelPanic(String),
    /// The kernel killed a process for memory; its words.
    OutOfMemory(String),
    /// Something could not be written; the line.
    DiskFull(String),
    /// A certificate is not of this time; the line.
    ClockWrong(String),
    /// systemd gave up and offers a shell.
    EmergencyMode,
    /// The kernel configured the network itself (`ip=`), with this address.
    IpConfig {
        /// The address.
        address: Ipv4Addr,
    },
}

/// Reads a console as it comes. The same bytes give the same events, however they are cut.
#[derive(Debug, Default)]
pub struct Parser {
    lines: Lines,
    reader: Reader,
}

#[derive(Debug, Default)]
struct Reader {
    any: bool,
    /// `IP-Config: Complete` was seen; the address follows on one of the next lines.
    in_ip_config: bool,
    unit_events: usize,
    other_events: usize,
}

impl Parser {
    /// Takes the next bytes.
    pub fn feed(&mut self, bytes: &[u8], each: &mut impl FnMut(ConsoleEvent)) {
        let reader = &mut self.reader;
        if !bytes.is_empty() && !std::mem::replace(&mut reader.any, true) {
            reader.tell(ConsoleEvent::KernelStarted, each);
        }
        self.lines.feed(bytes, |line| reader.line(line, each));
    }

    /// Takes what was begun and not ended by a newline.
    pub fn finish(&mut self, each: &mut impl FnMut(ConsoleEvent)) {
        let reader = &mut self.reader;
        self.lines.finish(|line| reader.line(line, each));
    }
}

impl Reader {
    fn line(&mut self, line: &str, each: &mut impl FnMut(ConsoleEvent)) {
        // The kernel's own words, or those of klibc's ipconfig (`IP-Config: eth0 complete:`), which does
        // the same in an initramfs.
        if line.contains("IP-Config: Complete") || (line.starts_with("IP-Config: ") && line.contains(" complete")) {
            self.in_ip_config = true;
        }
        if self.in_ip_config
            && let Some(address) = kernel_address(line)
        {
            self.in_ip_config = false;
            self.tell(ConsoleEvent::IpConfig { address }, each);
        }
        if let Some(event) = unit(line).or_else(|| trouble(line)) {
            self.tell(event, each);
        }
    }

    fn tell(&mut self, event: ConsoleEvent, each: &mut impl FnMut(ConsoleEvent)) {
        use ConsoleEvent::{UnitFailed, UnitStarted, UnitStarting};
        let (count, max) = match event {
            UnitStarting(_) | UnitStarted(_) | UnitFailed(_) => (&mut self.unit_events, MAX_UNIT_EVENTS),
            _ => (&mut self.other_events, MAX_OTHER_EVENTS),
        };
        if *count < max {
            *count += 1;
            each(event);
        }
    }
}

/// systemd's status lines, at the start of a line only: in the middle they are somebody's quote.
fn unit(line: &str) -> Option<ConsoleEvent> {
    if let Some(rest) = line.strip_prefix("[  OK  ] ") {
        let started = ["Started ", "Finished ", "Reached target "];
        let name = started.iter().find_map(|verb| rest.strip_prefix(verb))?;
        return Some(ConsoleEvent::UnitStarted(unit_name(name)));
    }
    if let Some(rest) = line.strip_prefix("[FAILED] ") {
        return Some(ConsoleEvent::UnitFailed(unit_name(rest.strip_prefix("Failed to start ")?)));
    }
    if let Some(rest) = line.strip_prefix("[DEPEND] ") {
        return Some(ConsoleEvent::UnitFailed(unit_name(rest.strip_prefix("Dependency failed for ")?)));
    }
    let starting = line.strip_prefix("         Starting ")?;
    Some(ConsoleEvent::UnitStarting(unit_name(starting)))
}

/// The description, which is what `StatusUnitFormat=description` shows: `combined` writes
/// `foo.service - Description`.
fn unit_name(text: &str) -> String {
    let text = text.trim_end().trim_end_matches(['.', '…']);
    let name = match text.split_once(" - ") {
        Some((id, description)) if id.contains('.') && !id.contains(' ') => description,
        _ => text,
    };
    clip(name.trim(), MAX_TEXT_BYTES)
}

fn trouble(line: &str) -> Option<ConsoleEvent> {
    let after = |mark: &str| line.split_once(mark).map(|(_, rest)| clip(rest.trim(), MAX_TEXT_BYTES));
    if let Some(why) = after("Kernel panic - not syncing:") {
        return Some(ConsoleEvent::KernelPanic(why));
    }
    if let Some(what) = after("Out of memory:") {
        return Some(ConsoleEvent::OutOfMemory(what));
    }
    let says = |words: &[&str]| words.iter().any(|words| line.contains(words));
    // In the words of the C library, and of OpenSSL, Go and GnuTLS.
    if says(&["No space left on device"]) {
        return Some(ConsoleEvent::DiskFull(clip(line.trim(), MAX_TEXT_BYTES)));
    }
    if says(&["certificate is not yet valid", "certificate has expired", "certificate is not yet activated"]) {
        return Some(ConsoleEvent::ClockWrong(clip(line.trim(), MAX_TEXT_BYTES)));
    }
    let emergency = line.contains("You are in emergency mode") || line.contains("Entering emergency mode");
    emergency.then_some(ConsoleEvent::EmergencyMode)
}

fn kernel_address(line: &str) -> Option<Ipv4Addr> {
    let (_, rest) = line.split_once("ipaddr=").or_else(|| line.split_once(" address: "))?;
    rest.trim_start().split(|c: char| c != '.' && !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events(pieces: &[&[u8]]) -> Vec<ConsoleEvent> {
        let (mut parser, mut out) = (Parser::default(), Vec::new());
        for piece in pieces {
            parser.feed(piece, &mut |event| out.push(event));
        }
        parser.finish(&mut |event| out.push(event));
        out
    }

    const BOOT: &str = "[    0.000000] Linux version 6.1.0\r\n\
        [    1.203311] IP-Config: Complete:\r\n\
        [    1.203312]      device=eth0, hwaddr=02:00:00:00:00:01, ipaddr=192.168.100.2, mask=255.255.255.0\r\n\
        \x20        Starting agent.service - VM Browser OAuth Agent...\r\n\
        [\x1b[0;32m  OK  \x1b[0m] Started \x1b[0;1;39mVM Browser OAuth Agent\x1b[0m.\r\n\
        [  OK  ] Reached target Multi-User System.\r\n\
        [\x1b[0;1;31mFAILED\x1b[0m] Failed to start openbox.service - Openbox Window Manager.\r\n\
        [DEPEND] Dependency failed for Local File Systems.\r\n\
        [   12.0] Out of memory: Killed process 321 (node) total-vm:1\r\n\
        You are in emergency mode. After logging in, type \"journalctl -xb\"\r\n\
        [   13.0] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0";

    #[test]
    fn a_boot_is_read() {
        use ConsoleEvent::*;
        let s = str::to_owned;
        let expected = [
            KernelStarted,
            IpConfig { address: Ipv4Addr::new(192, 168, 100, 2) },
            UnitStarting(s("VM Browser OAuth Agent")),
            UnitStarted(s("VM Browser OAuth Agent")),
            UnitStarted(s("Multi-User System")),
            UnitFailed(s("Openbox Window Manager")),
            UnitFailed(s("Local File Systems")),
            OutOfMemory(s("Killed process 321 (node) total-vm:1")),
            EmergencyMode,
            KernelPanic(s("Attempted to kill init! exitcode=0x0")),
        ];
        assert_eq!(events(&[BOOT.as_bytes()]), expected);
    }

    #[test]
    fn an_initramfs_that_does_what_ip_asks_for_is_read_as_the_kernel() {
        let console = "IP-Config: eth0 hardware address 02:e6:2c:bb:06:c1 mtu 1500\n\
            IP-Config: eth0 guessed broadcast address 192.168.100.255\n\
            IP-Config: eth0 complete:\n\
            \x20address: 192.168.100.2    broadcast: 192.168.100.255  netmask: 255.255.255.0   \n";
        let address = Ipv4Addr::new(192, 168, 100, 2);
        assert_eq!(events(&[console.as_bytes()]), [ConsoleEvent::KernelStarted, ConsoleEvent::IpConfig { address }]);
    }

    #[test]
    fn a_flood_of_units_does_not_crowd_out_a_panic() {
        let flood = "[  OK  ] Started X.\n".repeat(10_000) + "Kernel panic - not syncing: late\n";
        let events = events(&[flood.as_bytes()]);
        assert!(events.len() <= MAX_EVENTS);
        assert_eq!(events.last(), Some(&ConsoleEvent::KernelPanic("late".to_owned())));
    }

    #[test]
    fn a_full_disk_and_a_wrong_clock_are_read_in_their_own_words() {
        let full = "[   61.2] fallocate[231]: fallocate failed: No space left on device";
        let early = "[   62.0] agent: x509: certificate has expired or is not yet valid: current time 2001-01-01";
        let console = format!("{full}\n{early}\n");
        let told = [
            ConsoleEvent::KernelStarted,
            ConsoleEvent::DiskFull(full.to_owned()),
            ConsoleEvent::ClockWrong(early.to_owned()),
        ];
        assert_eq!(events(&[console.as_bytes()]), told);
    }

    #[test]
    fn quotes_of_status_lines_do_not_count() {
        assert_eq!(events(&[b"agent: saw '[  OK  ] Started X.'\n"]), [ConsoleEvent::KernelStarted]);
    }

    proptest! {
        #[test]
        fn any_bytes_cut_anywhere_give_the_same_events(
            noise in proptest::collection::vec(any::<u8>(), 0..400),
            cuts in proptest::collection::vec(0usize..2_000, 0..12),
        ) {
            let whole = [noise.as_slice(), BOOT.as_bytes(), &noise].concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(whole.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts {
                pieces.push(&whole[from..cut]);
                from = cut;
            }
            pieces.push(&whole[from..]);
            prop_assert_eq!(events(&pieces), events(&[&whole]));
        }
    }
}
