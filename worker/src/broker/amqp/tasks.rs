//! The tasks of one broker: started together, told to end together, waited for together.

use std::future::Future;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Starts tasks that end at [`Tasks::closing`].
pub(super) struct Tasks {
    closing: CancellationToken,
    /// Every task holds a receiver, so the sender sees the last one end.
    running: watch::Sender<()>,
}

impl Tasks {
    pub(super) fn new() -> Self {
        Self { closing: CancellationToken::new(), running: watch::Sender::new(()) }
    }

    /// Cancelled when the broker is closed.
    pub(super) fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let running = self.running.subscribe();
        tokio::spawn(async move {
            task.await;
            drop(running);
        });
    }

    /// Tells all to end and waits until they have.
    pub(super) async fn end(&self) {
        self.closing.cancel();
        self.running.closed().await;
    }
}

/// A broker that is dropped without a word ends all the same.
impl Drop for Tasks {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}
