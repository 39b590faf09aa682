//! Where the front meets the parts that live in the worker crate: everything in one process, a
//! broker by its URL, a host's event log by its folder. One function each, so that the command
//! line knows signatures and nothing more.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use stoker_schemas::ImageName;
use stoker_schemas::image::Driver;
use stoker_worker::broker::amqp::{AmqpBroker, AmqpConfig};
use stoker_worker::config::{Config, ConfigErrors};
use stoker_worker::log::{EventLog, LogOptions};
use stoker_worker::logging;
use stoker_worker::ports::broker::{Broker, BrokerError, BrokerStatus};
use stoker_worker::signals;

use crate::cli::{FrontArgs, ServeArgs, UpArgs};
use crate::control_plane::Front;
use crate::hooks::HooksConfig;
use crate::http::Access;
use crate::reconcile::Patience;
use crate::serve::{self, Serve};
use crate::up::{self, Up, UpError};

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
    /// The first VM did not become ready.
    #[error("the first VM did not become ready; its report is above")]
    NotReady,
}

/// Where `up` keeps and finds things unless told otherwise: below the folder it is started in.
const DEFAULT_DATA: &str = ".stoker/data";
const DEFAULT_IMAGES: &str = ".stoker/images";
/// Where `serve` keeps its rows unless told otherwise: not where an `up` beside it has its own.
pub const DEFAULT_SERVE_DATA: &str = ".stoker/serve";

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
    let usage = |e: ConfigErrors| ComposeError::Usage {
        message: e.to_string(),
        hint: "stoker up --help names the settings".to_owned(),
    };
    let mut flags = args.worker;
    let data = flags.data.get_or_insert_with(|| DEFAULT_DATA.into());
    let log = start_logging(args.log.unwrap_or_else(|| data.join("stoker.log")));
    let front = front(&args.front)?;
    let simulated = flags.driver == Some(Driver::Simulated);
    if !simulated && !flags.unprivileged && !rustix::process::geteuid().is_root() {
        flags.unprivileged = true;
    }
    flags.images.get_or_insert_with(|| DEFAULT_IMAGES.into());
    let config = Config::resolve(flags).map_err(usage)?;
    let first_image = match (args.no_vm, args.image) {
        (true, _) => None,
        (false, Some(image)) => Some(image),
        (false, None) => default_image(config.driver),
    };
    let terminal = std::io::stdout().is_terminal();
    let up = Up { config, front, first_image, once: args.once, terminal, log };
    up::run(up, &mut std::io::stdout()).await.map_err(|cause| match cause {
        UpError::NotReady => ComposeError::NotReady,
        other => ComposeError::Failed {
            message: "stoker up ended".to_owned(),
            cause: other.to_string(),
            hint: "stoker-worker doctor looks at what the host needs".to_owned(),
        },
    })
}

/// Log lines go to this file, or to stderr where it is `-` or cannot be used.
fn start_logging(file: PathBuf) -> Option<PathBuf> {
    if file.as_os_str() != "-" {
        match logging::start_in_file(&file) {
            Ok(()) => return Some(file),
            // That its folder cannot be used is said by what needs the folder.
            Err(error) => eprintln!("log file {} cannot be used: {error}; logging to stderr", file.display()),
        }
    }
    logging::start();
    None
}

/// Runs API and pages over a broker until it is told to stop.
pub async fn serve(args: ServeArgs) -> Result<(), ComposeError> {
    logging::start();
    let failed = |cause: String| ComposeError::Failed {
        message: "stoker serve ended".to_owned(),
        cause,
        hint: "stoker serve --help names the settings".to_owned(),
    };
    let front = front(&args.front)?;
    let asked = signals::shutdown().map_err(|e| failed(e.to_string()))?;
    let config = amqp(&args.broker, args.broker_ca)?;
    let broker_name = config.address();
    // Not awaited: what is known is shown while the broker is away.
    let broker = Arc::new(AmqpBroker::open(config).map_err(|e| failed(e.to_string()))?);
    let serve = Serve { broker: broker.clone(), broker_name, data: args.data, front };
    let mut out = std::io::stdout();
    tokio::select! {
        served = serve::run(serve, asked, &mut out) => served.map_err(|e| failed(e.to_string())),
        refused = refused_at_first(&broker) => Err(failed(refused.to_string())),
    }
}

/// Resolves when a broker that was never of use cannot be used. One that was is waited for: its operator may be at it.
async fn refused_at_first(broker: &AmqpBroker) -> BrokerError {
    let mut status = broker.status();
    // What a watch hands out keeps its writers waiting: not to be held on to.
    let connected = async { status.wait_for(|status| *status == BrokerStatus::Connected).await.is_ok() };
    tokio::select! {
        refused = broker.refused() => refused,
        _ = connected => std::future::pending().await,
    }
}

/// Where API and pages are and for whom; every mistake of a file at once.
fn front(args: &FrontArgs) -> Result<Front, ComposeError> {
    let access = Access::new(args.tokens.as_deref()).map_err(|errors| ComposeError::Usage {
        message: format!("--tokens: {errors}"),
        hint: "make an entry with: stoker token new --name me --role admin >> FILE".to_owned(),
    })?;
    let env = |name: &str| std::env::var(name).ok();
    let hooks = args.hooks.as_deref().map(|file| HooksConfig::load(file, &env)).transpose();
    let hooks = hooks.map_err(|errors| ComposeError::Usage {
        message: format!("--hooks: {errors}"),
        hint: "try it with: stoker hooks test --hooks FILE --payload FILE".to_owned(),
    })?;
    let patience = Patience::new(Duration::from_secs(args.reconcile_after_s));
    let stalled_after = Duration::from_secs(args.stalled_after_s);
    Ok(Front { listen: args.listen, access, hooks, patience, stalled_after })
}

/// The image that Stoker ships for a hypervisor.
fn default_image(driver: Driver) -> Option<ImageName> {
    let name = match driver {
        Driver::Firecracker => "probe",
        Driver::Qemu => "linux-minimal",
        Driver::Simulated => "simulated",
    };
    name.parse().ok()
}

/// Connects to the broker at a URL, only to publish; `ca` as in the worker's settings.
pub async fn connect(url: &str, ca: Option<PathBuf>) -> Result<Arc<dyn Broker>, ComposeError> {
    match AmqpBroker::connect(amqp(url, ca)?).await {
        Ok(broker) => Ok(Arc::new(broker)),
        Err(cause) => Err(ComposeError::Failed {
            message: "no connection to the broker".to_owned(),
            cause: cause.to_string(),
            hint: "check --broker and that RabbitMQ runs".to_owned(),
        }),
    }
}

/// Settings for a front: it serves no pool and is no host.
fn amqp(url: &str, ca: Option<PathBuf>) -> Result<AmqpConfig, ComposeError> {
    let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
    if !matches!(scheme, "amqp" | "amqps") {
        return Err(ComposeError::Usage {
            message: "--broker is not an AMQP address".to_owned(),
            hint: "write it as amqp://user@host:5672".to_owned(),
        });
    }
    // Queues of pools are declared by who serves them; a typing error must not make one.
    Ok(AmqpConfig { pools: Vec::new(), ca, ..AmqpConfig::new(url) })
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
