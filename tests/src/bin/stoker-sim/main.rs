//! Many seeds of the simulation, or one with its trace.

#![allow(clippy::print_stdout, reason = "a program of the command line")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use clap::Parser;
use stoker_tests::sim::{Draw, Outcome, run_seed};

/// Failing seeds shown in full.
const MAX_SHOWN: usize = 5;

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
    /// Say when each seed has ended
    #[arg(long)]
    verbose: bool,
    /// Seeds at the same time (default: one for each core)
    #[arg(long)]
    jobs: Option<usize>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    stoker_tests::sim::quiet_panics();
    match args.seed {
        Some(seed) => one(seed),
        None => many(&args),
    }
}

fn one(seed: u64) -> ExitCode {
    println!("{:#?}", Draw::plan(seed));
    let outcome = run_seed(seed, true);
    for line in &outcome.lines {
        println!("{line}");
    }
    tell(&outcome);
    if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn many(args: &Args) -> ExitCode {
    let begun = Instant::now();
    let jobs = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1);
    let next = AtomicU64::new(args.from);
    let failed: Mutex<Vec<Outcome>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= args.from + args.seeds {
                        return;
                    }
                    let outcome = run_seed(seed, false);
                    if args.verbose {
                        println!("seed {seed} {:.2?}", begun.elapsed());
                    }
                    if !outcome.violations.is_empty() {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                    }
                }
            });
        }
    });
    let mut failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.sort_by_key(|outcome| outcome.seed);
    failed.iter().take(MAX_SHOWN).for_each(tell);
    let took = begun.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = args.seeds as f64 / took;
    println!("{} seeds in {took:.1} s, {rate:.1} seeds/s; {} failed", args.seeds, failed.len());
    if failed.len() > MAX_SHOWN {
        println!("failed: {:?}", failed.iter().map(|outcome| outcome.seed).collect::<Vec<_>>());
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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
