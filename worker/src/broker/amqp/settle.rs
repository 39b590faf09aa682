//! Acknowledging: handles that callers hold, and how many of them become one frame.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use super::deferring::{Copy, Lane};
use crate::ports::broker::{Ack, BrokerError, NotDeferred};

/// What to do with a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Done,
    Requeue,
    DeadLetter,
}

/// A caller's word on one delivery, on its way to the task that owns the channel.
pub(super) struct Settle {
    pub tag: u64,
    pub verdict: Verdict,
    pub reply: oneshot::Sender<Result<(), BrokerError>>,
}

/// Belongs to one channel: when that ends, so does the receiver, and the answer is `Stale`.
pub(super) struct AmqpAck {
    pub tag: u64,
    pub owner: mpsc::Sender<Settle>,
    /// How to put the message back for a while, where it came from a lane.
    pub again: Option<(Arc<Lane>, Copy)>,
}

impl AmqpAck {
    async fn settle(self: Box<Self>, verdict: Verdict) -> Result<(), BrokerError> {
        let (reply, answer) = oneshot::channel();
        let word = Settle { tag: self.tag, verdict, reply };
        self.owner.send(word).await.map_err(|_| BrokerError::Stale)?;
        answer.await.map_err(|_| BrokerError::Stale)?
    }
}

#[async_trait]
impl Ack for AmqpAck {
    async fn ack(self: Box<Self>) -> Result<(), BrokerError> {
        self.settle(Verdict::Done).await
    }

    async fn requeue(self: Box<Self>) -> Result<(), BrokerError> {
        self.settle(Verdict::Requeue).await
    }

    /// The copy is confirmed before the original is given up.
    async fn defer(self: Box<Self>, delay: Duration) -> Result<(), NotDeferred> {
        let copied = match &self.again {
            // It comes again by itself: a copy would be one too many.
            _ if self.owner.is_closed() => Err(BrokerError::Stale),
            Some((lane, copy)) => lane.defer(copy, delay).await,
            None => Err(BrokerError::Refused("only jobs can be put back for a while".to_owned())),
        };
        match copied {
            Ok(()) => {
                // Stale by now, it comes twice; its worker recognises that.
                let _ = self.settle(Verdict::Done).await;
                Ok(())
            }
            Err(error) => Err(NotDeferred { ack: self, error }),
        }
    }

    async fn dead_letter(self: Box<Self>) -> Result<(), BrokerError> {
        self.settle(Verdict::DeadLetter).await
    }
}

/// One `basic.ack` frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AckFrame {
    pub tag: u64,
    /// All unacknowledged deliveries up to `tag`.
    pub multiple: bool,
}

/// The fewest frames that acknowledge `done` (sorted) and nothing else of `unacked`, which holds
/// every open delivery of the channel.
pub(super) fn frames<V>(unacked: &BTreeMap<u64, V>, done: &[u64]) -> Vec<AckFrame> {
    let together = unacked.keys().zip(done).take_while(|(open, done)| open == done).count();
    let (together, singly) = done.split_at(together);
    let first = together.last().map(|tag| AckFrame { tag: *tag, multiple: together.len() > 1 });
    first.into_iter().chain(singly.iter().map(|tag| AckFrame { tag: *tag, multiple: false })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the broker would still hold as unacknowledged.
    fn apply(unacked: &BTreeMap<u64, ()>, frames: &[AckFrame]) -> Vec<u64> {
        let mut left = unacked.clone();
        for frame in frames {
            left.retain(|tag, ()| if frame.multiple { *tag > frame.tag } else { *tag != frame.tag });
        }
        left.into_keys().collect()
    }

    #[test]
    fn a_run_from_the_oldest_is_one_frame() {
        let unacked = (1..=100).map(|t| (t, ())).collect();
        let done: Vec<u64> = (1..=64).collect();
        assert_eq!(frames(&unacked, &done), [AckFrame { tag: 64, multiple: true }]);
    }

    #[test]
    fn whatever_is_done_nothing_else_is_acknowledged() {
        let unacked: BTreeMap<u64, ()> = [3, 4, 7, 8, 9, 12].map(|t| (t, ())).into();
        let tags: Vec<u64> = unacked.keys().copied().collect();
        for mask in 0_u32..1 << tags.len() {
            let picked = |i: &usize| mask & (1 << *i) != 0;
            let done: Vec<u64> = (0..tags.len()).filter(picked).map(|i| tags[i]).collect();
            let kept: Vec<u64> = (0..tags.len()).filter(|i| !picked(i)).map(|i| tags[i]).collect();
            assert_eq!(apply(&unacked, &frames(&unacked, &done)), kept, "{done:?}");
        }
    }
}
