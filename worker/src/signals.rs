//! SIGTERM and SIGINT: once to drain, twice to end at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::supervisor::Shutdown;

/// Follows the process's signals.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn shutdown() -> std::io::Result<watch::Receiver<Shutdown>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (send, receive) = watch::channel(Shutdown::No);
    tokio::spawn(async move {
        for stage in [Shutdown::Drain, Shutdown::Now] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!(?stage, "asked to end");
            if send.send(stage).is_err() {
                return;
            }
        }
        // Keeps the channel open: a closed one would mean "nobody can ask any more".
        std::future::pending::<()>().await;
    });
    Ok(receive)
}
