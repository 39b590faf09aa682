//! `stoker completions`: for shells.

use clap::Args;
use clap_complete::Shell;

use crate::cli::printer::Printer;
use crate::cli::{CliError, command};

/// Flags of `completions`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  stoker completions bash > /etc/bash_completion.d/stoker")]
pub struct CompletionsArgs {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

pub fn run(args: &CompletionsArgs, printer: &mut Printer) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "stoker", &mut script);
    printer.raw(&script)
}
