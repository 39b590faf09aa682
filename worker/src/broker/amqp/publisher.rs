//! The task that owns the publishing channel.
//!
//! Callers wait for their own deadline; this task only knows what is under way. What was not
//! confirmed when a connection ended is published again on the next one, in the same order,
//! unless its caller has given up by then.

use std::{
    collections::{BTreeMap, HashSet},
    future::Future,
    pin::Pin,
    sync::Arc,
    task::Poll,
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use lapin::{
    Channel, Confirmation,
    message::BasicReturnMessage,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    protocol::AMQPSoftError,
};
use stoker_schemas::PoolName;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    config::{ANSWER_DEADLINE, AmqpConfig},
    fault::{Fault, answer},
    history_route::HistoryRoute,
    link::{Link, Live},
    message::Message,
    refusing::Refusing,
    returns::{Confirmed, Returns, Verdict},
    route::Route,
    topology::Declarer,
};
use crate::ports::broker::BrokerError;

/// Pools whose queues are known to exist on this connection; names come from outside.
const MAX_KNOWN_POOLS: usize = 4096;

/// A message and who waits for its confirm.
pub(super) struct Job {
    pub message: Arc<Message>,
    pub reply: oneshot::Sender<Result<(), BrokerError>>,
    /// When it was asked for.
    pub since: Instant,
}

type Confirm = Pin<Box<dyn Future<Output = (u64, lapin::Result<Confirmation>)> + Send>>;

/// Owns the window of unconfirmed messages across connections.
pub(super) struct Publisher {
    config: Arc<AmqpConfig>,
    link: Link,
    history: Arc<HistoryRoute>,
    closing: CancellationToken,
    inbox: mpsc::Receiver<Job>,
    /// Unconfirmed, in the order of publishing.
    window: BTreeMap<u64, Job>,
    next_id: u64,
    refusing: Refusing,
}

/// What belongs to one connection and dies with it.
struct Session<'a> {
    live: &'a Live,
    channel: Channel,
    declarer: Declarer<'a>,
    known_pools: HashSet<PoolName>,
    confirms: FuturesUnordered<Confirm>,
    returns: Returns,
    /// When the broker last confirmed something, or had no reason to.
    progress: Instant,
}

impl Publisher {
    pub(super) fn new(
        config: Arc<AmqpConfig>,
        link: Link,
        history: Arc<HistoryRoute>,
        closing: CancellationToken,
        inbox: mpsc::Receiver<Job>,
    ) -> Self {
        Self { config, link, history, closing, inbox, window: BTreeMap::new(), next_id: 0, refusing: Refusing::new() }
    }

    pub(super) async fn run(mut self) {
        while let Some(live) = self.link.live().await {
            match self.session(&live).await {
                Ok(()) => return,
                Err(Fault::Refusing) => {
                    tracing::warn!("a queue goes on refusing what is published; trying it on a fresh channel");
                    self.refusing.renewed(Instant::now());
                }
                // The connection has no other user, and a new one declares the topology again,
                // which may be what is missing.
                Err(fault) => {
                    tracing::warn!(%fault, unconfirmed = self.window.len(), "publishing channel lost");
                    live.lost.cancel();
                }
            }
        }
    }

    /// Publishes until the channel fails; `Ok` means the broker was closed.
    async fn session(&mut self, live: &Live) -> Result<(), Fault> {
        let config = Arc::clone(&self.config);
        let mut session = Session::open(live, &config).await?;
        self.window.retain(|_, job| !job.reply.is_closed());
        let again: Vec<u64> = self.window.keys().copied().collect();
        for id in again {
            self.transmit(&mut session, id).await?;
        }
        let mut blocked = live.blocked.clone();
        let mut check = interval(ANSWER_DEADLINE / 10);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let takes = blocked.borrow_and_update().is_none();
            let room = self.window.len() < self.config.publish_window;
            tokio::select! {
                biased;
                () = self.closing.cancelled() => return Ok(()),
                () = live.lost.cancelled() => return Err(Fault::Lost),
                Some(first) = session.confirms.next() => self.confirmed(&mut session, first)?,
                _ = blocked.changed() => session.progress = Instant::now(),
                _ = check.tick() => self.check_progress(&mut session, takes)?,
                job = self.inbox.recv(), if takes && room => match job {
                    Some(job) => self.take(&mut session, job).await?,
                    None => return Ok(()),
                },
            }
        }
    }

    /// Takes what else is waiting along, up to the window.
    async fn take(&mut self, session: &mut Session<'_>, first: Job) -> Result<(), Fault> {
        let mut next = Some(first);
        while let Some(job) = next {
            if !job.reply.is_closed() {
                if self.window.is_empty() {
                    session.progress = Instant::now();
                }
                let id = self.next_id;
                self.next_id += 1;
                self.window.insert(id, job);
                self.transmit(session, id).await?;
            }
            let room = self.window.len() < self.config.publish_window;
            next = if room { self.inbox.try_recv().ok() } else { None };
        }
        Ok(())
    }

    /// Publishes an entry of the window.
    async fn transmit(&mut self, session: &mut Session<'_>, id: u64) -> Result<(), Fault> {
        let Some(job) = self.window.get(&id) else { return Ok(()) };
        let message = Arc::clone(&job.message);
        match session.prepare(&self.config, &message.route).await {
            Ok(()) => session.send(id, message).await,
            Err(Unprepared::Refused(error)) => self.answer(id, Err(error)),
            Err(Unprepared::Fault(fault)) => return Err(fault),
        }
        Ok(())
    }

    /// Answers those whose fate is certain. All that is there is taken at once: what was confirmed
    /// earlier may be polled later, and may tell of one that would be called kept.
    fn confirmed(&mut self, session: &mut Session<'_>, first: (u64, lapin::Result<Confirmation>)) -> Result<(), Fault> {
        session.progress = Instant::now();
        session.live.mark_useful();
        let mut confirmed = Vec::new();
        let mut next = Some(first);
        while let Some((id, outcome)) = next {
            let (acked, returned) = match outcome? {
                Confirmation::Ack(returned) => (true, returned),
                Confirmation::Nack(returned) => (false, returned),
                // The channel is in confirm mode, so this would be lapin's mistake; never call it kept.
                Confirmation::NotRequested => (false, None),
            };
            let carried = returned.map(|message| self.owner(&session.returns, &message).unwrap_or(id));
            if let Some(owner) = carried {
                session.returns.came_back(owner);
                self.history.missed();
            }
            confirmed.push(Confirmed { id, acked, carried });
            next = session.confirms.next().now_or_never().flatten();
        }
        let mut refusing = false;
        for (id, verdict) in session.returns.settle(&confirmed) {
            refusing |= self.is_refused_for_long(id, verdict);
            self.answer(id, self.result(id, verdict));
        }
        if refusing { Err(Fault::Refusing) } else { Ok(()) }
    }

    fn is_refused_for_long(&mut self, id: u64, verdict: Verdict) -> bool {
        let Some(job) = self.window.get(&id) else { return false };
        let key = &job.message.routing_key;
        match verdict {
            Verdict::Refused => self.refusing.refused(key, Instant::now()),
            Verdict::Kept | Verdict::Returned => {
                self.refusing.taken(key);
                false
            }
        }
    }

    /// Who published a message that came back.
    fn owner(&self, known: &Returns, returned: &BasicReturnMessage) -> Option<u64> {
        let is = |job: &Job| job.message.is(returned);
        self.window.iter().find(|(id, job)| !known.is_returned(**id) && is(job)).map(|(id, _)| *id)
    }

    fn result(&self, id: u64, verdict: Verdict) -> Result<(), BrokerError> {
        match verdict {
            Verdict::Kept => Ok(()),
            Verdict::Refused => Err(BrokerError::Refused("a queue it goes to is full or unavailable".into())),
            Verdict::Returned => {
                let key = self.window.get(&id).map(|job| job.message.routing_key.to_string());
                Err(BrokerError::Unroutable(key.unwrap_or_default()))
            }
        }
    }

    fn answer(&mut self, id: u64, result: Result<(), BrokerError>) {
        if let Some(job) = self.window.remove(&id) {
            // The caller may have given up; the message is where it is all the same.
            let _ = job.reply.send(result);
        }
    }

    fn check_progress(&self, session: &mut Session<'_>, takes: bool) -> Result<(), Fault> {
        // One that is not confirmed while others are: its queue lost it together with its leader.
        let is_forgotten = |job: &Job| job.reply.is_closed() && job.since.elapsed() > ANSWER_DEADLINE;
        let stuck = !self.window.is_empty() && session.progress.elapsed() > ANSWER_DEADLINE;
        if takes && (stuck || self.window.values().next().is_some_and(is_forgotten)) {
            return Err(Fault::Silent("basic.publish"));
        }
        Ok(())
    }
}

/// Why a message was not even sent.
enum Unprepared {
    Refused(BrokerError),
    Fault(Fault),
}

impl<'a> Session<'a> {
    async fn open(live: &'a Live, config: &'a AmqpConfig) -> Result<Self, Fault> {
        let channel = live.channel().await?;
        answer("confirm.select", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(Self {
            live,
            channel,
            declarer: live.declarer(config),
            known_pools: config.pools.iter().cloned().collect(),
            confirms: FuturesUnordered::new(),
            returns: Returns::default(),
            progress: Instant::now(),
        })
    }

    /// Makes sure that what the key promises is there. A job for a pool that no worker serves yet
    /// waits in the pool's queue; a command to a host that never was is refused.
    async fn prepare(&mut self, config: &AmqpConfig, route: &Route) -> Result<(), Unprepared> {
        let ready = match route {
            Route::Pool(pool) | Route::DelayedPool(pool) => {
                if self.known_pools.contains(pool) {
                    return Ok(());
                }
                let declared = self.declarer.pool(pool).await;
                if declared.is_ok() {
                    self.remember(pool);
                }
                declared
            }
            Route::Host(host) => match self.declarer.exists(&config.names.host_queue(host)).await {
                Ok(false) => {
                    return Err(Unprepared::Refused(BrokerError::Unroutable(format!("command.host.{host}"))));
                }
                found => found.map(drop),
            },
            Route::History => Ok(()),
        };
        // What is missing is declared again with the next connection; what is forbidden stays so.
        ready.map_err(|fault| match fault.soft() {
            Some(AMQPSoftError::NOTFOUND) => Unprepared::Fault(fault),
            Some(_) => Unprepared::Refused(BrokerError::Refused(fault.to_string())),
            None if matches!(fault, Fault::WrongQueue(_)) => {
                Unprepared::Refused(BrokerError::Refused(fault.to_string()))
            }
            None => Unprepared::Fault(fault),
        })
    }

    fn remember(&mut self, pool: &PoolName) {
        if self.known_pools.len() >= MAX_KNOWN_POOLS {
            self.known_pools.clear();
        }
        self.known_pools.insert(pool.clone());
    }

    /// Queues the frames in this very poll, so that messages leave in order and a confirm cannot
    /// be mixed up with another's; does not wait for the socket.
    async fn send(&mut self, id: u64, message: Arc<Message>) {
        let channel = self.channel.clone();
        self.returns.sent(id);
        let mut confirm: Confirm = Box::pin(async move { (id, publish(&channel, &message).await) });
        let early = std::future::poll_fn(|cx| Poll::Ready(confirm.as_mut().poll(cx))).await;
        match early {
            Poll::Ready(outcome) => self.confirms.push(Box::pin(std::future::ready(outcome))),
            Poll::Pending => self.confirms.push(confirm),
        }
    }
}

async fn publish(channel: &Channel, message: &Message) -> lapin::Result<Confirmation> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    channel
        .basic_publish(
            message.exchange.clone(),
            message.routing_key.clone(),
            options,
            &message.body,
            message.properties.clone(),
        )
        .await?
        .await
}
