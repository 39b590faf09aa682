//! Putting a message back for a while: a copy goes into a delay queue, through an exchange that readers of the
//! history do not listen to, and comes back to its lane by itself.
//!
//! The copy has no `x-death` of the original: RabbitMQ drops what goes in circles by expiry alone, and newer ones
//! ignore the header from a client. So how often it was put back is counted in a header of ours.

use std::time::Duration;

use bytes::Bytes;
use lapin::types::ShortString;
use stoker_schemas::{PoolName, spec::Priority};

use super::{message::Message, outlet::Outlet};
use crate::ports::broker::BrokerError;

/// Where messages of a subscription go back to.
pub(super) struct Lane {
    pub outlet: Outlet,
    pub pool: PoolName,
    pub lane: Priority,
}

/// What of a delivery is needed to publish it again.
pub(super) struct Copy {
    pub message_id: Option<ShortString>,
    pub body: Bytes,
    /// How often it was put back before.
    pub deferrals: u32,
}

impl Lane {
    /// Has the broker deliver the message again after this time; returns once that is confirmed.
    pub(super) async fn defer(&self, copy: &Copy, delay: Duration) -> Result<(), BrokerError> {
        let message = Message::deferred(self.outlet.names(), (&self.pool, self.lane), copy, delay)?;
        self.outlet.submit(message).await
    }
}
