//! Names of exchanges, queues and routing keys, in one place for every language that talks to the
//! broker (asyncapi.json is generated from here).
//!
//! ```text
//! topic exchange stoker.events
//!   job.enqueued.<pool>.<lane>               -> stoker.jobs.<pool>.<lane>   (quorum)
//!   job.retry-scheduled.<pool>.<lane>.<tier> -> stoker.delay.<tier>         (quorum, TTL)
//!   job.deferred.<pool>.<lane>.<tier>        -> stoker.delay.<tier>         (of earlier releases)
//!   command.all | command.host.<host>        -> stoker.host.<host>          (quorum)
//!   #                                        -> topic exchange stoker.history
//! topic exchange stoker.history              everything, for readers
//!   #                                        -> stoker.log                  (stream)
//! topic exchange stoker.deferred             messages that a host puts back for a while; not for readers
//!   job.deferred.<pool>.<lane>.<tier>        -> stoker.delay.<tier>
//! topic exchange stoker.dead-letter          what RabbitMQ gives up, original routing key
//!   #                                        -> stoker.dead                 (quorum, read by the control plane)
//! topic exchange stoker.due                  what left a delay queue, original routing key
//!   *.*.<pool>.<lane>.#                      -> stoker.jobs.<pool>.<lane>
//! ```
//!
//! The history has an exchange of its own because RabbitMQ confirms a message only when *every*
//! queue it routes to has it: a stream that is down would stop all work with it. An exchange can
//! be unbound at any time; a queue that is down cannot.

use std::time::Duration;

use crate::event::{Event, EventData, HOST_SOURCE, JobDeferred, JobRetryScheduled};
use crate::id::{HostName, PoolName};
use crate::seeded::{self, Bug};
use crate::spec::Priority;

/// Upper bounds of the delay queues, ms. A message carries its exact delay as its own TTL; it can
/// only wait behind messages of its own tier, so it is late by at most its tier's width.
pub const DELAY_TIERS_MS: [u64; 12] =
    [100, 250, 500, 1_000, 2_000, 5_000, 15_000, 60_000, 300_000, 1_800_000, 7_200_000, 86_400_000];

/// What passes through a delay queue only to come out again.
const AT_ONCE: Duration = Duration::from_millis(1);

/// Names under one prefix, so that several Stokers can share a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    prefix: String,
}

impl Default for Names {
    fn default() -> Self {
        Self { prefix: "stoker".to_owned() }
    }
}

impl Names {
    /// Names under another prefix (tests, tenants).
    pub fn with_prefix(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into() }
    }
    /// What all of them begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }
    /// The topic exchange everything is published to.
    pub fn events_exchange(&self) -> String {
        format!("{}.events", self.prefix)
    }
    /// The exchange for messages that are put back for a while. Not bound to the history: nothing happened.
    pub fn deferred_exchange(&self) -> String {
        format!("{}.deferred", self.prefix)
    }
    /// The exchange that delay queues dead-letter to.
    pub fn due_exchange(&self) -> String {
        format!("{}.due", self.prefix)
    }
    /// The exchange that work queues dead-letter to.
    pub fn dead_exchange(&self) -> String {
        format!("{}.dead-letter", self.prefix)
    }
    /// The exchange between the events and the history stream.
    pub fn history_exchange(&self) -> String {
        format!("{}.history", self.prefix)
    }
    /// Jobs of one pool and lane.
    pub fn jobs_queue(&self, pool: &PoolName, lane: Priority) -> String {
        format!("{}.jobs.{pool}.{}", self.prefix, lane.as_str())
    }
    /// Messages waiting up to this tier.
    pub fn delay_queue(&self, tier_ms: u64) -> String {
        format!("{}.delay.{tier_ms}", self.prefix)
    }
    /// Messages that no worker could work on, until the control plane has read them. A job that ended dead is not
    /// among them: that is a state, not a message.
    pub fn dead_queue(&self) -> String {
        format!("{}.dead", self.prefix)
    }
    /// Commands to one host.
    pub fn host_queue(&self, host: &HostName) -> String {
        format!("{}.host.{host}", self.prefix)
    }
    /// The history stream.
    pub fn history_stream(&self) -> String {
        format!("{}.log", self.prefix)
    }
}

/// The tier whose queue a delay goes through; longer ones are capped at the last.
pub fn delay_tier_ms(delay: Duration) -> u64 {
    let ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    let last = DELAY_TIERS_MS[DELAY_TIERS_MS.len() - 1];
    DELAY_TIERS_MS.into_iter().find(|tier| ms <= *tier).unwrap_or(last)
}

/// Binding key from the events exchange to a pool's lane.
pub fn jobs_binding(pool: &PoolName, lane: Priority) -> String {
    format!("job.enqueued.{pool}.{}", lane.as_str())
}

/// Binding key from the due exchange to a pool's lane.
pub fn due_binding(pool: &PoolName, lane: Priority) -> String {
    format!("*.*.{pool}.{}.#", lane.as_str())
}

/// Binding keys from the events exchange to a delay queue. For workers of earlier releases, `job.deferred` is
/// the message itself.
pub fn delay_bindings(tier_ms: u64) -> [String; 2] {
    [format!("job.retry-scheduled.*.*.{tier_ms}"), deferred_binding(tier_ms)]
}

/// Binding key from the deferred exchange to a delay queue.
pub fn deferred_binding(tier_ms: u64) -> String {
    format!("job.deferred.*.*.{tier_ms}")
}

/// Routing key on the deferred exchange: back to this pool and lane after the delay.
pub fn deferred_key(pool: &PoolName, lane: Priority, delay: Duration) -> String {
    format!("job.deferred.{pool}.{}.{}", lane.as_str(), delay_tier_ms(delay))
}

/// Binding keys from the events exchange to a host's command queue.
pub fn host_bindings(host: &HostName) -> [String; 2] {
    [COMMAND_ALL.to_owned(), host_command(host.as_str())]
}

/// Binding key from the events exchange to the history exchange, and from there to the stream:
/// everything.
pub const HISTORY_BINDING: &str = "#";

/// Routing key of commands that every host must know of.
const COMMAND_ALL: &str = "command.all";

fn host_command(host: &str) -> String {
    format!("command.host.{host}")
}

/// Asks hosts for something.
fn is_command(data: &EventData) -> bool {
    matches!(
        data,
        EventData::CancelRequested(_)
            | EventData::StopRequested(_)
            | EventData::SnoozeRequested(_)
            | EventData::AttemptSuperseded(_)
            | EventData::HostDrainRequested(_)
            | EventData::PoolConfigured(_)
    )
}

/// Does nobody but readers of the history receive it? While the history is away such an event has
/// nowhere to go.
pub fn is_history_only(event: &Event) -> bool {
    match &event.data {
        EventData::JobEnqueued(_) | EventData::JobRetryScheduled(_) => false,
        EventData::JobDead(_) if seeded::is_on(Bug::DeadJobsFillQueue) => false,
        told => !is_command(told) || is_retold(event),
    }
}

/// A command retold by the host that obeyed it is history: it must not command again.
fn is_retold(event: &Event) -> bool {
    event.source.starts_with(HOST_SOURCE) && is_command(&event.data)
}

/// Where an event goes: its routing key, and how long the broker holds it back.
pub fn route(event: &Event) -> (String, Option<Duration>) {
    match &event.data {
        EventData::JobEnqueued(e) => (jobs_binding(&e.spec.pool, e.spec.priority), None),
        EventData::JobRetryScheduled(e) => {
            let delay = Duration::from_millis(e.delay_ms);
            let tier = delay_tier_ms(delay);
            (format!("job.retry-scheduled.{}.{}.{tier}", e.spec.pool, e.spec.priority.as_str()), Some(delay))
        }
        EventData::JobDead(e) if seeded::is_on(Bug::DeadJobsFillQueue) => (format!("dead.{}", e.spec.pool), None),
        told if is_retold(event) => (told.kind().to_owned(), None),
        EventData::CancelRequested(_) | EventData::StopRequested(_) | EventData::SnoozeRequested(_) => {
            (COMMAND_ALL.to_owned(), None)
        }
        EventData::PoolConfigured(e) => {
            (e.host.as_ref().map_or(COMMAND_ALL.to_owned(), |h| host_command(h.as_str())), None)
        }
        EventData::AttemptSuperseded(e) => (host_command(e.host.as_str()), None),
        EventData::HostDrainRequested(_) => (host_command(&event.subject), None),
        other => (other.kind().to_owned(), None),
    }
}

/// Where the message of a job goes that is published again: to its lane, without the wait that it had.
pub fn route_again(event: &Event) -> (String, Option<Duration>) {
    let tier = DELAY_TIERS_MS[0];
    let to = |kind: &str, pool: &PoolName, lane: Priority| {
        (format!("{kind}.{pool}.{}.{tier}", lane.as_str()), Some(AT_ONCE))
    };
    match &event.data {
        EventData::JobRetryScheduled(e) => to(event.data.kind(), &e.spec.pool, e.spec.priority),
        EventData::JobDeferred(e) => to(event.data.kind(), &e.spec.pool, e.spec.priority),
        _ => route(event),
    }
}

/// The queue that an event goes to besides the history (a command to all hosts has many), under the default prefix;
/// for people. The stream, if there is none.
pub fn queue_for(event: &Event) -> String {
    let names = Names::default();
    match &event.data {
        EventData::JobEnqueued(e) => names.jobs_queue(&e.spec.pool, e.spec.priority),
        EventData::JobRetryScheduled(JobRetryScheduled { delay_ms, .. })
        | EventData::JobDeferred(JobDeferred { delay_ms, .. }) => {
            names.delay_queue(delay_tier_ms(Duration::from_millis(*delay_ms)))
        }
        _ if is_history_only(event) => names.history_stream(),
        _ => format!("{}.host.*", names.prefix),
    }
}

#[cfg(test)]
mod tests;
