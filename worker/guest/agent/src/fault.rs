//! Switches that make a guest broken on purpose, so that the host's diagnosis can be tested
//! against the real thing.

use std::time::Duration;

/// Longest delay that can be asked for; more would outlast every deadline on the host.
const MAX_DELAY: Duration = Duration::from_mins(10);

/// The faults of one guest; the default is a healthy guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults {
    /// `no-agent`: nothing listens on the agent's port.
    pub no_agent: bool,
    /// `no-dhcp`: the interface is up, but nobody asks for an address.
    pub no_dhcp: bool,
    /// `panic`: the first process ends, which makes the kernel panic.
    pub panic: bool,
    /// `status=503`: what `/health` answers.
    pub status: Option<u16>,
    /// `body=text`: what `/health` says instead of its JSON.
    pub body: Option<String>,
    /// `delay-ms=500`: how long `/health` waits before it answers.
    pub delay: Duration,
    /// `unit-failed=Name`: units that the console reports as failed.
    pub failed_units: Vec<String>,
    /// What could not be understood. A misspelt fault must not look like a healthy guest, so
    /// a guest with one of these refuses to boot.
    pub unknown: Vec<String>,
}

impl Faults {
    /// Adds what one `stoker.fault=` holds: switches between commas. The text of `body=`
    /// may hold commas itself, so it reaches to the end.
    pub fn add(&mut self, list: &str) {
        let mut rest = list;
        while !rest.is_empty() {
            if let Some(text) = rest.strip_prefix("body=") {
                self.body = Some(text.to_owned());
                return;
            }
            let (switch, tail) = rest.split_once(',').unwrap_or((rest, ""));
            self.add_one(switch);
            rest = tail;
        }
    }

    /// True when the console is to report this unit as failed.
    pub fn fails_unit(&self, name: &str) -> bool {
        self.failed_units.iter().any(|unit| unit == name)
    }

    fn add_one(&mut self, switch: &str) {
        if self.set(switch).is_none() {
            self.unknown.push(switch.to_owned());
        }
    }

    /// `None`: no such switch, or a value out of range.
    fn set(&mut self, switch: &str) -> Option<()> {
        match switch.split_once('=') {
            None if switch == "no-agent" => self.no_agent = true,
            None if switch == "no-dhcp" => self.no_dhcp = true,
            None if switch == "panic" => self.panic = true,
            Some(("status", code)) => {
                self.status = Some(code.parse().ok().filter(|code| (200..=599).contains(code))?);
            }
            Some(("delay-ms", value)) => {
                let delay = value.parse().map(Duration::from_millis).ok()?;
                self.delay = Some(delay).filter(|delay| *delay <= MAX_DELAY)?;
            }
            Some(("unit-failed", name)) if !name.is_empty() => self.failed_units.push(name.to_owned()),
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(list: &str) -> Faults {
        let mut faults = Faults::default();
        faults.add(list);
        faults
    }

    #[test]
    fn plain_switches() {
        let all = faults("no-agent,no-dhcp,panic");
        assert!(all.no_agent && all.no_dhcp && all.panic);
    }

    #[test]
    fn a_body_keeps_its_commas_and_equal_signs() {
        let broken = faults(r#"status=500,body={"a":1,"b=c":2}"#);
        assert_eq!(broken.status, Some(500));
        assert_eq!(broken.body.as_deref(), Some(r#"{"a":1,"b=c":2}"#));
    }

    #[test]
    fn what_is_not_understood_is_kept_for_the_complaint() {
        for wrong in ["no-such", "status", "status=42", "status=abc", "delay-ms=99999999999", "delay-ms=-1", "panic=1"]
        {
            assert_eq!(faults(wrong).unknown, [wrong]);
        }
        assert_eq!(faults("no-dhcp,,status=503").unknown, [""]);
        assert!(faults("no-dhcp,status=503,delay-ms=600000").unknown.is_empty());
    }

    #[test]
    fn failed_units_are_matched_by_their_whole_name() {
        let broken = faults("unit-failed=Network Configuration");
        assert!(broken.fails_unit("Network Configuration"));
        assert!(!broken.fails_unit("Network"));
    }
}
