//! The way to the task that publishes, for everybody who has something to publish.

use std::sync::Arc;

use stoker_schemas::topology::Names;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

use super::{
    config::AmqpConfig,
    message::Message,
    publisher::Job,
    status::{Role, StatusBoard},
};
use crate::ports::broker::{BrokerError, BrokerStatus};

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Outlet {
    pub config: Arc<AmqpConfig>,
    pub publishes: mpsc::Sender<Job>,
    pub board: Arc<StatusBoard>,
}

impl Outlet {
    pub(super) fn names(&self) -> &Names {
        &self.config.names
    }

    /// Waits for the confirm, for as long as a publish may take.
    pub(super) async fn submit(&self, message: Message) -> Result<(), BrokerError> {
        let (reply, answer) = oneshot::channel();
        let job = Job { message: Arc::new(message), reply, since: Instant::now() };
        let confirmed = async {
            self.publishes.send(job).await.map_err(|_| BrokerError::Closed)?;
            answer.await.map_err(|_| BrokerError::Closed)?
        };
        match timeout(self.config.publish_deadline, confirmed).await {
            Ok(result) => result,
            Err(_) => Err(self.overdue()),
        }
    }

    /// Why nothing was confirmed in time.
    fn overdue(&self) -> BrokerError {
        match self.board.of(Role::Publish) {
            BrokerStatus::Connected => BrokerError::Timeout(self.config.publish_deadline),
            BrokerStatus::Blocked(reason) => BrokerError::Blocked(reason),
            BrokerStatus::Down(reason) => BrokerError::Down(reason),
        }
    }
}
