//! What this process counts of its own work, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts up from the start of the process.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// So many until now.
    pub fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Deliveries that were dropped unsettled. Each is a fault of the program; they were given back to their queues.
pub static DELIVERIES_DROPPED: Count = Count::new();
/// Channels renewed because deliveries were open that nothing accounted for.
pub static CHANNELS_UNACCOUNTED: Count = Count::new();
/// Channels renewed because their consumers got nothing although messages waited.
pub static CHANNELS_STARVED: Count = Count::new();
