//! `stoker man`: manual pages.

use std::path::PathBuf;

use clap::Args;

use crate::cli::printer::Printer;
use crate::cli::{CliError, command};

/// Flags of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write the pages of all commands into this folder (without: print the main page)
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub fn run(args: &ManArgs, printer: &mut Printer) -> Result<(), CliError> {
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command()).render(&mut page)?;
        return printer.raw(&page);
    };
    let hint = "name a folder that can be written";
    let failed = |e| CliError::system(format!("man pages cannot be written to {}", dir.display()), e, hint);
    std::fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(command(), dir).map_err(failed)
}
