//! Publishing messages side by side, those of one job one after the other.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use stoker_schemas::JobId;
use stoker_schemas::seeded::{self, Bug};

use super::messages::{Planned, Ticket};
use crate::backoff_policy::{Backoff, RECONNECT};
use crate::ports::broker::{Broker, BrokerError, Outgoing};

/// What the history did with messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Told {
    /// Took its part.
    Yes,
    /// Did not.
    No,
    /// It had no part of its own, so nobody knows.
    #[default]
    Unknown,
}

impl Told {
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Unknown, told) => told,
            (Self::Yes, _) => Self::Yes,
        }
    }
}

/// What became of messages.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub told: Told,
    /// Work that its queue took.
    pub taken: Vec<Ticket>,
    /// Work that its queue refused, and why; without a reason what was not tried because of an earlier message of
    /// the same job.
    pub refused: Vec<(Ticket, Option<String>)>,
}

/// Publishes messages in order, all under way at once, except those of a job after another of the same job.
pub(super) async fn send_all(broker: &dyn Broker, planned: Vec<Planned>) -> Outcome {
    let mut sending: FuturesOrdered<_> = chains(planned).into_iter().map(|chain| send_chain(broker, chain)).collect();
    let mut all = Outcome::default();
    while let Some(outcome) = sending.next().await {
        all.told = all.told.and(outcome.told);
        all.taken.extend(outcome.taken);
        all.refused.extend(outcome.refused);
    }
    all.refused.sort_by_key(|(ticket, _)| ticket.position);
    all
}

/// Messages of the same job become one chain, in the place of the first.
fn chains(planned: Vec<Planned>) -> Vec<Vec<Planned>> {
    let mut chains: Vec<Vec<Planned>> = Vec::with_capacity(planned.len());
    let mut of_job: HashMap<JobId, usize> = HashMap::new();
    for one in planned {
        match one.ticket.as_ref().and_then(|ticket| ticket.job) {
            Some(job) => match of_job.get(&job) {
                Some(at) => chains[*at].push(one),
                None => {
                    of_job.insert(job, chains.len());
                    chains.push(vec![one]);
                }
            },
            None => chains.push(vec![one]),
        }
    }
    chains
}

async fn send_chain(broker: &dyn Broker, chain: Vec<Planned>) -> Outcome {
    let mut outcome = Outcome::default();
    for Planned { message, ticket } in chain {
        let Some(ticket) = ticket else {
            let told = if send(broker, message).await.is_ok() { Told::Yes } else { Told::No };
            outcome.told = outcome.told.and(told);
            continue;
        };
        if !outcome.refused.is_empty() {
            outcome.refused.push((ticket, None));
            continue;
        }
        match send(broker, message).await {
            Ok(()) => outcome.taken.push(ticket),
            Err(reason) => outcome.refused.push((ticket, Some(reason))),
        }
    }
    outcome
}

/// Publishes one message, however long the broker is away. `Err` is a refusal of this very message: the queue it goes
/// to is full or missing, while others may take theirs. Events are far below every limit of size, so no refusal
/// is for good.
async fn send(broker: &dyn Broker, message: Outgoing) -> Result<(), String> {
    let mut waits = Backoff::new(RECONNECT);
    loop {
        match broker.publish(message.clone()).await {
            Ok(()) => return Ok(()),
            Err(_) if seeded::is_on(Bug::FailedIsDropped) => return Ok(()),
            Err(refusal @ (BrokerError::Unroutable(_) | BrokerError::Refused(_)))
                if !seeded::is_on(Bug::RefusedBlocksAll) =>
            {
                return Err(refusal.to_string());
            }
            Err(error) => {
                let wait = waits.next_delay();
                tracing::warn!(%error, ?wait, "event not published, trying again");
                tokio::time::sleep(wait.max(Duration::from_millis(1))).await;
            }
        }
    }
}
