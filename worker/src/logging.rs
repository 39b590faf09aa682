//! Log lines on stderr: text on a terminal, JSON elsewhere. `STOKER_LOG` filters by level and module: `debug,lapin=warn`.

use std::io::IsTerminal;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging for this process.
pub fn start() {
    let asked = std::env::var("STOKER_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    let filter = asked.unwrap_or_else(usual);
    let builder = tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_writer(std::io::stderr);
    // A second start in one process (tests) keeps the first.
    let _ = if std::io::stderr().is_terminal() {
        builder.with_target(false).finish().with(filter).try_init()
    } else {
        builder.json().finish().with(filter).try_init()
    };
}

fn usual() -> Targets {
    Targets::new().with_default(LevelFilter::INFO).with_target("lapin", LevelFilter::WARN)
}
