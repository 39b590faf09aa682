//! The task that owns a subscription: its channel, its consumers and its acknowledgements.
//!
//! What was handed out on a channel that ended comes back from the broker by itself, with a higher
//! delivery count; the old acknowledgement handles answer `Stale`.

use std::sync::Arc;

use stoker_schemas::{HostName, PoolName, spec::Priority};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    config::{AmqpConfig, STABLE_AFTER},
    consuming::{Consuming, End},
    deferring::Lane,
    fault::Fault,
    link::{Link, Live},
    outlet::Outlet,
    watchdog::Watchdog,
};
use crate::{
    backoff_policy::{Backoff, RECONNECT},
    counts::{CHANNELS_STARVED, CHANNELS_UNACCOUNTED},
    ports::{
        broker::{BrokerError, Delivery, Source},
        handle::Handles,
    },
};

/// A queue to consume, and how to make sure that it is there.
pub(super) enum Origin {
    Jobs(PoolName, Priority),
    Host(HostName),
    Dead,
}

impl Origin {
    pub(super) fn new(source: Source, config: &AmqpConfig) -> Result<Self, BrokerError> {
        match source {
            Source::Jobs(pool, lane) => Ok(Self::Jobs(pool, lane)),
            Source::Dead => Ok(Self::Dead),
            Source::HostCommands => config.host.clone().map(Self::Host).ok_or_else(|| {
                BrokerError::Refused("this broker was opened without a host, so it receives no commands".into())
            }),
        }
    }

    pub(super) fn queue(&self, config: &AmqpConfig) -> String {
        match self {
            Self::Jobs(pool, lane) => config.names.jobs_queue(pool, *lane),
            Self::Host(host) => config.names.host_queue(host),
            Self::Dead => config.names.dead_queue(),
        }
    }

    /// Where its messages go back to when they are put back for a while.
    fn lane(&self, outlet: &Outlet) -> Option<Arc<Lane>> {
        match self {
            Self::Jobs(pool, lane) => Some(Arc::new(Lane { outlet: outlet.clone(), pool: pool.clone(), lane: *lane })),
            Self::Host(_) | Self::Dead => None,
        }
    }

    async fn declare(&self, live: &Live, config: &AmqpConfig) -> Result<(), Fault> {
        let mut declarer = live.declarer(config);
        match self {
            Self::Jobs(pool, _) => declarer.pool(pool).await,
            Self::Host(host) => declarer.host_queue(host).await,
            Self::Dead => declarer.dead_queue().await,
        }
    }
}

/// Keeps a subscription alive across channels and connections.
pub(super) struct Subscriber {
    pub config: Arc<AmqpConfig>,
    pub link: Link,
    pub outlet: Outlet,
    pub closing: CancellationToken,
    pub source: Source,
    pub origin: Origin,
    pub out: mpsc::Sender<Delivery>,
    pub credit: watch::Receiver<u32>,
}

impl Subscriber {
    pub(super) async fn run(mut self) {
        let queue = self.origin.queue(&self.config);
        let mut backoff = Backoff::new(RECONNECT);
        while self.wanted().await {
            let Some(live) = self.link.live().await else { return };
            let since = Instant::now();
            match self.session(&live, &queue).await {
                Ok(End::Closed) => return,
                Ok(End::Renew) => {}
                Err(fault) => {
                    tracing::warn!(%fault, queue, "consumer lost; unacknowledged deliveries come again");
                    count(&fault);
                    live.blame(&fault);
                    if since.elapsed() >= STABLE_AFTER {
                        backoff.reset();
                    }
                    live.pause(backoff.next_delay()).await;
                }
            }
        }
    }

    /// A paused subscription holds no channel, so nothing can be stuck on one; waits for credit.
    async fn wanted(&mut self) -> bool {
        tokio::select! {
            biased;
            () = self.closing.cancelled() => false,
            () = self.out.closed() => false,
            // An error means that the credit's sender is gone with the credit at 0: for ever paused.
            raised = self.credit.wait_for(|credit| *credit > 0) => raised.is_ok(),
        }
    }

    async fn session(&mut self, live: &Live, queue: &str) -> Result<End, Fault> {
        self.origin.declare(live, &self.config).await?;
        let channel = live.channel().await?;
        let handles = Handles::new(self.source.clone(), &self.out, self.closing.clone());
        let has_letters = matches!(self.origin, Origin::Dead);
        let mut consuming =
            Consuming::new(channel, queue, has_letters, self.out.clone(), handles, self.origin.lane(&self.outlet));
        let watchdog = Watchdog::new(self.config.patience);
        let end = consuming.run(live, live.declarer(&self.config), watchdog, &self.closing, &mut self.credit).await;
        consuming.close().await;
        end
    }
}

fn count(fault: &Fault) {
    match fault {
        Fault::Unaccounted(_) => CHANNELS_UNACCOUNTED.add(),
        Fault::Starved(_) => CHANNELS_STARVED.add(),
        _ => {}
    }
}
