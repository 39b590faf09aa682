//! The `stoker` command.

use std::process::ExitCode;

use stoker_producer::cli::{self, Io};

#[tokio::main]
async fn main() -> ExitCode {
    ExitCode::from(cli::run(std::env::args_os(), Io::of_process()).await)
}
