//! The kernel command line: `stoker.*` parameters become [`Settings`].
//!
//! A guest has no other configuration. Unknown parameters belong to the kernel and are
//! ignored. A port that cannot be read leaves the default, because a guest that boots can
//! be diagnosed from outside.

use crate::fault::Faults;

/// Port of the agent when the command line does not name one.
pub const DEFAULT_PORT: u16 = 8080;

/// What the guest was told by its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Which VM this is; `/health` repeats it, so that an answer can be told from another VM's.
    pub vm_id: String,
    /// TCP port of the agent.
    pub port: u16,
    /// Whether this guest is to become a template: it waits, without an identity, to be continued as
    /// many VMs (see [`crate::resume`]).
    pub template: bool,
    /// Ways in which this guest is asked to be broken.
    pub faults: Faults,
}

impl Default for Settings {
    fn default() -> Self {
        Self { vm_id: String::new(), port: DEFAULT_PORT, template: false, faults: Faults::default() }
    }
}

impl Settings {
    /// Reads a command line as the kernel shows it in `/proc/cmdline`.
    pub fn parse(line: &str) -> Self {
        let mut settings = Self::default();
        for parameter in split(line) {
            let Some((key, value)) = parameter.split_once('=') else {
                continue;
            };
            let value = unquote(value);
            match key {
                "stoker.vm_id" => settings.vm_id = value.to_owned(),
                "stoker.port" => settings.port = value.parse().unwrap_or(DEFAULT_PORT),
                "stoker.template" => settings.template = value == "1",
                "stoker.fault" => settings.faults.add(value),
                _ => {}
            }
        }
        settings
    }
}

/// Splits at white space outside double quotes, as the kernel does. Quotes around a whole
/// parameter are dropped; inside one they stay, so that a value may be JSON.
fn split(line: &str) -> Vec<&str> {
    let mut quoted = false;
    line.split(move |character: char| {
        quoted ^= character == '"';
        character.is_whitespace() && !quoted
    })
    .filter(|parameter| !parameter.is_empty())
    .map(unquote)
    .collect()
}

/// Drops a quote at the start, and then one at the end.
fn unquote(text: &str) -> &str {
    match text.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').unwrap_or(rest),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn reads_the_parameters_of_stoker_and_ignores_the_kernels() {
        let settings = Settings::parse("console=ttyS0 quiet stoker.vm_id=vm-7 panic=-1 stoker.port=9090\n");
        assert_eq!(settings.vm_id, "vm-7");
        assert_eq!(settings.port, 9090);
        assert_eq!(settings.faults, Faults::default());
    }

    #[test]
    fn an_unreadable_port_leaves_the_default() {
        assert_eq!(Settings::parse("stoker.port=http").port, DEFAULT_PORT);
        assert_eq!(Settings::parse("stoker.port=70000").port, DEFAULT_PORT);
    }

    #[test]
    fn only_a_one_makes_a_template() {
        assert!(Settings::parse("stoker.template=1").template);
        assert!(!Settings::parse("stoker.template=0 stoker.template").template);
    }

    #[test]
    fn quotes_hold_white_space_together() {
        let settings = Settings::parse(r#"a "stoker.fault=unit-failed=VM Browser OAuth Agent" b"#);
        assert_eq!(settings.faults.failed_units, ["VM Browser OAuth Agent"]);
        let inner = Settings::parse(r#"stoker.fault="unit-failed=X Virtual Frame Buffer""#);
        assert_eq!(inner.faults.failed_units, ["X Virtual Frame Buffer"]);
    }

    #[test]
    fn a_body_may_be_json() {
        let settings = Settings::parse(r#"stoker.fault=body={"status":"not ok","n":1} x"#);
        assert_eq!(settings.faults.body.as_deref(), Some(r#"{"status":"not ok","n":1}"#));
    }

    #[test]
    fn faults_may_be_listed_or_repeated() {
        let settings = Settings::parse("stoker.fault=status=503,delay-ms=20 stoker.fault=no-dhcp");
        assert_eq!(settings.faults.status, Some(503));
        assert_eq!(settings.faults.delay, Duration::from_millis(20));
        assert!(settings.faults.no_dhcp);
    }

    #[test]
    fn an_open_quote_ends_with_the_line() {
        assert_eq!(split("a  \"b c"), ["a", "b c"]);
        assert_eq!(split(""), Vec::<String>::new());
    }
}
