//! Log lines on stderr: text on a terminal, JSON elsewhere. `STOKER_LOG` filters as `RUST_LOG` does.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging for this process.
pub fn start() {
    let filter = EnvFilter::try_from_env("STOKER_LOG").unwrap_or_else(|_| EnvFilter::new("info,lapin=warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second start in one process (tests) keeps the first.
    let _ =
        if std::io::stderr().is_terminal() { builder.with_target(false).try_init() } else { builder.json().try_init() };
}
