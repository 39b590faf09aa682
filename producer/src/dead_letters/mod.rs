//! Dead letters have an owner: the control plane. What workers park and what RabbitMQ gives up is read, told to
//! the history as an event, and only then acknowledged, so that the queue of dead letters is empty at rest.
//!
//! ```text
//!  stoker.dead -> collect -> message.dead-lettered -> history -> rows -> settle -> job.dead
//!                                                                  ^  redrive, dismiss
//! ```
//!
//! Several control planes may do so side by side: a message goes to one of them, the event's id follows from
//! what it says, and the rows are the same everywhere. The broker in this process writes the event itself.

mod act;
mod collect;
mod settle;

use stoker_schemas::command::Context;
use stoker_schemas::retry::Jitter;
use stoker_schemas::seeded::{self, Bug};
use stoker_worker::ports::broker::BrokerError;
use tokio_util::sync::CancellationToken;

pub(crate) use act::{dismiss, redrive};

use crate::readmodel::ReadModel;
use crate::submit::Submitter;

/// Reads dead letters and settles the jobs they were about until it is told to stop.
pub async fn run(model: ReadModel, submitter: Submitter, stop: CancellationToken) {
    if seeded::is_on(Bug::DeadLettersUnread) {
        return;
    }
    tokio::join!(collect::run(&submitter, &stop), settle::run(model, &submitter, &stop));
}

/// No wait is drawn for what is decided here.
fn context(submitter: &Submitter) -> Context {
    Context { now: submitter.now(), jitter: Jitter::from_random(0) }
}

/// Whether the next publish would fail the same way.
fn is_about_all(error: &BrokerError) -> bool {
    !matches!(error, BrokerError::Refused(_))
}
