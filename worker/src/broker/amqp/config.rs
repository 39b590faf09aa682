//! Settings of the RabbitMQ adapter, and the constants that bound it.

use std::{fmt, path::PathBuf, time::Duration};

use lapin::uri::AMQPUri;
use stoker_schemas::{HostName, PoolName, topology::Names};

use crate::ports::broker::BrokerError;

/// A broker that says nothing for this long is taken for gone. Twice the heartbeat interval would
/// notice a dead TCP connection too, but not a live one whose queue leader hangs.
pub(super) const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// A polite goodbye may take this long; then the socket is dropped.
pub(super) const CLOSE_DEADLINE: Duration = Duration::from_secs(2);
/// An idle connection or channel that lives shorter than this does not count as recovered: the
/// waits between tries go on growing.
pub(super) const STABLE_AFTER: Duration = Duration::from_secs(5);
/// Events are a few KiB; a body beyond this is a mistake, and RabbitMQ would answer it by closing
/// the channel with everything in flight on it.
pub const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;
/// Nodes that a URL may name.
const MAX_NODES: usize = 16;
/// Reason of a parked message: for people, and it has to fit into a header frame.
pub const MAX_REASON_BYTES: usize = 4 * 1024;

/// Settings of an [`AmqpBroker`](super::AmqpBroker). `Debug` shows the URL without its password.
#[derive(Clone)]
pub struct AmqpConfig {
    /// `amqp://user:password@host:port/vhost`; of a cluster with all its nodes, `amqp://user:password@one:5672,two:5672/vhost`.
    pub url: String,
    /// Names of exchanges and queues.
    pub names: Names,
    /// Pools whose queues are declared at once; others are on their first use.
    pub pools: Vec<PoolName>,
    /// The host whose command queue this is; `None` for a pure producer.
    pub host: Option<HostName>,
    /// A publish that is not confirmed by then answers an error.
    pub publish_deadline: Duration,
    /// Publishes under way at once; more wait.
    pub publish_window: usize,
    /// CA to trust besides the host's own, a PEM file; for `amqps://`.
    pub ca: Option<PathBuf>,
    /// How long `connect` tries.
    pub connect_deadline: Duration,
    /// How long a new connection waits for a history stream that is down before it goes on without.
    /// RabbitMQ 3.10 needs up to a few seconds for its streams after a restart.
    pub history_grace: Duration,
    /// Deliveries of one message before RabbitMQ dead-letters it. A crash of a worker costs one
    /// for each message it held, and Stoker counts its own attempts, so this is well above the
    /// retry limit: it only stops a message that kills every worker it reaches.
    pub delivery_limit: u32,
    /// A channel whose deliveries do not add up, or that gets nothing while messages wait, for this long is renewed; so
    /// often, queues that were deleted are declared again.
    pub patience: Duration,
    /// Interval of heartbeats, s. RabbitMQ's default of 60 finds a frozen peer after minutes.
    pub heartbeat_seconds: u16,
    /// Jobs one lane holds; beyond, a publish is refused.
    pub jobs_max_length: u32,
    /// Messages the dead queue holds; beyond, dead letters wait in the queue they come from.
    pub dead_max_length: u32,
    /// Commands a host that is away can miss; beyond, the oldest go.
    pub host_max_length: u32,
    /// A host's command queue goes when nobody read it for this long.
    pub host_expires: Duration,
    /// Size of the history; the oldest segments go first.
    pub history_max_bytes: u64,
    /// Age of the history, in RabbitMQ's notation (`90D`, `1Y`).
    pub history_max_age: String,
}

impl AmqpConfig {
    /// Defaults, for a broker at this URL.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            names: Names::default(),
            pools: vec![PoolName::default()],
            host: None,
            publish_deadline: Duration::from_secs(5),
            publish_window: 1024,
            ca: None,
            connect_deadline: Duration::from_secs(15),
            history_grace: Duration::from_secs(10),
            delivery_limit: 50,
            patience: Duration::from_secs(30),
            heartbeat_seconds: 10,
            jobs_max_length: 1_000_000,
            dead_max_length: 100_000,
            host_max_length: 10_000,
            host_expires: Duration::from_secs(7 * 24 * 3600),
            history_max_bytes: 10 * 1024 * 1024 * 1024,
            history_max_age: "90D".to_owned(),
        }
    }

    /// The URL of each node, with our heartbeat. What is wrong with a bad one is not repeated: it may hold a
    /// password in the wrong place.
    pub(super) fn nodes(&self) -> Result<Vec<AMQPUri>, BrokerError> {
        let unreadable =
            || BrokerError::Down("the broker URL is not of the form amqp://user:password@host:port/vhost".into());
        let (scheme, rest) = self.url.split_once("://").ok_or_else(unreadable)?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (login, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
        let nodes: Vec<&str> = hosts.split(',').collect();
        if nodes.len() > MAX_NODES {
            return Err(BrokerError::Down(format!("the broker URL names more than {MAX_NODES} nodes")));
        }
        let node = |host: &&str| -> Result<AMQPUri, BrokerError> {
            let mut uri: AMQPUri = format!("{scheme}://{login}{host}{path}").parse().map_err(|_| unreadable())?;
            uri.query.heartbeat = Some(self.heartbeat_seconds);
            Ok(uri)
        };
        nodes.iter().map(node).collect()
    }

    /// The user, as RabbitMQ's own tools name it.
    pub(super) fn user(&self) -> String {
        self.first_node().map_or_else(String::new, |uri| uri.authority.userinfo.username)
    }

    /// The virtual host, as RabbitMQ's own tools name it.
    pub(super) fn vhost(&self) -> String {
        self.first_node().map_or_else(|| "/".to_owned(), |uri| uri.vhost)
    }

    fn first_node(&self) -> Option<AMQPUri> {
        self.nodes().ok()?.into_iter().next()
    }

    /// Where the broker is, fit for logs.
    pub fn address(&self) -> String {
        let nodes = self.nodes().unwrap_or_default();
        let Some(first) = nodes.first() else { return "(unreadable URL)".to_owned() };
        let hosts: Vec<_> = nodes.iter().map(|n| format!("{}:{}", n.authority.host, n.authority.port)).collect();
        format!("{}://{}/{}", first.scheme, hosts.join(","), first.vhost)
    }
}

impl fmt::Debug for AmqpConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpConfig")
            .field("url", &self.address())
            .field("names", &self.names)
            .field("pools", &self.pools)
            .field("host", &self.host)
            .field("publish_deadline", &self.publish_deadline)
            .field("publish_window", &self.publish_window)
            .field("connect_deadline", &self.connect_deadline)
            .field("delivery_limit", &self.delivery_limit)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_never_shown() {
        for url in ["amqp://me:s3cret@rabbit:5672/%2f", "me:s3cret@rabbit", "s3cret@nowhere"] {
            let config = AmqpConfig::new(url);
            let shown = format!("{config:?} {} {:?}", config.address(), config.nodes().err());
            assert!(!shown.contains("s3cret"), "{shown}");
        }
    }

    #[test]
    fn a_url_may_name_every_node_of_a_cluster() {
        let config = AmqpConfig::new("amqp://me:s,3@one:5671,two,three:5673/stoker");
        let nodes = config.nodes().unwrap();
        let ports: Vec<_> = nodes.iter().map(|n| (n.authority.host.as_str(), n.authority.port)).collect();
        assert_eq!(ports, [("one", 5671), ("two", 5672), ("three", 5673)]);
        assert!(nodes.iter().all(|n| n.vhost == "stoker" && n.authority.userinfo.password == "s,3"));
        assert_eq!(config.address(), "amqp://one:5671,two:5672,three:5673/stoker");
        let too_many = AmqpConfig::new(format!("amqp://{}", ["n"; MAX_NODES + 1].join(",")));
        assert!(too_many.nodes().unwrap_err().to_string().contains("more than 16"));
    }
}
