//! A simulated guest's life, read from its kernel arguments.
//!
//! | argument | meaning |
//! | --- | --- |
//! | `sim.boot-ms=<n>` | starting the VMM takes this long |
//! | `sim.boot=refused` | the VMM refuses to boot |
//! | `sim.boot=silent` | the VMM runs and the guest does nothing: no console, no packet |
//! | `sim.dhcp-ms=<n>` | the lease is confirmed after this long (default 0) |
//! | `sim.dhcp=none` | the guest has no DHCP client |
//! | `sim.dhcp=silent` | the guest looks for a server, none answers |
//! | `sim.dhcp=refused` | the server refuses |
//! | `sim.healthy-ms=<n>` | the agent answers after this long (default 0) |
//! | `sim.agent=refused` | nothing ever listens on the agent's port |
//! | `sim.agent=never` | connections to the agent are never taken (packets vanish) |
//! | `sim.agent=hang` | the agent takes connections and never answers |
//! | `sim.down-ms=<n>` | the agent stops listening after this long |
//! | `sim.status=<code>` | HTTP status of its answers (default 200) |
//! | `sim.body=<text>` | body of its answers, `+` for a space |
//! | `sim.id=<text>`, `sim.id=none` | it claims to be another VM, or says nothing about who it is |
//! | `sim.unit-failed=<name>` | the console says that this unit failed; `+` for a space |
//! | `sim.panic-ms=<n>` | kernel panic, then the VMM exits with 0 |
//! | `sim.crash-ms=<n>` | the VMM dies of SIGSEGV |
//! | `sim.exit-ms=<n>` | the guest powers off |
//! | `sim.stop-ms=<n>`, `sim.stop=ignored` | it takes this long to stop when asked (default 0), or never does |
//! | `sim.unlucky=<percent>` | this share of VMs, picked by their id, behaves as with `sim.agent=refused` |
//!
//! Times count from the boot. An argument of that kind which is not in the table is refused: a
//! misspelt fault must not look like a healthy guest.

use std::time::Duration;

use stoker_schemas::VmId;

/// What DHCP does for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dhcp {
    /// Confirmed after this long.
    Lease(Duration),
    /// The guest sends nothing.
    NoClient,
    /// The guest sends, nobody answers.
    Silent,
    /// The server refuses.
    Refused,
}

/// How the agent treats connections once it listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agent {
    /// Answers.
    Answers,
    /// Takes them, says nothing.
    Hangs,
    /// They time out.
    Vanishes,
}

/// Who the agent says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// The VM it is.
    Own,
    /// Somebody else.
    Other(String),
    /// It does not say.
    Nothing,
}

/// How the VMM ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndKind {
    /// Kernel panic.
    Panic,
    /// SIGSEGV.
    Crash,
    /// Power off.
    Exit,
}

/// A guest's life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// How long the VMM takes to start.
    pub boot: Duration,
    /// Whether it refuses to.
    pub refuse: bool,
    /// Whether the guest never does anything.
    pub silent: bool,
    /// What DHCP does.
    pub dhcp: Dhcp,
    /// When the agent listens; `None` for never.
    pub healthy: Option<Duration>,
    /// How the agent treats connections.
    pub agent: Agent,
    /// When the agent stops listening.
    pub down: Option<Duration>,
    /// HTTP status of its answers.
    pub status: u16,
    /// Body of its answers, instead of the usual one.
    pub body: Option<String>,
    /// Who it says it is.
    pub claim: Claim,
    /// A unit the console reports as failed.
    pub unit_failed: Option<String>,
    /// The first of the ends asked for.
    pub end: Option<(Duration, EndKind)>,
    /// How long stopping takes; `None` when it ignores being asked.
    pub stop: Option<Duration>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            boot: Duration::ZERO,
            refuse: false,
            silent: false,
            dhcp: Dhcp::Lease(Duration::ZERO),
            healthy: Some(Duration::ZERO),
            agent: Agent::Answers,
            down: None,
            status: 200,
            body: None,
            claim: Claim::Own,
            unit_failed: None,
            end: None,
            stop: Some(Duration::ZERO),
        }
    }
}

impl Script {
    /// Reads the `sim.*` arguments of a kernel command line.
    pub fn parse(kernel_args: &str, vm: VmId) -> Result<Self, String> {
        let mut script = Self::default();
        let ours = kernel_args.split_ascii_whitespace().filter_map(|arg| arg.strip_prefix("sim."));
        for arg in ours {
            let (name, value) = arg.split_once('=').map_or((arg, None), |(name, value)| (name, Some(value)));
            script
                .set(name, value, vm)
                .ok_or_else(|| format!("kernel argument sim.{arg} is unknown or has a wrong value"))?;
        }
        Ok(script)
    }

    fn set(&mut self, name: &str, value: Option<&str>, vm: VmId) -> Option<()> {
        match (name, value) {
            ("boot", Some("refused")) => self.refuse = true,
            ("boot", Some("silent")) => (self.silent, self.dhcp, self.healthy) = (true, Dhcp::NoClient, None),
            ("agent", Some("refused")) => self.healthy = None,
            ("agent", Some("never")) => self.agent = Agent::Vanishes,
            ("agent", Some("hang")) => self.agent = Agent::Hangs,
            ("boot-ms", Some(value)) => self.boot = millis(value)?,
            ("healthy-ms", Some(value)) => self.healthy = Some(millis(value)?),
            ("down-ms", Some(value)) => self.down = Some(millis(value)?),
            ("status", Some(value)) => self.status = value.parse().ok().filter(|code| (100..600).contains(code))?,
            ("body", Some(value)) => self.body = Some(value.replace('+', " ")),
            ("unit-failed", Some(value)) => self.unit_failed = Some(value.replace('+', " ")),
            ("panic-ms", Some(value)) => self.end_at(value, EndKind::Panic)?,
            ("crash-ms", Some(value)) => self.end_at(value, EndKind::Crash)?,
            ("exit-ms", Some(value)) => self.end_at(value, EndKind::Exit)?,
            ("stop", Some("ignored")) => self.stop = None,
            ("stop-ms", Some(value)) => self.stop = Some(millis(value)?),
            ("id", Some("none")) => self.claim = Claim::Nothing,
            ("id", Some(other)) => self.claim = Claim::Other(other.to_owned()),
            ("dhcp", Some("none")) => self.dhcp = Dhcp::NoClient,
            ("dhcp", Some("silent")) => self.dhcp = Dhcp::Silent,
            ("dhcp", Some("refused")) => self.dhcp = Dhcp::Refused,
            ("dhcp-ms", Some(value)) => self.dhcp = Dhcp::Lease(millis(value)?),
            ("unlucky", Some(value)) => {
                let percent = value.parse::<u8>().ok().filter(|percent| *percent <= 100)?;
                // The id is a hash already, so its digits are as good as random.
                if vm.0.as_u128() % 100 < u128::from(percent) {
                    self.healthy = None;
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn end_at(&mut self, value: &str, kind: EndKind) -> Option<()> {
        let at = millis(value)?;
        if self.end.is_none_or(|(other, _)| at < other) {
            self.end = Some((at, kind));
        }
        Some(())
    }

    /// When the agent can be reached, if ever.
    pub fn answers_from(&self) -> Option<Duration> {
        match self.dhcp {
            Dhcp::Lease(lease) => self.healthy.map(|healthy| healthy.max(lease)),
            _ => None,
        }
    }

    /// What the guest writes, and when.
    pub fn console(&self) -> Vec<(Duration, String)> {
        if self.silent {
            return Vec::new();
        }
        let mut lines = vec![(Duration::ZERO, "Linux version 6.1.0 (simulated)\r\n".to_owned())];
        if let Dhcp::Lease(at) = self.dhcp {
            lines.push((at, "[  OK  ] Started Network Configuration.\r\n".to_owned()));
        }
        if let Some(name) = &self.unit_failed {
            lines.push((Duration::ZERO, format!("[FAILED] Failed to start {name}.\r\n")));
        }
        if let Some(at) = self.healthy {
            lines.push((at, "[  OK  ] Started VM Browser OAuth Agent.\r\n".to_owned()));
        }
        match self.end {
            Some((at, EndKind::Panic)) => lines.push((at, "Kernel panic - not syncing: simulated\r\n".to_owned())),
            Some((at, EndKind::Exit)) => lines.push((at, "reboot: Power down\r\n".to_owned())),
            Some((_, EndKind::Crash)) | None => {}
        }
        lines.sort_by_key(|(at, _)| *at);
        // What would come after the end never comes.
        let end = self.end.map_or(Duration::MAX, |(at, _)| at);
        lines.retain(|(at, _)| *at <= end);
        lines
    }
}

fn millis(value: &str) -> Option<Duration> {
    value.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &str) -> Result<Script, String> {
        Script::parse(args, VmId(uuid::Uuid::from_u128(150)))
    }

    #[test]
    fn other_arguments_are_left_alone() {
        assert_eq!(parse("console=ttyS0 stoker.vm_id=x root=/dev/vda").unwrap(), Script::default());
    }

    #[test]
    fn a_misspelt_fault_is_refused() {
        for bad in [
            "sim.crsh-ms=1",
            "sim.crash-ms",
            "sim.crash-ms=x",
            "sim.status=99",
            "sim.agent=gone",
            "sim.unlucky=101",
            "sim.",
        ] {
            assert!(parse(bad).is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn the_first_end_wins_and_cuts_the_console() {
        let script = parse("sim.crash-ms=50 sim.panic-ms=10 sim.healthy-ms=20").unwrap();
        assert_eq!(script.end, Some((Duration::from_millis(10), EndKind::Panic)));
        let console = script.console();
        assert!(console.iter().all(|(_, line)| !line.contains("Agent")));
        assert!(console.last().unwrap().1.contains("Kernel panic"));
    }

    #[test]
    fn without_a_lease_nothing_answers() {
        assert_eq!(parse("sim.dhcp=silent").unwrap().answers_from(), None);
        assert_eq!(parse("sim.dhcp-ms=30 sim.healthy-ms=10").unwrap().answers_from(), Some(Duration::from_millis(30)));
    }

    #[test]
    fn bad_luck_follows_the_id() {
        assert_eq!(parse("sim.unlucky=51").unwrap().healthy, None);
        assert!(parse("sim.unlucky=50").unwrap().healthy.is_some());
    }
}
