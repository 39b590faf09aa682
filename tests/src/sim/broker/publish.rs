//! A publish on its way: kept until it is confirmed, and waited for no longer than the RabbitMQ adapter does.

use std::time::Duration;

use stoker_worker::ports::broker::{BrokerError, BrokerStatus};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Model;
use super::queue::Message;
use super::state::{Action, Answer, Exchange, Pending};

/// A publish that is not confirmed by then answers an error, as with the RabbitMQ adapter.
const PUBLISH_DEADLINE: Duration = Duration::from_secs(5);
/// Bodies beyond this are refused, as by the RabbitMQ adapter, which takes 8 MiB.
pub const MAX_BODY_BYTES: usize = 512 * 1024;

/// Publishes over a link, and waits for the answer.
pub(super) async fn submit(model: &Model, number: u64, message: Message, to: Exchange) -> Answer {
    let (reply, answer) = oneshot::channel();
    {
        let mut state = model.lock();
        let id = state.fresh_id();
        if message.body.len() > MAX_BODY_BYTES {
            return Err(BrokerError::Refused("the message is too large".to_owned()));
        }
        let link = state.links.get_mut(&number).ok_or(BrokerError::Closed)?;
        link.window.insert(id, Pending { message, to, reply });
        let (up, generation) = (link.up, link.generation);
        if up {
            state.send(number, Action::Publish { link: number, generation, id });
        }
    }
    match timeout(PUBLISH_DEADLINE, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(BrokerError::Closed),
        Err(_) => Err(overdue(model, number)),
    }
}

/// Why nothing was confirmed in time.
fn overdue(model: &Model, number: u64) -> BrokerError {
    let state = model.lock();
    let Some(link) = state.links.get(&number) else { return BrokerError::Closed };
    let status = link.status.borrow().clone();
    match status {
        BrokerStatus::Connected => BrokerError::Timeout(PUBLISH_DEADLINE),
        BrokerStatus::Blocked(why) => BrokerError::Blocked(why),
        BrokerStatus::Down(why) => BrokerError::Down(why),
    }
}
