//! `stoker-bench`: what Stoker costs, as ratios and rates measured within one run.
//!
//! Every figure stands beside its target; nothing here is remembered from another run. Boots are
//! compared with the same VM started by hand, in turns (`boot`, `by_hand`); the log with the same
//! bytes written to a plain file (`log`); queues and throughput use simulated VMs (`flow`);
//! API and pages answer over a million jobs (`front`, `crowd`), and a start with a million dead ones (`dead`);
//! what a job costs with ten million events in the log (`growth`), what grows while jobs come and go (`soak`), what power
//! cuts lose (`power`), and what ten thousand boots leave behind (`boots`).
//! Figures that take many minutes are measured only when they are asked for by name.

mod boot;
mod boots;
mod by_hand;
mod dead;
mod disk;
mod figure;
mod flow;
mod front;
mod growth;
mod host;
mod journal;
mod log;
mod machine;
mod memory;
mod power;
mod process;
mod rabbit;
mod render;
mod restore;
mod server;
mod soak;
mod warm;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::figure::Figure;
use crate::machine::Machine;

/// Any error: a benchmark only ever prints it.
pub type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Longest wait for one thing that must happen.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Measures Stoker against its targets
#[derive(Debug, Parser)]
#[command(name = "stoker-bench", version)]
struct Arguments {
    /// Measure only figures whose name contains this; some take so long that they must be named
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Fewer pairs, fewer events, no backlog of a million
    #[arg(long)]
    quick: bool,
    /// How long the soak takes
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    minutes: u32,
    /// How many jobs have ended dead before the starts that are measured; each takes 11 KiB on disk
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1_000..=10_000_000))]
    dead_jobs: u64,
    /// Write everything measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table as Markdown to this file
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Only measure memory and print it (used by ourselves: a fresh process has fresh memory)
    #[arg(long, hide = true)]
    memory_child: bool,
    /// Only write a log there until killed (used by ourselves: a power cut stops a whole process)
    #[arg(long, hide = true, value_name = "DIR")]
    power_child: Option<PathBuf>,
}

/// The benchmarks, by the figures they give.
const GROUPS: [&str; 11] = [
    "boot-overhead-firecracker",
    "boot-overhead-qemu",
    "restore",
    "warm",
    "queue-to-start-embedded",
    "queue-to-start-rabbitmq",
    "log",
    "throughput",
    "front",
    "start-with-dead-jobs",
    "memory",
];

/// Those that are measured only when `--only` names them.
const LONG: [&str; 4] = ["growth", "power-loss", "boots", "soak"];

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Silent unless asked: what is written on the way of a boot is part of what is measured.
    if std::env::var_os("STOKER_LOG").is_some() {
        stoker_worker::logging::start();
    }
    if let Some(dir) = arguments.power_child {
        let written = tokio::task::spawn_blocking(move || power::child(&dir)).await;
        return if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let done = if arguments.memory_child { memory::child(arguments.quick).await } else { run(&arguments).await };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("stoker-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Fallible<ExitCode> {
    let wanted =
        |name: &str| arguments.only.as_deref().is_none_or(|only| name.contains(only) || only.starts_with(name));
    let long = LONG.into_iter().filter(|_| arguments.only.is_some());
    let groups: Vec<&str> = GROUPS.into_iter().chain(long).filter(|name| wanted(name)).collect();
    if groups.is_empty() {
        let all = GROUPS.into_iter().chain(LONG).collect::<Vec<_>>().join(", ");
        return Err(format!("no such figure; there are: {all}").into());
    }
    let mut machine = Machine::look();
    let mut figures = Vec::new();
    for name in groups {
        eprintln!("measuring {name} ...");
        let measured = Box::pin(measure(name, arguments)).await;
        figures.extend(measured.unwrap_or_else(|error| vec![Figure::failed(name, error.as_ref())]));
    }
    machine.look_again();
    render::stdout(&machine, &figures)?;
    if let Some(file) = &arguments.json {
        std::fs::write(file, render::json(&machine, &figures)?)?;
    }
    if let Some(file) = &arguments.markdown {
        std::fs::write(file, render::markdown(&machine, &figures))?;
    }
    Ok(render::exit_code(&figures))
}

async fn measure(name: &str, arguments: &Arguments) -> Fallible<Vec<Figure>> {
    let quick = arguments.quick;
    match name {
        "boot-overhead-firecracker" => boot::firecracker(quick).await,
        "boot-overhead-qemu" => boot::qemu(quick).await,
        "restore" => restore::figures(quick).await,
        "warm" => warm::figures(quick).await,
        "queue-to-start-embedded" => flow::queue_to_start(None, quick).await,
        "queue-to-start-rabbitmq" => match rabbit::Rabbit::from_environment() {
            Some(rabbit) => flow::queue_to_start(Some(rabbit), quick).await,
            None => Ok(vec![Figure::skipped(name, &format!("{} is not set", rabbit::URL))]),
        },
        "log" => tokio::task::spawn_blocking(move || log::figures(quick)).await?,
        "throughput" => flow::throughput(quick).await,
        "front" => front::figures(quick).await,
        "start-with-dead-jobs" => dead::figures(arguments.dead_jobs, quick).await,
        "growth" => growth::figures(quick).await,
        "power-loss" => power::figures(quick).await,
        "boots" => boots::figures(quick).await,
        "soak" => soak::figures(arguments.minutes).await,
        _ => memory::figures(quick).await,
    }
}
