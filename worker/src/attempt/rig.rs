//! Everything a try needs of its host, shared by all tries.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::dirs::Dirs;
use crate::images::ImageStore;
use crate::ports::net::Network;
use crate::ports::probe::Prober;
use crate::ports::vm::Hypervisor;

/// The host's equipment. Cheap to clone.
#[derive(Clone)]
pub struct Rig {
    /// Boots VMs.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Gives them a network.
    pub network: Arc<dyn Network>,
    /// Asks their agents.
    pub prober: Arc<dyn Prober>,
    /// Images by name.
    pub images: Arc<ImageStore>,
    /// Where files go; `None` for simulated guests, which have none.
    pub dirs: Option<Dirs>,
    /// The time.
    pub clock: Clock,
    /// How long a guest may take to stop when somebody asks it to.
    pub stop_grace: Duration,
}
