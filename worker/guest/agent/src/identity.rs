//! `/identity`: everything in which two VMs must differ, also when they are copies of one template.

use std::fmt::Write as _;
use std::fs;

use serde::Serialize;

use crate::{boot, entropy, net};

/// The body of `/identity`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Identity<'a> {
    vm_id: &'a str,
    hostname: String,
    machine_id: Option<String>,
    mac: Option<String>,
    /// The clock, ms since 1970.
    unix_ms: i64,
    /// Fresh bytes of the kernel's random numbers, in hex; null while it has none.
    random: Option<String>,
}

/// The JSON.
pub fn show(vm_id: &str) -> String {
    let identity = Identity {
        vm_id,
        hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        machine_id: fs::read_to_string(boot::MACHINE_ID).ok().map(|id| id.trim().to_owned()),
        mac: net::first_mac(),
        unix_ms: jiff::Timestamp::now().as_millisecond(),
        random: entropy::draw::<16>().map(hex),
    };
    // Strings and numbers always serialise.
    serde_json::to_string(&identity).unwrap_or_default()
}

fn hex(bytes: [u8; 16]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_vm_and_draws_anew_each_time() {
        let read = || serde_json::from_str::<serde_json::Value>(&show("vm-7")).unwrap();
        let (first, second) = (read(), read());
        assert_eq!(first["vmId"], "vm-7");
        assert_eq!(first["random"].as_str().unwrap().len(), 32);
        assert_ne!(first["random"], second["random"]);
    }
}
