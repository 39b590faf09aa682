//! What goes wrong on a connection or channel, before it becomes a `BrokerError`.

use std::future::Future;

use lapin::{
    Error, ErrorKind,
    protocol::{AMQPErrorKind, AMQPSoftError},
};

use super::config::ANSWER_DEADLINE;

/// Why a channel or connection cannot be used any longer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// The library's or the broker's word.
    #[error(transparent)]
    Amqp(#[from] Error),
    /// Neither yes nor no.
    #[error("no answer to {0} within {ANSWER_DEADLINE:?}")]
    Silent(&'static str),
    /// The broker cancelled our consumer: its queue was deleted or lost its leader.
    #[error("the broker cancelled the consumer")]
    Cancelled,
    /// The connection under it is gone.
    #[error("the connection is gone")]
    Lost,
    /// Deliveries are open on a channel and nothing is left to settle them.
    #[error("{0} deliveries are open that nothing accounts for; their channel is renewed")]
    Unaccounted(usize),
    /// Messages wait, credit is free, and none comes.
    #[error("{0} messages wait and the consumer gets none; its channel is renewed")]
    Starved(u64),
    /// A queue goes on refusing what is published on this channel.
    #[error("a queue goes on refusing on this channel")]
    Refusing,
    /// An entry of the history without a position cannot be resumed from.
    #[error("an entry of the history has no offset")]
    NoOffset,
    /// The entry before the one to read next is not there, or is another one.
    #[error("the history is not the one read before: it was lost and made anew")]
    AnotherHistory,
    /// A queue of that name exists but keeps other promises than the one we need.
    #[error("{0}; delete the queue or use another prefix")]
    WrongQueue(String),
}

impl Fault {
    /// The broker's refusal of one operation: costs the channel, leaves the connection alone.
    pub(super) fn soft(&self) -> Option<AMQPSoftError> {
        match self {
            Self::Amqp(error) => match error.kind() {
                ErrorKind::ProtocolError(e) => match e.kind() {
                    AMQPErrorKind::Soft(soft) => Some(soft.clone()),
                    AMQPErrorKind::Hard(_) => None,
                },
                _ => None,
            },
            _ => None,
        }
    }
}

/// Every question to the broker goes through here: on a half-dead connection, or a broker with an
/// alarm, lapin's futures wait for ever without an error.
pub(super) async fn answer<T>(
    what: &'static str,
    question: impl Future<Output = lapin::Result<T>>,
) -> Result<T, Fault> {
    match tokio::time::timeout(ANSWER_DEADLINE, question).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Fault::Silent(what)),
    }
}
