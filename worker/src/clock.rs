//! The one place that reads a clock. Wall time once at start, then the runtime's monotonic clock:
//! a step of the host's clock cannot make a deadline jump or an event go back in time, and a test
//! with paused time sees time stand still.

use std::time::{SystemTime, UNIX_EPOCH};

use stoker_schemas::Time;
use tokio::time::Instant;

/// A clock that only goes forward.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    base: Time,
    start: Instant,
}

impl Clock {
    /// Starts at the host's wall time.
    pub fn system() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::starting_at(Time::UNIX_EPOCH.plus(since_epoch))
    }

    /// Starts at a given time (simulation).
    pub fn starting_at(base: Time) -> Self {
        Self { base, start: Instant::now() }
    }

    /// Now.
    pub fn now(&self) -> Time {
        self.base.plus(self.start.elapsed())
    }
}
