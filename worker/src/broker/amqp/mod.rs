//! RabbitMQ as the broker, through lapin.
//!
//! ```text
//! publish() -> Publisher task -> channel, connection 1     Keeper tasks connect, declare the
//! subscribe() -> Subscriber task -> channel, connection 2  topology, watch, and reconnect
//! history() -> Reader task -> channel, connection 2
//! ```
//!
//! One task owns each channel (a shared lapin channel mixes up confirms), every question to the
//! broker has a deadline, and after any failure the owner drops its channel and begins again.

mod config;
mod consuming;
mod credit;
pub(crate) mod death;
mod deferring;
mod fault;
mod history;
mod history_route;
mod link;
mod message;
pub(crate) mod nesting;
mod outlet;
mod publisher;
mod refusing;
mod returns;
mod route;
mod settle;
mod status;
mod subscription;
mod tasks;
mod tls;
mod topology;
mod transport;
mod unusable;
mod watchdog;

use std::sync::Arc;

use async_trait::async_trait;
use stoker_schemas::{PoolName, spec::Priority};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

pub use config::{AmqpConfig, MAX_BODY_BYTES, MAX_REASON_BYTES};
pub use history_route::remove_record;
pub use message::{HEADER_MESSAGE_ID, HEADER_PARKED_AT, HEADER_QUEUE, HEADER_REASON, HEADER_ROUTING_KEY};

use self::{
    config::{ANSWER_DEADLINE, CLOSE_DEADLINE},
    history::Reader,
    history_route::HistoryRoute,
    link::Link,
    message::Message,
    outlet::Outlet,
    publisher::Publisher,
    status::{Role, StatusBoard},
    subscription::{Origin, Subscriber},
    tasks::Tasks,
};
use crate::ports::broker::{
    Broker, BrokerError, BrokerStatus, HistoryReader, HistoryStatus, Offset, Outgoing, Parked, Source, Subscription,
};

/// Deliveries between the owner of the channel and the subscriber; they count as handed out.
const DELIVERY_BUFFER: usize = 64;
/// History entries read ahead of a reader; a slow one slows its channel and nothing else.
const HISTORY_BUFFER: usize = 256;

/// A broker over two connections. Dropping it ends its tasks, as [`Broker::close`] does.
pub struct AmqpBroker {
    config: Arc<AmqpConfig>,
    outlet: Outlet,
    consume: Link,
    board: Arc<StatusBoard>,
    route: Arc<HistoryRoute>,
    tasks: Tasks,
}

impl AmqpBroker {
    /// Begins to connect, and goes on trying until it is closed; fails only when the settings
    /// cannot work. Must be called within tokio's runtime.
    pub fn open(config: AmqpConfig) -> Result<Self, BrokerError> {
        config.nodes()?;
        let config = Arc::new(config);
        let board = Arc::new(StatusBoard::new());
        let tasks = Tasks::new();
        let route = Arc::new(HistoryRoute::new(Arc::clone(&config)));
        let open = |role, route| Link::open(role, route, &config, &board, &tasks);
        // One of them sees to the history.
        let (publish, consume) = (open(Role::Publish, Some(Arc::clone(&route))), open(Role::Consume, None));
        let (publishes, inbox) = mpsc::channel(config.publish_window.max(1));
        let publisher =
            Publisher::new(Arc::clone(&config), publish, Arc::clone(&route), tasks.closing().clone(), inbox);
        tasks.spawn(publisher.run());
        let outlet = Outlet { config: Arc::clone(&config), publishes, board: Arc::clone(&board) };
        Ok(Self { config, outlet, consume, board, route, tasks })
    }

    /// Connects and declares the topology; fails when that takes longer than the deadline, and at once when trying
    /// again would not help.
    pub async fn connect(config: AmqpConfig) -> Result<Self, BrokerError> {
        let broker = Self::open(config)?;
        let mut status = broker.board.subscribe();
        let connected = tokio::select! {
            _ = status.wait_for(|s| !matches!(s, BrokerStatus::Down(_))) => Ok(()),
            refused = broker.refused() => Err(refused),
            () = sleep(broker.config.connect_deadline) => Err(match &*broker.board.subscribe().borrow() {
                BrokerStatus::Down(reason) | BrokerStatus::Blocked(reason) => BrokerError::Down(reason.clone()),
                BrokerStatus::Connected => BrokerError::Down("connected too late".into()),
            }),
        };
        if let Err(error) = connected {
            broker.close().await;
            return Err(error);
        }
        Ok(broker)
    }

    /// Resolves when the broker gives an answer that trying again does not change.
    pub async fn refused(&self) -> BrokerError {
        let mut refusals = self.board.refusals();
        let refused = refusals.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        match refused {
            Some(why) => BrokerError::Unusable(why),
            // The broker was closed and says nothing more.
            None => std::future::pending().await,
        }
    }

    fn check_open(&self) -> Result<(), BrokerError> {
        if self.tasks.closing().is_cancelled() { Err(BrokerError::Closed) } else { Ok(()) }
    }
}

#[async_trait]
impl Broker for AmqpBroker {
    async fn publish(&self, message: Outgoing) -> Result<(), BrokerError> {
        self.outlet.submit(Message::event(&self.config.names, message)?).await
    }

    async fn subscribe(&self, source: Source) -> Result<Subscription, BrokerError> {
        self.check_open()?;
        let origin = Origin::new(source.clone(), &self.config)?;
        let (out, deliveries) = mpsc::channel(DELIVERY_BUFFER);
        // Nothing is received before the subscriber said how much it can take.
        let (credit, credit_rx) = watch::channel(0);
        let subscriber = Subscriber {
            config: Arc::clone(&self.config),
            link: self.consume.clone(),
            outlet: self.outlet.clone(),
            closing: self.tasks.closing().clone(),
            source,
            origin,
            out,
            credit: credit_rx,
        };
        self.tasks.spawn(subscriber.run());
        Ok(Subscription { deliveries, credit })
    }

    async fn history(&self, from: Offset) -> Result<HistoryReader, BrokerError> {
        self.check_open()?;
        let (out, entries) = mpsc::channel(HISTORY_BUFFER);
        let reader = Reader {
            config: Arc::clone(&self.config),
            link: self.consume.clone(),
            closing: self.tasks.closing().clone(),
            from,
            last: None,
            out,
        };
        self.tasks.spawn(reader.run());
        Ok(entries)
    }

    async fn park(&self, parked: Parked) -> Result<(), BrokerError> {
        self.outlet.submit(Message::parked(&self.config.names, parked)?).await
    }

    fn status(&self) -> watch::Receiver<BrokerStatus> {
        self.board.subscribe()
    }

    fn history_status(&self) -> watch::Receiver<HistoryStatus> {
        self.route.status()
    }

    async fn depth(&self, pool: &PoolName, lane: Priority) -> Result<u64, BrokerError> {
        self.depth_of(&self.config.names.jobs_queue(pool, lane)).await
    }

    async fn dead_depth(&self) -> Result<u64, BrokerError> {
        self.depth_of(&self.config.names.dead_queue()).await
    }

    async fn close(&self) {
        // Each task ends at the token, after at most one question and one goodbye.
        let _ = timeout(ANSWER_DEADLINE + CLOSE_DEADLINE, self.tasks.end()).await;
    }
}

impl AmqpBroker {
    /// Messages waiting in a queue; none where there is no such queue.
    async fn depth_of(&self, queue: &str) -> Result<u64, BrokerError> {
        let live = timeout(self.config.publish_deadline, self.consume.live());
        let Ok(live) = live.await else {
            return Err(match self.board.of(Role::Consume) {
                BrokerStatus::Down(reason) => BrokerError::Down(reason),
                _ => BrokerError::Timeout(self.config.publish_deadline),
            });
        };
        let live = live.ok_or(BrokerError::Closed)?;
        let found = live.declarer(&self.config).depth(queue).await;
        found.map(Option::unwrap_or_default).map_err(|fault| {
            live.blame(&fault);
            BrokerError::Down(fault.to_string())
        })
    }
}
