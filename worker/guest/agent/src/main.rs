//! Stoker's guest agent; see the library of the same name.

use std::process::ExitCode;

fn main() -> ExitCode {
    stoker_agent::run()
}
