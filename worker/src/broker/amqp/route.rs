//! What a routing key needs before it may be published.
//!
//! RabbitMQ's `mandatory` flag cannot tell a job that reaches its queue from one that only reaches
//! the history: the history takes every key. So what must be there is read from the key, and
//! declared (a pool's queues) or looked up (a host's queue) first.

use stoker_schemas::{HostName, PoolName, topology::DELAY_TIERS_MS};

use crate::ports::broker::BrokerError;

/// Where a key leads, besides the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// To a pool's queue.
    Pool(PoolName),
    /// To a delay queue, and to a pool's queue when it is due.
    DelayedPool(PoolName),
    /// To one host.
    Host(HostName),
    /// Nowhere in particular.
    History,
}

/// Reads a key.
pub(super) fn of(key: &str) -> Result<Route, BrokerError> {
    let parts: Vec<&str> = key.split('.').collect();
    let route = match parts.as_slice() {
        ["job", "enqueued", pool, lane] if is_lane(lane) => pool.parse().ok().map(Route::Pool),
        ["job", "retry-scheduled" | "deferred", pool, lane, tier] if is_lane(lane) && is_tier(tier) => {
            pool.parse().ok().map(Route::DelayedPool)
        }
        ["job", "enqueued" | "retry-scheduled", ..] | ["job", "deferred", _, ..] => None,
        ["command", "host", host] => host.parse().ok().map(Route::Host),
        ["command", "host", ..] => None,
        _ => Some(Route::History),
    };
    // 255 bytes is AMQP's limit for a key; lapin panics beyond it.
    route.filter(|_| key.len() <= 255).ok_or_else(|| BrokerError::Unroutable(clip(key)))
}

fn is_lane(lane: &str) -> bool {
    matches!(lane, "high" | "normal")
}

fn is_tier(tier: &str) -> bool {
    tier.parse().is_ok_and(|ms: u64| DELAY_TIERS_MS.contains(&ms))
}

fn clip(key: &str) -> String {
    key.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_name_what_must_exist() {
        let pool: PoolName = "gpu".parse().expect("a valid name");
        assert_eq!(of("job.enqueued.gpu.high").ok(), Some(Route::Pool(pool.clone())));
        assert_eq!(of("job.deferred.gpu.normal.500").ok(), Some(Route::DelayedPool(pool)));
        assert_eq!(of("command.all").ok(), Some(Route::History));
        assert!(matches!(of("command.host.h1"), Ok(Route::Host(_))));
        assert_eq!(of("vm.ready").ok(), Some(Route::History));
    }

    #[test]
    fn work_that_no_queue_could_take_is_refused() {
        let long = "x".repeat(256);
        for key in [
            "job.enqueued.gpu",
            "job.enqueued.gpu.urgent",
            "job.enqueued.GPU.high",
            "job.deferred.gpu.normal.501",
            "job.retry-scheduled.gpu.normal",
            "command.host.a.b",
            &long,
        ] {
            assert!(matches!(of(key), Err(BrokerError::Unroutable(_))), "{key}");
        }
    }
}
