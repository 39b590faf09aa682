//! The command line: one type per command, settings resolved once, one printer. Everything it says
//! goes through [`Io`], so that a test sees exactly what a user sees.
//!
//! Exit codes: 0 done, 1 the job failed, 2 wrong usage (a refused job included), 3 the system
//! failed.

mod client;
mod command;
mod describe;
mod error;
mod follow;
pub(crate) mod input;
mod printer;
mod settings;

use std::ffi::OsString;

use clap::{Args, CommandFactory, Parser, Subcommand};

pub use command::front::FrontArgs;
pub use command::serve::ServeArgs;
pub use command::up::UpArgs;
pub use error::CliError;
pub use printer::Io;

use command::{
    completions, control, dead, doctor, enqueue, hooks, hosts, image, list, log, logs, man, pools, report, serve, show,
    token, up, watch,
};
use printer::Printer;
use settings::Settings;

/// Boots microVMs from a queue and proves that they can be reached.
#[derive(Debug, Parser)]
#[command(name = "stoker", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 the job failed, 2 wrong usage, 3 the system failed";

/// Settings of every command.
#[derive(Debug, Args)]
struct Global {
    /// Stoker's HTTP address
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "STOKER_SERVER",
        hide_env_values = true,
        default_value = "http://127.0.0.1:7070",
        help_heading = "Global options"
    )]
    server: String,
    /// Token, where the server asks for one; better in the environment: ps shows arguments to everybody
    #[arg(
        long,
        global = true,
        value_name = "TOKEN",
        env = "STOKER_TOKEN",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    token: Option<String>,
    /// Answer in JSON
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
    /// No colour, also on a terminal (NO_COLOR does the same)
    #[arg(long, global = true, help_heading = "Global options")]
    no_color: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run everything in this process: API, worker and an embedded broker
    Up(UpArgs),
    /// Run API and pages over a RabbitMQ, without a worker
    Serve(ServeArgs),
    /// Enqueue VM-boot jobs
    #[command(visible_alias = "submit")]
    Enqueue(Box<enqueue::EnqueueArgs>),
    /// List jobs, newest first
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    /// Show a job: attempts, stages, diagnosis
    Show(show::ShowArgs),
    /// Watch events as they come
    Watch(watch::WatchArgs),
    /// Show the events or the console of a job
    Logs(logs::LogsArgs),
    /// Print the verification report of a job
    Report(report::ReportArgs),
    /// Try jobs again, now
    Retry(control::RetryArgs),
    /// Cancel jobs: they shall not run (any more)
    Cancel(control::ControlArgs),
    /// Stop the running VMs of jobs
    Stop(control::ControlArgs),
    /// Let the next attempts of jobs wait longer
    Snooze(control::SnoozeArgs),
    /// Dead letters: jobs that ended dead, and messages that no worker could work on
    Dead(dead::DeadArgs),
    /// Hosts and what runs on them
    Hosts(hosts::HostsArgs),
    /// Pools: whether they take jobs, who serves them, what waits
    Pools,
    /// Pause, resume or limit a pool
    Pool(pools::PoolArgs),
    /// Webhooks: try a hooks file with a payload
    Hooks(hooks::HooksArgs),
    /// Images on this host: list, import, verify
    Image(image::ImageArgs),
    /// The event log: tail, export, verify
    Log(log::LogArgs),
    /// Tokens: who may use the API and the pages
    Token(token::TokenArgs),
    /// Check that everything works
    Doctor,
    /// Print shell completions
    Completions(completions::CompletionsArgs),
    /// Print or write man pages
    Man(man::ManArgs),
}

/// The whole command line, for help, completions and man pages.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs one command line; the process' exit code.
pub async fn run<A>(args: impl IntoIterator<Item = A>, io: Io) -> u8
where
    A: Into<OsString> + Clone,
{
    match Cli::try_parse_from(args) {
        Err(error) => printer::usage(io, &error),
        Ok(cli) => {
            let mut printer = Printer::new(io, cli.global.json, cli.global.no_color);
            let done = match Settings::resolve(&cli.global) {
                Ok(settings) => Box::pin(dispatch(cli.command, &settings, &mut printer)).await,
                Err(error) => Err(error),
            };
            match done.and_then(|()| printer.flush()) {
                Ok(()) => 0,
                Err(error) => {
                    printer.error(&error);
                    error.exit_code()
                }
            }
        }
    }
}

async fn dispatch(command: Command, settings: &Settings, printer: &mut Printer) -> Result<(), CliError> {
    match command {
        Command::Up(args) => up::run(args).await,
        Command::Serve(args) => serve::run(args).await,
        Command::Enqueue(args) => enqueue::run(*args, settings, printer).await,
        Command::List(args) => list::run(args, settings, printer).await,
        Command::Show(args) => show::run(args, settings, printer).await,
        Command::Watch(args) => watch::run(args, settings, printer).await,
        Command::Logs(args) => logs::run(args, settings, printer).await,
        Command::Report(args) => report::run(args, settings, printer).await,
        Command::Retry(args) => control::retry(args, settings, printer).await,
        Command::Cancel(args) => control::run("cancel", args, settings, printer).await,
        Command::Stop(args) => control::run("stop", args, settings, printer).await,
        Command::Snooze(args) => control::snooze(args, settings, printer).await,
        Command::Dead(args) => dead::run(args, settings, printer).await,
        Command::Hosts(args) => hosts::run(args, settings, printer).await,
        Command::Pools => pools::list(settings, printer).await,
        Command::Pool(args) => pools::run(args, settings, printer).await,
        Command::Hooks(args) => hooks::run(args, printer),
        Command::Image(args) => image::run(args, printer),
        Command::Log(args) => log::run(args, settings, printer).await,
        Command::Token(args) => token::run(args, printer),
        Command::Doctor => doctor::run(settings, printer).await,
        Command::Completions(args) => completions::run(&args, printer),
        Command::Man(args) => man::run(&args, printer),
    }
}
