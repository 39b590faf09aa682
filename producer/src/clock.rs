//! Where times come from: handed in, so that a test or a simulation can hold the clock.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use stoker_schemas::Time;

/// Answers "now".
pub type Clock = Arc<dyn Fn() -> Time + Send + Sync>;

/// The host's wall clock.
pub fn system() -> Clock {
    Arc::new(|| Time::UNIX_EPOCH.plus(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()))
}
