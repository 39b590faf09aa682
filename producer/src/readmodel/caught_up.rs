//! Whether what the history held when we came has been read. A history has no end that could be
//! asked for: it is behind us once an event of our own time came out of it, or once nothing came
//! for a moment although the broker and its history were there.

use std::time::Duration;

use stoker_worker::ports::broker::{Broker, BrokerStatus, HistoryStatus};
use tokio::sync::watch;

/// That moment. Entries of a history that is being read come within milliseconds of each other.
const QUIET: Duration = Duration::from_secs(1);

/// Waits until the broker has been there for a moment. Whoever hears from it meanwhile begins anew.
pub(super) async fn quiet(broker: &dyn Broker) {
    let (mut link, mut history) = (broker.status(), broker.history_status());
    loop {
        let is_linked = !matches!(*link.borrow_and_update(), BrokerStatus::Down(_));
        let is_there = is_linked && *history.borrow_and_update() == HistoryStatus::Available;
        tokio::select! {
            biased;
            () = tokio::time::sleep(QUIET), if is_there => return,
            () = changed(&mut link) => {}
            () = changed(&mut history) => {}
        }
    }
}

/// Waits for a change; for ever when nobody is left to make one.
async fn changed<T>(watched: &mut watch::Receiver<T>) {
    if watched.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
