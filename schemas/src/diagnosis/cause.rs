//! The causes by name. Names are stable: they stand in events, filters and retry policies.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! causes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $title:literal, retry $retry:literal;)*) => {
        /// Why an attempt failed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Cause {
            $($(#[$doc])* $variant,)*
        }

        impl Cause {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Stable name (`agent_not_listening`).
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// For headings (`agent not listening`).
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title),* }
            }

            /// Whether another attempt may help without anybody changing anything.
            pub const fn retryable(self) -> bool {
                match self { $(Self::$variant => $retry),* }
            }
        }
    };
}

causes! {
    /// Kernel line and DHCP both own eth0.
    ConflictingNetwork = "conflicting_network", "conflicting network configuration", retry false;
    /// The guest never asked for an address.
    NoDhcpRequest = "no_dhcp_request", "no DHCP request", retry true;
    /// The guest asked, the server gave nothing.
    DhcpUnanswered = "dhcp_unanswered", "DHCP unanswered", retry true;
    /// The tap is not on the bridge.
    TapNotBridged = "tap_not_bridged", "tap not on the bridge", retry true;
    /// The guest has a lease and does not answer on it.
    AddressUnreachable = "address_unreachable", "lease but unreachable", retry true;
    /// Nothing listens on the agent's port.
    AgentNotListening = "agent_not_listening", "agent not listening", retry true;
    /// The agent takes connections and never answers.
    AgentHanging = "agent_hanging", "agent hanging", retry true;
    /// The agent answers with another status.
    AgentUnhealthy = "agent_unhealthy", "agent unhealthy", retry true;
    /// The agent's answer lacks the text asked for.
    WrongBody = "wrong_body", "wrong body", retry false;
    /// Another VM answers on this VM's address.
    WrongVm = "wrong_vm", "another VM answered", retry true;
    /// Another machine has the VM's address.
    AddressInUse = "address_in_use", "address in use", retry true;
    /// A unit failed.
    UnitFailed = "unit_failed", "unit failed", retry true;
    /// A unit asked for never started.
    UnitMissing = "unit_missing", "unit not started", retry true;
    /// An empty console, and no other sign of life.
    GuestSilent = "guest_silent", "guest silent", retry true;
    /// The guest's kernel panicked.
    KernelPanic = "kernel_panic", "kernel panic", retry true;
    /// The guest ran out of memory.
    GuestOutOfMemory = "guest_out_of_memory", "guest out of memory", retry false;
    /// A disk of the guest's is full.
    GuestDiskFull = "guest_disk_full", "guest disk full", retry false;
    /// The guest's clock is off.
    ClockWrong = "clock_wrong", "guest clock wrong", retry true;
    /// systemd gave up and asks for a password.
    EmergencyMode = "emergency_mode", "emergency mode", retry true;
    /// Still progressing when time was up.
    SlowBoot = "slow_boot", "slow boot", retry true;
    /// The guest shut itself down.
    GuestExited = "guest_exited", "guest shut down", retry true;
    /// The VMM crashed.
    HypervisorCrashed = "hypervisor_crashed", "hypervisor crashed", retry true;
    /// The VMM refused the configuration.
    HypervisorRefused = "hypervisor_refused", "hypervisor refused", retry false;
    /// The VMM could not be started.
    HypervisorNotStarted = "hypervisor_not_started", "hypervisor not started", retry true;
    /// The image is missing or not what it says.
    ImageInvalid = "image_invalid", "image invalid", retry false;
    /// The host lacks something (disk, devices).
    HostResource = "host_resource", "host out of resource", retry true;
    /// The worker was gone and the VM with it.
    Interrupted = "interrupted", "interrupted", retry true;
    /// No rule explains it.
    Unknown = "unknown", "unknown", retry true;
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Cause {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::ALL.iter().copied().find(|c| c.as_str() == s).ok_or_else(|| format!("unknown cause {s:?}"))
    }
}

impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Cause {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A cause from a newer Stoker must not make an old event unreadable.
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        Ok(text.parse().unwrap_or(Self::Unknown))
    }
}

impl JsonSchema for Cause {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Cause".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<_> = Self::ALL.iter().map(|c| c.as_str()).collect();
        json_schema!({ "type": "string", "enum": names })
    }
}
