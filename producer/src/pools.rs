//! Hosts that come later: what was said of a pool reached those that were there. A host that begins
//! after it is told again, so that a paused pool does not go on there.
//!
//! It is the same word with its first time: a host that knows it, or a later one, does nothing, and
//! several control planes may tell it. Words that a pool is as usual again are told, too: a host may
//! come back with what it was told before it went.

use std::collections::BTreeSet;
use std::time::Duration;

use stoker_schemas::event::{JOB_LEVEL, PoolConfigured};
use stoker_schemas::{Event, EventData, Time};
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::readmodel::{ReadModel, ReadModelError, Unheard};
use crate::submit::{PublishError, Submitter, publish_event};

/// Wait before telling again what could not be told.
const RETRY: Duration = Duration::from_secs(10);
/// What makes a look worth it.
const NEWS: [&str; 2] = ["host.started", "pool.configured"];

/// Tells hosts that come later until it is told to stop.
pub async fn run(model: ReadModel, submitter: Submitter, stop: CancellationToken) {
    let telling = tell_all(&model, &submitter);
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = telling => {}
    }
}

async fn tell_all(model: &ReadModel, submitter: &Submitter) {
    let mut news = model.changes();
    // Before, the rows may say what was overtaken long ago.
    if model.caught_up().wait_for(|is| *is).await.is_err() {
        return;
    }
    let mut told = BTreeSet::new();
    loop {
        let wait = match pass(model, submitter, &mut told).await {
            Ok(()) => None,
            Err(error) => {
                tracing::warn!(%error, "hosts that came later are not told of pools; trying again");
                Some(RETRY)
            }
        };
        let retry = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = retry => {}
            is_open = worth_a_look(&mut news) => if !is_open { return },
        }
    }
}

/// What is said later of a pool is later by this, at least.
const NEXT: Duration = Duration::from_micros(1);

/// The time of what is said of a pool after what was said then: of two, hosts obey the later one, and this machine's
/// clock may be behind the one by which the first was said.
pub fn later_than(since: Option<Time>, now: Time) -> Time {
    since.map_or(now, |since| now.max(since.plus(NEXT)))
}

/// Waits for news about hosts or pools. Whoever missed some looks, too.
async fn worth_a_look(news: &mut tokio::sync::broadcast::Receiver<crate::readmodel::Change>) -> bool {
    loop {
        match news.recv().await {
            Ok(change) if NEWS.contains(&change.kind) => return true,
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => return true,
            Err(RecvError::Closed) => return false,
        }
    }
}

/// Why a pass ended early.
#[derive(Debug, thiserror::Error)]
enum PassError {
    #[error(transparent)]
    Model(#[from] ReadModelError),
    #[error(transparent)]
    Publish(#[from] PublishError),
}

/// Tells what was not told yet; `told` is what stays to be remembered.
async fn pass(model: &ReadModel, submitter: &Submitter, told: &mut BTreeSet<Unheard>) -> Result<(), PassError> {
    let unheard: BTreeSet<_> = model.unheard()?.into_iter().collect();
    told.retain(|known| unheard.contains(known));
    for word in unheard {
        if !told.contains(&word) {
            tell(submitter, &word).await?;
            told.insert(word);
        }
    }
    Ok(())
}

async fn tell(submitter: &Submitter, word: &Unheard) -> Result<(), PublishError> {
    let Unheard { host, pool, said, rule, .. } = word;
    let event = Event {
        source: submitter.source().to_owned(),
        subject: pool.to_string(),
        time: *said,
        epoch: JOB_LEVEL,
        traceparent: None,
        data: EventData::PoolConfigured(PoolConfigured { host: Some(host.clone()), ..rule.clone() }),
    };
    publish_event(submitter.broker().as_ref(), &event).await?;
    tracing::info!(%host, %pool, paused = rule.paused, max_per_host = rule.max_per_host, "a host that came later is told");
    Ok(())
}
