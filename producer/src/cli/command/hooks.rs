//! `stoker hooks`: tries a hooks file without a server and without a sender.

use std::path::PathBuf;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::cli::CliError;
use crate::cli::printer::Printer;
use crate::hooks::config::Kind;
use crate::hooks::delivery::harmless;
use crate::hooks::mapping::{Facts, Mapped, MappingError};
use crate::hooks::{HooksConfig, Source};
use crate::http::Problem;

/// Largest payload tried: as large as a source may allow.
const MAX_PAYLOAD_BYTES: u64 = 25 << 20;
/// Stands for a secret whose variable is not set here: trying a mapping needs none.
const NO_SECRET: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
/// Id of a delivery that nobody sent.
const TEST_ID: &str = "test";

/// Flags of `hooks`.
#[derive(Debug, Args)]
pub struct HooksArgs {
    #[command(subcommand)]
    command: HooksCommand,
}

#[derive(Debug, Subcommand)]
enum HooksCommand {
    /// Show what a payload would become: a job, nothing, or an error
    Test(TestArgs),
}

/// Flags of `hooks test`.
#[derive(Debug, Args)]
struct TestArgs {
    /// The hooks file
    #[arg(long, env = "STOKER_HOOKS", value_name = "FILE")]
    hooks: PathBuf,
    /// Which of its sources; not needed when there is one
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// The payload, JSON
    #[arg(long, value_name = "FILE")]
    payload: PathBuf,
    /// A header of the delivery, as in --header x-github-event:push
    #[arg(long, value_name = "NAME:VALUE")]
    header: Vec<String>,
}

pub fn run(args: HooksArgs, printer: &mut Printer) -> Result<(), CliError> {
    match args.command {
        HooksCommand::Test(args) => test(&args, printer),
    }
}

fn test(args: &TestArgs, printer: &mut Printer) -> Result<(), CliError> {
    let env = |name: &str| Some(std::env::var(name).unwrap_or_else(|_| NO_SECRET.to_owned()));
    let config = HooksConfig::load(&args.hooks, &env)
        .map_err(|errors| CliError::usage(errors.to_string(), "mend the hooks file"))?;
    let source = choose(&config, args.source.as_deref())?;
    let payload = read(args)?;
    let headers = headers(&args.header)?;
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let event = text("x-github-event").filter(|_| source.kind == Kind::Github);
    let facts = Facts { source: &source.name, delivery: TEST_ID, event, headers: &harmless(&headers) };
    match source.mapping.apply(facts, &payload, TEST_ID) {
        Ok(Mapped::Job(job)) => printer.value(&json!({ "outcome": "job", "spec": job.spec })),
        Ok(Mapped::Ignored(why)) => printer.value(&json!({ "outcome": "ignored", "why": why })),
        Err(MappingError::Spec(errors)) => Err(CliError::Refused(Box::new(Problem::from(errors)))),
        Err(error) => {
            let hint = "a value that may be missing is written {{ payload.x | default(\"…\") }}";
            Err(CliError::usage(format!("the mapping failed: {error}"), hint))
        }
    }
}

fn choose<'a>(config: &'a HooksConfig, name: Option<&str>) -> Result<&'a Source, CliError> {
    let names: Vec<_> = config.sources.keys().map(String::as_str).collect();
    let found = match (name, names.as_slice()) {
        (Some(name), _) => config.sources.get(name),
        (None, [only]) => config.sources.get(*only),
        (None, _) => None,
    };
    let hint = || format!("--source is one of: {}", names.join(", "));
    found.ok_or_else(|| match name {
        Some(name) => CliError::usage(format!("the hooks file has no source {name:?}"), hint()),
        None => CliError::usage("the hooks file has not exactly one source", hint()),
    })
}

fn read(args: &TestArgs) -> Result<Vec<u8>, CliError> {
    let unreadable =
        |why: String| CliError::usage(format!("payload {}: {why}", args.payload.display()), "name a file with JSON");
    let size = std::fs::metadata(&args.payload).map_err(|e| unreadable(e.to_string()))?.len();
    if size > MAX_PAYLOAD_BYTES {
        return Err(unreadable(format!("larger than {MAX_PAYLOAD_BYTES} bytes")));
    }
    std::fs::read(&args.payload).map_err(|e| unreadable(e.to_string()))
}

fn headers(given: &[String]) -> Result<HeaderMap, CliError> {
    let mut headers = HeaderMap::new();
    for header in given {
        let wrong = || CliError::usage(format!("--header {header:?} is not NAME:VALUE"), "x-github-event:push");
        let (name, value) = header.split_once(':').ok_or_else(wrong)?;
        let name = HeaderName::try_from(name.trim()).map_err(|_| wrong())?;
        headers.append(name, HeaderValue::from_str(value.trim()).map_err(|_| wrong())?);
    }
    Ok(headers)
}
