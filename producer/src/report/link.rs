//! How a VM was connected: which checks of its network there are follows from that.

use stoker_schemas::JobSpec;
use stoker_schemas::image::Driver;
use stoker_schemas::spec::Network;

use crate::view::AttemptView;

/// A VM's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// A tap on the bridge; the guest gets its address by DHCP.
    Dhcp,
    /// A tap on the bridge; the address is on the kernel line.
    Static,
    /// QEMU's user network, which assigns the address and forwards a port.
    User,
    /// A simulated network, with or without DHCP.
    Simulated {
        /// DHCP messages are seen.
        dhcp: bool,
    },
}

impl Link {
    /// The network of an attempt. Without its first event, it is taken for one on the bridge.
    pub fn of(a: &AttemptView, spec: Option<&JobSpec>) -> Self {
        let is_static = spec.is_some_and(|spec| matches!(spec.network, Network::Static(_)));
        match (a.driver, a.address) {
            (Some(Driver::Simulated), address) => Self::Simulated { dhcp: address.is_some() && !is_static },
            (Some(Driver::Qemu), None) => Self::User,
            _ if is_static => Self::Static,
            _ => Self::Dhcp,
        }
    }

    /// Why there is no DHCP to see.
    pub const fn without_dhcp(self) -> Option<&'static str> {
        match self {
            Self::Dhcp | Self::Simulated { dhcp: true } => None,
            Self::Static => Some("static address"),
            Self::User => Some("QEMU's user network assigns the address"),
            Self::Simulated { dhcp: false } => Some("simulated network without DHCP"),
        }
    }

    /// Why a TCP connection says nothing about the guest.
    pub const fn without_tcp(self) -> Option<&'static str> {
        match self {
            Self::Dhcp | Self::Static | Self::Simulated { .. } => None,
            Self::User => Some("QEMU itself accepts connections on a user network"),
        }
    }
}
