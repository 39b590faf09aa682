//! `stoker token`: making tokens. Nothing is sent anywhere: the server knows a token by what stands
//! in its file.

use clap::{Args, Subcommand};
use serde_json::json;
use stoker_schemas::Time;

use crate::cli::CliError;
use crate::cli::printer::Printer;
use crate::http::access::{Fingerprint, Role, check_name, new_token};

/// Flags of `token`.
#[derive(Debug, Args)]
pub struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token: its entry for the server's file on stdout, its secret, once, on stderr
    #[command(after_help = "Example:\n  stoker token new --name ci --role operate >> tokens.toml")]
    New {
        /// Who will hold it; events say token:NAME
        #[arg(long, value_name = "NAME", value_parser = name)]
        name: String,
        /// What it may do: read, operate (also jobs) or admin (also hosts and settings)
        #[arg(long, value_name = "ROLE")]
        role: Role,
        /// When it ends, such as 2027-01-31T00:00:00Z
        #[arg(long, value_name = "TIME")]
        expires: Option<Time>,
    },
}

fn name(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned())
}

pub fn run(args: TokenArgs, printer: &mut Printer) -> Result<(), CliError> {
    let TokenCommand::New { name, role, expires } = args.command;
    let secret = new_token().map_err(|e| CliError::system("no token was made", e, ""))?;
    let sha256 = Fingerprint::of(&secret).to_string();
    if printer.json() {
        return printer.value(&json!({
            "name": name, "role": role, "sha256": sha256, "expires": expires, "secret": secret
        }));
    }
    printer.line("[[token]]")?;
    printer.line(&format!("name = \"{name}\""))?;
    printer.line(&format!("role = \"{role}\""))?;
    printer.line(&format!("sha256 = \"{sha256}\""))?;
    if let Some(end) = expires {
        printer.line(&format!("expires = {end}"))?;
    }
    printer.flush()?;
    printer.note(&format!("token of {name}, shown only now: {secret}"))?;
    printer.note("its holder sets STOKER_TOKEN, sends Authorization: Bearer, or logs in with it")
}
