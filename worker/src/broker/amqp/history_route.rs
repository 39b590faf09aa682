//! The way from the events into the history stream, which may be away while everything else works.
//!
//! RabbitMQ confirms a message when *every* queue it routes to has it. A stream whose node or
//! coordinator is down answers declarations with 404 and confirms nothing: work would wait for
//! history. So the stream hangs behind an exchange of its own, which is unbound when the stream
//! does not come back in time (an exchange always can be, a queue that is down cannot), and bound
//! again when it does. Several processes do this to the same binding; each repairs what it sees.

use std::sync::Arc;

use lapin::{Connection, protocol::AMQPSoftError};
use tokio::{
    sync::{Notify, watch},
    time::{Duration, Instant, sleep},
};

use super::{config::AmqpConfig, fault::Fault, topology::Declarer};
use crate::{
    backoff_policy::{Backoff, Policy},
    ports::broker::HistoryStatus,
};

/// Between two looks at a stream that is expected back at any moment: after a restart of a node it
/// comes within a second or a few.
const LOOK: Duration = Duration::from_millis(300);
/// Between two looks at a stream that somebody has to repair. The first wait also bounds how often
/// a binding that others take away is put back.
const REPAIR: Policy =
    Policy { initial: Duration::from_secs(1), max: Duration::from_secs(30), multiplier: 2.0, jitter: 0.5 };

/// Knows whether the history takes messages, and sees to it that it does.
pub(super) struct HistoryRoute {
    config: Arc<AmqpConfig>,
    status: watch::Sender<HistoryStatus>,
    /// A message for the history came back although we took it for available.
    missed: Notify,
}

impl HistoryRoute {
    pub(super) fn new(config: Arc<AmqpConfig>) -> Self {
        // Until a connection has seen otherwise: nobody has been cut off from it yet.
        let status = watch::Sender::new(HistoryStatus::Available);
        Self { config, status, missed: Notify::new() }
    }

    pub(super) fn status(&self) -> watch::Receiver<HistoryStatus> {
        self.status.subscribe()
    }

    /// Told when a message that only the history takes was returned: another process, or a person,
    /// unbound it.
    pub(super) fn missed(&self) {
        self.missed.notify_one();
    }

    /// Opens the way on a new connection. Waits for a stream that is starting; gives it up, so that
    /// work can go on, when that takes too long.
    pub(super) async fn open(&self, connection: &Connection) -> Result<(), Fault> {
        let mut declarer = Declarer::new(connection, &self.config);
        let since = Instant::now();
        loop {
            match declarer.history().await {
                Ok(()) => {
                    self.available();
                    return Ok(());
                }
                Err(fault) if !is_away(&fault) => return Err(fault),
                Err(fault) if since.elapsed() >= self.config.history_grace => {
                    declarer.cut_history().await?;
                    self.away(&fault);
                    return Ok(());
                }
                Err(_) => sleep(LOOK).await,
            }
        }
    }

    /// Opens it again whenever it was cut, until a fault ends the connection. A broker with an alarm
    /// would not answer: it is `blocked`, and asked when it is not.
    pub(super) async fn keep(&self, connection: &Connection, mut blocked: watch::Receiver<Option<String>>) -> Fault {
        let mut declarer = Declarer::new(connection, &self.config);
        let mut waits = Backoff::new(REPAIR);
        loop {
            if matches!(*self.status.borrow(), HistoryStatus::Available) {
                waits.reset();
                self.missed.notified().await;
            }
            if blocked.wait_for(Option::is_none).await.is_err() {
                return Fault::Lost;
            }
            match declarer.history().await {
                Ok(()) => self.available(),
                Err(fault) if is_away(&fault) => self.away(&fault),
                Err(fault) => return fault,
            }
            sleep(waits.next_delay()).await;
        }
    }

    fn available(&self) {
        if self.changed_to(HistoryStatus::Available) {
            tracing::info!(stream = self.config.names.history_stream(), "history takes events");
        }
    }

    fn away(&self, fault: &Fault) {
        let reason = fault.to_string();
        if self.changed_to(HistoryStatus::Away(reason.clone())) {
            tracing::warn!(
                stream = self.config.names.history_stream(),
                reason,
                hint = self.hint(),
                "history is away; work goes on without it and is told later"
            );
        }
    }

    /// Tells who watches, but only of news.
    fn changed_to(&self, status: HistoryStatus) -> bool {
        self.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        })
    }

    /// What an operator can do. RabbitMQ refuses to delete such a queue, so its record is removed by
    /// hand; the next declaration makes a new one, and the workers fill it from their logs.
    fn hint(&self) -> String {
        let command = remove_record(&self.config.vhost(), &self.config.names.history_stream());
        format!("if the node is up and this stays so, the stream is lost: rabbitmqctl eval '{command}'")
    }
}

/// For `rabbitmqctl eval`: forgets a queue whose node or coordinator does not answer, which cannot be deleted.
/// RabbitMQ 3 takes the queue's name (and has no record that it would show), 4 takes the record.
pub fn remove_record(vhost: &str, queue: &str) -> String {
    format!(
        "N = rabbit_misc:r(<<\"{vhost}\">>, queue, <<\"{queue}\">>), \
         try rabbit_amqqueue:internal_delete(N, <<\"operator\">>) catch error:function_clause -> \
         {{ok, Q}} = rabbit_amqqueue:lookup_durable_queue(N), rabbit_amqqueue:internal_delete(Q, <<\"operator\">>) end."
    )
}

/// The stream is there and not there: its record exists, its node or coordinator does not answer.
fn is_away(fault: &Fault) -> bool {
    fault.soft() == Some(AMQPSoftError::NOTFOUND)
}
