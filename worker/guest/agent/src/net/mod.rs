//! The guest's network: one interface, one owner of its address, DHCP.

mod client;
mod link;
pub(crate) mod message;

use std::fs;
use std::time::{Duration, Instant};

use smoltcp::wire::EthernetAddress;
use thiserror::Error;

pub use client::run as run_dhcp;
pub use link::{Link, up_loopback};
pub use message::{Client, parse_mac};

/// Where the kernel lists interfaces.
const CLASS_NET: &str = "/sys/class/net";
/// Time for the interface to appear after its driver was loaded.
const APPEAR_DEADLINE: Duration = Duration::from_secs(5);
/// Pause between looks at the list.
const APPEAR_PAUSE: Duration = Duration::from_millis(5);

/// Why the network could not be brought up.
#[derive(Debug, Error)]
pub enum NetError {
    /// No network device, or its driver is missing.
    #[error("no network interface appeared within {APPEAR_DEADLINE:?} (is there a network device, and its driver?)")]
    NoInterface,
    /// The kernel refused.
    #[error("{action}: {source}")]
    Kernel {
        /// What was asked for.
        action: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

impl NetError {
    /// For `map_err`: the action that the error stopped.
    pub(crate) fn during(action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Kernel { action, source }
    }
}

/// The first interface with a hardware address, as soon as there is one.
pub fn wait_for_interface() -> Result<(String, EthernetAddress), NetError> {
    let started = Instant::now();
    loop {
        if let Some(found) = first_interface() {
            return Ok(found);
        }
        if started.elapsed() > APPEAR_DEADLINE {
            return Err(NetError::NoInterface);
        }
        std::thread::sleep(APPEAR_PAUSE);
    }
}

/// The hardware address of the first interface, as the kernel shows it.
pub fn first_mac() -> Option<String> {
    let (_, mac) = first_interface()?;
    Some(mac.0.map(|byte| format!("{byte:02x}")).join(":"))
}

fn first_interface() -> Option<(String, EthernetAddress)> {
    let mut names: Vec<_> = fs::read_dir(CLASS_NET)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name != "lo")
        .collect();
    names.sort();
    names.into_iter().find_map(|name| {
        let text = fs::read_to_string(format!("{CLASS_NET}/{name}/address")).ok()?;
        Some((name, parse_mac(text.trim())?))
    })
}
