//! Which queues a routing key leads to: the bindings that the RabbitMQ adapter declares.

use stoker_schemas::topology::{DELAY_TIERS_MS, Names};

/// Where a key leads, besides the history.
#[derive(Debug, PartialEq, Eq)]
pub enum Way {
    /// To these queues; the first use declares those of a pool.
    Work(String),
    /// To the command queue of every host.
    AllHosts,
    /// To one host's.
    Host(String),
    /// To nobody but readers of the history.
    HistoryOnly,
    /// Work without a queue.
    Nowhere,
}

const LANES: [&str; 2] = ["high", "normal"];

/// Where a key leads from the events' exchange.
pub fn way(key: &str) -> Way {
    let parts: Vec<&str> = key.split('.').collect();
    match parts[..] {
        ["job", "enqueued", pool, lane] if LANES.contains(&lane) => Way::Work(lane_queue(pool, lane)),
        ["job", "retry-scheduled" | "deferred", _, lane, tier] if LANES.contains(&lane) => {
            let known = tier.parse().ok().filter(|tier| DELAY_TIERS_MS.contains(tier));
            known.map_or(Way::Nowhere, |tier| Way::Work(Names::default().delay_queue(tier)))
        }
        ["job", "enqueued" | "retry-scheduled" | "deferred", ..] => Way::Nowhere,
        // Nothing is published there, unless a fault is put in.
        ["dead", _] => Way::Work(super::DEAD.to_owned()),
        ["command", "all"] => Way::AllHosts,
        ["command", "host", host] => Way::Host(host_queue(host)),
        _ => Way::HistoryOnly,
    }
}

/// Where what left a delay queue goes.
pub fn due_way(key: &str) -> Option<String> {
    let mut parts = key.split('.').skip(2);
    Some(lane_queue(parts.next()?, parts.next()?))
}

/// Name of a lane's queue.
pub fn lane_queue(pool: &str, lane: &str) -> String {
    format!("stoker.jobs.{pool}.{lane}")
}

/// Name of a host's command queue.
pub fn host_queue(host: &str) -> String {
    format!("stoker.host.{host}")
}
