//! Where the front meets the parts that live in the worker crate: everything in one process, a
//! broker by its URL, a host's event log by its folder. One function each, so that the command
//! line knows signatures and nothing more.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use stoker_worker::broker::amqp::{AmqpBroker, AmqpConfig};
use stoker_worker::log::{EventLog, LogOptions};
use stoker_worker::ports::broker::Broker;

use crate::cli::UpArgs;

/// Why it cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    /// What was asked for is wrong.
    #[error("{message}; {hint}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: String,
    },
    /// A part failed.
    #[error("{message}: {cause}; {hint}")]
    Failed {
        /// What failed.
        message: String,
        /// Its words.
        cause: String,
        /// What to do.
        hint: String,
    },
}

impl ComposeError {
    fn absent(what: &str) -> Self {
        Self::Failed {
            message: format!("{what} is not part of this build"),
            cause: "the worker is not linked in".to_owned(),
            hint: "use a complete build of stoker".to_owned(),
        }
    }
}

/// What a look through an event log found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogVerdict {
    /// Events read.
    pub events: u64,
    /// What is wrong, one line each; none when the log is whole.
    pub damage: Vec<String>,
}

/// Runs API, worker and broker in this process until it is told to stop.
pub async fn up(args: UpArgs) -> Result<(), ComposeError> {
    let _ = args;
    Err(ComposeError::absent("stoker up"))
}

/// Connects to the broker at a URL, only to publish.
pub async fn connect(url: &str) -> Result<Arc<dyn Broker>, ComposeError> {
    let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
    if !matches!(scheme, "amqp" | "amqps") {
        return Err(ComposeError::Usage {
            message: "--broker is not an AMQP address".to_owned(),
            hint: "write it as amqp://user@host:5672".to_owned(),
        });
    }
    // Queues of pools are declared by who serves them; a typing error must not make one.
    let config = AmqpConfig { pools: Vec::new(), ..AmqpConfig::new(url) };
    match AmqpBroker::connect(config).await {
        Ok(broker) => Ok(Arc::new(broker)),
        Err(cause) => Err(ComposeError::Failed {
            message: "no connection to the broker".to_owned(),
            cause: cause.to_string(),
            hint: "check --broker and that RabbitMQ runs".to_owned(),
        }),
    }
}

/// Reads a host's event log from end to end and checks it.
pub async fn verify_log(dir: &Path) -> Result<LogVerdict, ComposeError> {
    // Opening makes a log where there is none: a typing error would look like a whole, empty log.
    let folder = if dir.join("log").is_dir() { dir.join("log") } else { dir.to_owned() };
    if !folder.join("db").exists() {
        return Err(ComposeError::Usage {
            message: format!("{} holds no event log", dir.display()),
            hint: "name the data folder of a worker".to_owned(),
        });
    }
    let reading = tokio::task::spawn_blocking(move || {
        let log = EventLog::open(&folder, LogOptions::default())?;
        log.verify()
    });
    let failed = |cause: String| ComposeError::Failed {
        message: "the event log cannot be read".to_owned(),
        cause,
        hint: "stop the worker that has it open; keep a copy of the folder before anything else".to_owned(),
    };
    let report = reading.await.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))?;
    let damage = report.first_bad.map(|bad| format!("event {}: {}", bad.position, bad.what));
    Ok(LogVerdict { events: report.events, damage: damage.into_iter().collect() })
}
