//! `stoker serve`: the control plane over RabbitMQ, without a worker.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use stoker_worker::ports::broker::{Broker, BrokerStatus};
use stoker_worker::supervisor::Shutdown;
use tokio::sync::watch;

use crate::console::NoConsoles;
use crate::control_plane::{ControlError, ControlPlane, Front, Parts, warn_if_in_the_clear};
use crate::unheard::Unheard;

/// What to serve.
pub struct Serve {
    /// Where the history is read and wishes are published; it need not be there yet.
    pub broker: Arc<dyn Broker>,
    /// The broker, for people.
    pub broker_name: String,
    /// Where the rows are kept.
    pub data: PathBuf,
    /// Where API and pages are, and for whom.
    pub front: Front,
}

/// Why it ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeEnd {
    /// The control plane.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Its output cannot be written.
    #[error("output cannot be written: {0}")]
    Io(#[from] std::io::Error),
}

/// Runs until asked to end. A broker that is away is waited for meanwhile: pages show what was
/// known and say so, writes are refused.
pub async fn run(serve: Serve, asked: watch::Receiver<Shutdown>, out: &mut (dyn Write + Send)) -> Result<(), ServeEnd> {
    let Serve { broker, broker_name, data, front } = serve;
    let listener = front.bind().await.map_err(ControlError::from)?;
    let address = listener.local_addr()?;
    warn_if_in_the_clear(address);
    let who = if front.access.is_closed() { "who has a token" } else { "everybody on this machine" };
    let shown = data.display().to_string();
    let parts = Parts { name: "serve", listener, front, data, broker: broker.clone(), consoles: Arc::new(NoConsoles) };
    let mut control = ControlPlane::start(parts)?;
    let mut out = Unheard(out);
    writeln!(out, "Stoker {}: http://{address}/", env!("CARGO_PKG_VERSION"))?;
    writeln!(out, "  broker  {broker_name}")?;
    writeln!(out, "  data    {shown}")?;
    writeln!(out, "  open to {who}")?;
    out.flush()?;
    tokio::select! {
        failed = control.failed() => return Err(failed.into()),
        () = told(&broker) => {}
        () = until(asked.clone(), Shutdown::No) => {}
    }
    // A second signal does not wait for requests that take their time.
    tokio::select! {
        () = control.end() => broker.close().await,
        () = until(asked, Shutdown::Drain) => {}
    }
    Ok(())
}

/// Says in the log how the broker is, as it changes.
async fn told(broker: &Arc<dyn Broker>) {
    let mut status = broker.status();
    loop {
        match &*status.borrow_and_update() {
            BrokerStatus::Connected => tracing::info!("connected to the broker"),
            BrokerStatus::Blocked(why) => tracing::warn!(%why, "the broker takes nothing"),
            BrokerStatus::Down(why) => tracing::warn!(%why, "no connection to the broker; trying again"),
        }
        if status.changed().await.is_err() {
            // Its tasks are gone: nothing more to tell, and nothing to end for.
            std::future::pending::<()>().await;
        }
    }
}

/// Waits until more is asked for than this.
async fn until(mut asked: watch::Receiver<Shutdown>, than: Shutdown) {
    if asked.wait_for(|now| *now > than).await.is_err() {
        // Nobody can ask any more.
        std::future::pending::<()>().await;
    }
}
