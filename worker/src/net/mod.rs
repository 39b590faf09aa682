//! VM networking on a real host: a network namespace, a bridge with a DHCP server that knows each
//! VM by its MAC, a tap per attempt; or, without privileges, a loopback port per VM.
//!
//! The way through: [`namespace`] (threads that live inside) -> [`bridge`] (the adapter) over
//! `links` (rtnetlink), `tap` (the one ioctl), `dhcp` (dnsmasq, its reservations and its words).

pub mod bridge;
pub(crate) mod dhcp;
mod firewall;
mod links;
pub mod namespace;
pub mod tap;
pub mod user;

pub use bridge::{BridgeConfig, BridgedNetwork};
pub use namespace::Namespace;
pub use user::UserNetwork;

use crate::ports::net::NetError;

/// An operating system error, told apart where the remedy differs.
fn system(what: impl Into<String>, cause: &std::io::Error) -> NetError {
    let what = what.into();
    match cause.kind() {
        std::io::ErrorKind::PermissionDenied => NetError::Permission { what },
        _ => NetError::System { what, cause: cause.to_string() },
    }
}
