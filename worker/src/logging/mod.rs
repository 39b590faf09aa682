//! Log lines. Services write them to stderr: text on a terminal, JSON elsewhere. A command that speaks to a
//! person (`stoker up`) writes them to a file, and only warnings to stderr, so that they do not stand between
//! its own lines. `STOKER_LOG` filters by level and module: `debug,lapin=warn`.

mod file;

use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt, registry};

use file::BoundedFile;

/// Starts logging to stderr for this process.
pub fn start() {
    // A second start in one process (tests) keeps the first.
    let _ = if io::stderr().is_terminal() {
        registry().with(fmt::layer().with_target(false).with_writer(io::stderr).with_filter(filter())).try_init()
    } else {
        registry().with(fmt::layer().json().with_writer(io::stderr).with_filter(filter())).try_init()
    };
}

/// Starts logging to a file as JSON, and warnings to stderr as text. The error says why the file cannot be used.
pub fn start_in_file(path: &Path) -> io::Result<()> {
    let log = BoundedFile::open(path)?;
    let to_file = fmt::layer().json().with_writer(Mutex::new(log)).with_filter(filter());
    let to_people = fmt::layer().with_target(false).without_time().with_writer(io::stderr);
    let to_people = to_people.with_ansi(io::stderr().is_terminal()).with_filter(LevelFilter::WARN);
    let _ = registry().with(to_file).with(to_people).try_init();
    Ok(())
}

fn filter() -> Targets {
    let asked = std::env::var("STOKER_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    asked.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO).with_target("lapin", LevelFilter::WARN))
}
