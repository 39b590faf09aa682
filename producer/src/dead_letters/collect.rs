//! Reads the queue of dead letters, and tells the history of each before it is acknowledged.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use stoker_schemas::letter::{Death, GivenUpBy, Letter, dead_lettered};
use stoker_schemas::{Event, EventData, Time};
use stoker_worker::backoff_policy::{Backoff, RECONNECT};
use stoker_worker::ports::broker::{BrokerError, Delivery, Source, Subscription};
use stoker_worker::ports::handle::Handle;
use tokio_util::sync::CancellationToken;

use crate::submit::{PublishError, Submitter, publish_event};

/// Dead letters under way at once. Few: each may be as large as the broker takes messages.
const CREDIT: u32 = 4;
/// Wait before the queue is asked for again after it could not be had.
const SUBSCRIBE_RETRY: Duration = Duration::from_secs(2);

/// Reads until it is told to stop, or the broker is closed.
pub async fn run(submitter: &Submitter, stop: &CancellationToken) {
    while let Some(subscription) = subscribe(submitter, stop).await {
        let Subscription { deliveries, credit } = subscription;
        credit.send_replace(CREDIT);
        let arriving = stream::unfold(deliveries, async |mut deliveries| {
            let next = tokio::select! {
            biased;
                next = deliveries.recv() => next,
                // What was handed over already is given back, one by one.
                () = stop.cancelled() => {
                    deliveries.close();
                    deliveries.recv().await
                }
            };
            next.map(|delivery| (delivery, deliveries))
        });
        arriving.for_each_concurrent(CREDIT as usize, |delivery| take(submitter, delivery, stop)).await;
    }
}

async fn subscribe(submitter: &Submitter, stop: &CancellationToken) -> Option<Subscription> {
    loop {
        if stop.is_cancelled() {
            return None;
        }
        match submitter.broker().subscribe(Source::Dead).await {
            Ok(subscription) => return Some(subscription),
            Err(BrokerError::Closed) => return None,
            Err(error) => tracing::warn!(%error, "dead letters cannot be read, trying again"),
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(SUBSCRIBE_RETRY) => {}
        }
    }
}

async fn take(submitter: &Submitter, delivery: Delivery, stop: &CancellationToken) {
    if is_told_already(&delivery) {
        let _ = delivery.ack.ack().await;
        return;
    }
    let event = event_of(&delivery, submitter);
    // The body may be large, and what is to be told of it is in the event.
    let Delivery { ack, .. } = delivery;
    let settled = tokio::select! {
            biased;
        // Another control plane, or the next start, has it then.
        () = stop.cancelled() => ack.requeue().await,
        told = tell(submitter, &event) => settle(ack, told).await,
    };
    if let Err(error) = settled {
        tracing::debug!(%error, letter = event.subject, "dead letter not settled, it comes again");
    }
}

/// Older Stokers put each `job.dead` into the queue as well, where nothing read it. It is in the history.
fn is_told_already(delivery: &Delivery) -> bool {
    let was_published = delivery.about.death.as_ref().is_none_or(|death| death.by == GivenUpBy::Publisher);
    let is_job_dead = || {
        let decoded = Event::decode(&delivery.body, Time::UNIX_EPOCH);
        decoded.is_ok_and(|event| matches!(event.data, EventData::JobDead(_)))
    };
    was_published && is_job_dead()
}

fn event_of(delivery: &Delivery, submitter: &Submitter) -> Event {
    let Delivery { routing_key, about, body, .. } = delivery;
    let unknown = || Death {
        by: GivenUpBy::Publisher,
        queue: String::new(),
        exchange: String::new(),
        routing_key: routing_key.clone(),
        count: 1,
        at: None,
    };
    let death = about.death.clone().unwrap_or_else(unknown);
    let (message_id, content_type) = (about.message_id.as_deref(), about.content_type.as_deref());
    dead_lettered(Letter { death: &death, message_id, content_type, body }, submitter.source(), submitter.now())
}

/// Publishes until the history has it, however long that or the broker is away. An error is for good.
async fn tell(submitter: &Submitter, event: &Event) -> Result<(), PublishError> {
    let mut waits = Backoff::new(RECONNECT);
    loop {
        match publish_event(submitter.broker().as_ref(), event).await {
            Err(PublishError::Broker(error)) if !matches!(error, BrokerError::Closed) => {
                let wait = waits.next_delay();
                tracing::warn!(%error, ?wait, letter = event.subject, "dead letter not told, trying again");
                tokio::time::sleep(wait).await;
            }
            done => return done,
        }
    }
}

async fn settle(ack: Handle, told: Result<(), PublishError>) -> Result<(), BrokerError> {
    match told {
        Ok(()) => ack.ack().await,
        Err(error) => {
            tracing::error!(%error, "dead letter cannot be told; it stays in its queue");
            tokio::time::sleep(SUBSCRIBE_RETRY).await;
            ack.requeue().await
        }
    }
}
