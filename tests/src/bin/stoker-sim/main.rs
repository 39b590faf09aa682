//! Many seeds of the simulation, one with its trace, or the table of faults that are put in on purpose.

#![allow(clippy::print_stdout, reason = "a program of the command line")]

mod bugs;

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use stoker_schemas::seeded::Bug;
use stoker_tests::sim::{Draw, Outcome, Plan, quiet_panics, run, run_seed, shrink};

/// Failing seeds shown in full.
const MAX_SHOWN: usize = 5;
/// How long a failing plan is made smaller.
const SHRINK_FOR: Duration = Duration::from_secs(30);

/// Runs Stoker's real code on virtual time, seed by seed.
#[derive(Parser)]
struct Args {
    /// How many seeds
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// One seed only, with its plan and its trace
    #[arg(long)]
    seed: Option<u64>,
    /// Do not make its plan smaller when it fails
    #[arg(long, requires = "seed")]
    whole: bool,
    /// With this fault put in
    #[arg(long, value_parser = bugs::parse)]
    bug: Option<Bug>,
    /// Each fault in turn, until it is found: the table of all of them
    #[arg(long)]
    bugs: bool,
    /// Say when each seed has ended
    #[arg(long)]
    verbose: bool,
    /// Seeds at the same time (default: one for each core)
    #[arg(long)]
    jobs: Option<usize>,
}

impl Args {
    fn jobs(&self) -> usize {
        self.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1)
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    quiet_panics();
    let holds = match args.seed {
        Some(seed) => one(seed, &args),
        None if args.bugs => bugs::table(args.from, args.seeds, args.jobs()),
        None => many(&args),
    };
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(seed: u64, args: &Args) -> bool {
    let mut plan: Plan = Draw::plan(seed);
    if std::env::var_os("RUST_LOG").is_some() {
        stoker_worker::logging::start();
    }
    if !args.whole {
        let (smaller, _) = shrink(seed, &plan, args.bug, SHRINK_FOR);
        let (loads, faults) = (plan.loads.len(), plan.faults.len());
        println!("{} of {loads} loads and {} of {faults} faults:", smaller.loads.len(), smaller.faults.len());
        plan = smaller;
    }
    println!("{plan:#?}");
    let outcome = run(seed, &plan, args.bug, true);
    for line in &outcome.lines {
        println!("{line}");
    }
    tell(&outcome);
    outcome.violations.is_empty()
}

fn many(args: &Args) -> bool {
    let begun = Instant::now();
    let failed: Mutex<Vec<Outcome>> = Mutex::default();
    each_seed(args.from, args.seeds, args.jobs(), |seed| {
        let outcome = run_seed(seed, args.bug, false);
        if args.verbose {
            println!("seed {seed} has ended after {:.1?}", begun.elapsed());
        }
        if !outcome.violations.is_empty() {
            failed.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
        }
        true
    });
    let mut failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.sort_by_key(|outcome| outcome.seed);
    failed.iter().take(MAX_SHOWN).for_each(tell);
    let took = begun.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = args.seeds as f64 / took;
    println!("{} seeds in {took:.1} s, {rate:.1} seeds/s; {} failed", args.seeds, failed.len());
    if failed.len() > MAX_SHOWN {
        for outcome in &failed {
            println!("failed: {} {}", outcome.seed, outcome.violations.first().map_or("", String::as_str));
        }
    }
    failed.is_empty()
}

/// Calls `run` for every seed, several at a time, until it says no.
fn each_seed(from: u64, seeds: u64, jobs: usize, run: impl Fn(u64) -> bool + Sync) {
    let next = AtomicU64::new(from);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from.saturating_add(seeds) {
                        return;
                    }
                    if !run(seed) {
                        next.store(u64::MAX / 2, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

fn tell(outcome: &Outcome) {
    let verdict = if outcome.violations.is_empty() { "holds" } else { "FAILS" };
    println!(
        "seed {} {verdict}, trace {:016x}, {} s of virtual time",
        outcome.seed,
        outcome.hash,
        outcome.took_ms / 1_000
    );
    for violation in &outcome.violations {
        println!("    {violation}");
    }
}
