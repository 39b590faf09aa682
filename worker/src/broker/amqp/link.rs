//! One connection, kept alive: connects, declares the topology, watches, and after any failure
//! starts over with a new connection.
//!
//! lapin's own recovery is off. Under load it left publishers waiting for ever in a third of the
//! losses, and it redelivers while the first handler still runs. Whoever uses a connection sees
//! [`Live::lost`] instead, drops everything that belonged to it and asks for the next one.

use std::{
    convert::Infallible,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::{Stream, StreamExt};
use lapin::{Channel, Connection, ConnectionProperties, Event};
use tokio::{
    sync::watch,
    time::{Duration, Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    config::{ANSWER_DEADLINE, AmqpConfig, CLOSE_DEADLINE, STABLE_AFTER},
    fault::{Fault, answer},
    history_route::HistoryRoute,
    status::{Role, StatusBoard},
    tasks::Tasks,
    tls,
    topology::Declarer,
    transport, unusable,
};
use crate::{
    backoff_policy::{Backoff, Policy, RECONNECT},
    ports::broker::{BrokerError, BrokerStatus},
};

/// lapin reports most losses as an event; its state is looked at this often for the others.
const STATE_CHECK: Duration = Duration::from_millis(500);

/// Between two tries at a broker whose operator has to change something first.
const REFUSED: Policy =
    Policy { initial: Duration::from_secs(5), max: Duration::from_secs(60), multiplier: 2.0, jitter: 0.5 };

/// A multiple of every small number of nodes, so that each is as likely as any other.
const MANY_NODES: usize = 720_720;

/// Why there is no connection.
enum NoConnection {
    /// It is away or said no for now.
    Down(String),
    /// Trying again does not help.
    Unusable(String),
}

impl NoConnection {
    fn of(fault: Fault, config: &AmqpConfig) -> Self {
        match unusable::explain(&fault, config) {
            Some(why) => Self::Unusable(why),
            None => Self::Down(fault.to_string()),
        }
    }
}

impl From<String> for NoConnection {
    fn from(reason: String) -> Self {
        Self::Down(reason)
    }
}

/// A connection that worked when it was handed out.
pub(super) struct Live {
    connection: Connection,
    /// Cancelled when it works no longer.
    pub lost: CancellationToken,
    /// The broker's reason for taking no messages, while it does not.
    pub blocked: watch::Receiver<Option<String>>,
    useful: AtomicBool,
}

impl Live {
    pub(super) async fn channel(&self) -> Result<Channel, Fault> {
        answer("channel.open", self.connection.create_channel()).await
    }

    pub(super) fn declarer<'a>(&'a self, config: &'a AmqpConfig) -> Declarer<'a> {
        Declarer::new(&self.connection, config)
    }

    /// Told when something got through: the connection was worth it, whatever ends it.
    pub(super) fn mark_useful(&self) {
        self.useful.store(true, Ordering::Relaxed);
    }

    /// Told by a user of the connection after a fault. A refused operation costs a channel; only
    /// silence means that the connection itself is dead although nobody said so.
    pub(super) fn blame(&self, fault: &Fault) {
        if matches!(fault, Fault::Silent(_)) || !self.connection.status().connected() {
            self.lost.cancel();
        }
    }

    /// Waits before the next try on this connection; at once when it is gone.
    pub(super) async fn pause(&self, delay: Duration) {
        tokio::select! {
            () = sleep(delay) => {}
            () = self.lost.cancelled() => {}
        }
    }
}

/// Hands out the current connection.
#[derive(Clone)]
pub(super) struct Link {
    live: watch::Receiver<Option<Arc<Live>>>,
    closing: CancellationToken,
}

impl Link {
    /// Starts keeping a connection, which also sees to the history if it is given its route.
    pub(super) fn open(
        role: Role,
        route: Option<Arc<HistoryRoute>>,
        config: &Arc<AmqpConfig>,
        board: &Arc<StatusBoard>,
        tasks: &Tasks,
    ) -> Self {
        let (live_tx, live) = watch::channel(None);
        let closing = tasks.closing().clone();
        let (config, board) = (Arc::clone(config), Arc::clone(board));
        tasks.spawn(Keeper { role, route, config, board, closing: closing.clone(), live: live_tx }.run());
        Self { live, closing }
    }

    /// The current connection, as soon as there is one; `None` when the broker was closed.
    pub(super) async fn live(&self) -> Option<Arc<Live>> {
        let mut live = self.live.clone();
        tokio::select! {
            biased;
            () = self.closing.cancelled() => None,
            found = live.wait_for(|l| l.as_ref().is_some_and(|l| !l.lost.is_cancelled())) => found.ok()?.clone(),
        }
    }
}

struct Keeper {
    role: Role,
    route: Option<Arc<HistoryRoute>>,
    config: Arc<AmqpConfig>,
    board: Arc<StatusBoard>,
    closing: CancellationToken,
    live: watch::Sender<Option<Arc<Live>>>,
}

impl Keeper {
    async fn run(self) {
        let (mut backoff, mut refusals) = (Backoff::new(RECONNECT), Backoff::new(REFUSED));
        // Any node first, so that the hosts spread over them.
        let mut node = fastrand::usize(..MANY_NODES);
        while !self.closing.is_cancelled() {
            let mut refused = false;
            tokio::select! {
                biased;
                () = self.closing.cancelled() => break,
                connected = self.connect(node) => match connected {
                    Ok(connection) => {
                        self.board.refused(None);
                        refusals.reset();
                        if self.keep(connection).await {
                            backoff.reset();
                        }
                    }
                    Err(NoConnection::Down(reason)) => self.down(&reason),
                    Err(NoConnection::Unusable(reason)) => {
                        refused = true;
                        self.down(&reason);
                        self.board.refused(Some(&reason));
                    }
                },
            }
            node = node.wrapping_add(1);
            let wait = if refused { refusals.next_delay() } else { backoff.next_delay() };
            tokio::select! {
                () = self.closing.cancelled() => break,
                () = sleep(wait) => {}
            }
        }
        self.board.set(self.role, BrokerStatus::Down("closed".into()));
    }

    /// Connects to a node of the URL; to which, a number says that goes round.
    async fn connect(&self, node: usize) -> Result<Connection, NoConnection> {
        let name = match &self.config.host {
            Some(host) => format!("stoker {} {host}", self.role.as_str()),
            None => format!("stoker {}", self.role.as_str()),
        };
        let nodes = self.config.nodes().map_err(|e: BrokerError| e.to_string())?;
        // There is at least one: a URL without a comma is one.
        let Some(uri) = nodes.get(node % nodes.len().max(1)).cloned() else {
            return Err(NoConnection::Down("the broker URL names no node".to_owned()));
        };
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let ca = self.config.ca.as_deref();
        let tls = tls::settings(ca).await?;
        let connection = timeout(ANSWER_DEADLINE, transport::connect(uri, properties, tls))
            .await
            .map_err(|_| format!("no answer within {ANSWER_DEADLINE:?}"))?
            .map_err(|e| match NoConnection::of(e.into(), &self.config) {
                NoConnection::Down(reason) => NoConnection::Down(tls::explain(&reason, ca)),
                unusable => unusable,
            })?;
        let declared = self.declare(&connection).await.map_err(|fault| NoConnection::of(fault, &self.config));
        if declared.is_err() {
            let _ = timeout(CLOSE_DEADLINE, connection.close(200, "bye".into())).await;
        }
        declared.map(|()| connection)
    }

    async fn declare(&self, connection: &Connection) -> Result<(), Fault> {
        Declarer::new(connection, &self.config).work().await?;
        match &self.route {
            Some(route) => route.open(connection).await,
            None => Ok(()),
        }
    }

    /// Hands the connection out until it is lost or the broker is closed. `true` when it was good
    /// for something, so that the next one may be tried at once.
    async fn keep(&self, connection: Connection) -> bool {
        let since = Instant::now();
        let (blocked_tx, blocked) = watch::channel(None);
        let events = connection.events_listener();
        let live =
            Arc::new(Live { connection, lost: CancellationToken::new(), blocked, useful: AtomicBool::new(false) });
        self.live.send_replace(Some(Arc::clone(&live)));
        self.board.set(self.role, BrokerStatus::Connected);
        tracing::info!(role = self.role.as_str(), broker = self.config.address(), "broker connected");
        let reason = tokio::select! {
            reason = self.watch(&live, events, &blocked_tx) => reason,
            fault = self.keep_history(&live) => Some(fault.to_string()),
            never = self.keep_queues(&live) => match never {},
        };
        live.lost.cancel();
        self.live.send_replace(None);
        if let Some(reason) = reason {
            self.down(&reason);
        }
        // Answers InvalidChannelState when the other side is gone already: nothing left to do.
        let _ = timeout(CLOSE_DEADLINE, live.connection.close(200, "bye".into())).await;
        live.useful.load(Ordering::Relaxed) || since.elapsed() >= STABLE_AFTER
    }

    /// Declares again what somebody deleted: work for a queue that is missing reaches only the history, and nobody says
    /// so. A queue with a consumer needs no looking after, the consumer is told.
    async fn keep_queues(&self, live: &Live) -> Infallible {
        if self.route.is_none() {
            // The other connection's keeper does it.
            return std::future::pending().await;
        }
        loop {
            sleep(self.config.patience).await;
            // No reason to give the connection up: whoever uses it notices that by himself.
            if let Err(fault) = live.declarer(&self.config).work().await {
                tracing::warn!(%fault, "queues could not be declared again");
            }
        }
    }

    async fn keep_history(&self, live: &Live) -> Fault {
        match &self.route {
            Some(route) => route.keep(&live.connection, live.blocked.clone()).await,
            None => std::future::pending().await,
        }
    }

    /// Why the connection ended; `None` when we end it.
    async fn watch(
        &self,
        live: &Live,
        events: impl Stream<Item = Event>,
        blocked: &watch::Sender<Option<String>>,
    ) -> Option<String> {
        let mut events = pin!(events);
        let mut check = interval(STATE_CHECK);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.closing.cancelled() => return None,
                () = live.lost.cancelled() => return Some("the connection stopped answering".into()),
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => self.blocked(blocked, Some(reason)),
                    Some(Event::ConnectionUnblocked) => self.blocked(blocked, None),
                    // Also sent for a refused channel operation; the state tells them apart.
                    Some(Event::Error(error)) if !live.connection.status().connected() => {
                        return Some(error.to_string());
                    }
                    Some(_) => {}
                    None => return Some("the connection ended".into()),
                },
                _ = check.tick() => if !live.connection.status().connected() {
                    return Some("the connection ended".into());
                },
            }
        }
    }

    fn blocked(&self, blocked: &watch::Sender<Option<String>>, reason: Option<String>) {
        let status = match &reason {
            Some(reason) => {
                tracing::warn!(role = self.role.as_str(), %reason, "broker takes no messages");
                BrokerStatus::Blocked(reason.clone())
            }
            None => {
                tracing::info!(role = self.role.as_str(), "broker takes messages again");
                BrokerStatus::Connected
            }
        };
        blocked.send_replace(reason);
        self.board.set(self.role, status);
    }

    /// Says why there is no connection; once, for as long as the reason is the same.
    fn down(&self, reason: &str) {
        let status = BrokerStatus::Down(reason.to_owned());
        let (role, broker) = (self.role.as_str(), self.config.address());
        if self.board.of(self.role) == status {
            tracing::debug!(role, broker, reason, "broker connection still down");
        } else {
            tracing::warn!(role, broker, reason, "broker connection down, trying again");
        }
        self.board.set(self.role, status);
    }
}
