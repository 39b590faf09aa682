//! The table of faults that are put in on purpose: which seed finds each, and how long that takes.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use stoker_schemas::seeded::Bug;
use stoker_tests::sim::{Outcome, run_seed};

/// The fault of that name.
pub fn parse(name: &str) -> Result<Bug, String> {
    let known = || Bug::ALL.iter().map(|bug| bug.name()).collect::<Vec<_>>().join(", ");
    Bug::ALL.iter().find(|bug| bug.name() == name).copied().ok_or_else(|| format!("one of {}", known()))
}

/// Looks for each within so many seeds; whether all were found.
pub fn table(from: u64, seeds: u64, jobs: usize) -> bool {
    println!("{:<20} {:>6} {:>6} {:>8}  what gave it away", "fault", "seed", "runs", "s");
    let mut found = 0;
    for bug in Bug::ALL {
        let begun = Instant::now();
        let first: Mutex<Option<Outcome>> = Mutex::default();
        let lock = || first.lock().unwrap_or_else(PoisonError::into_inner);
        super::each_seed(from, seeds, jobs, |seed| {
            let outcome = run_seed(seed, Some(*bug), false);
            // What fails without it shows nothing of it.
            let is_found = !outcome.violations.is_empty() && run_seed(seed, None, false).violations.is_empty();
            let mut first = lock();
            if is_found && first.as_ref().is_none_or(|known| seed < known.seed) {
                *first = Some(outcome);
            }
            !is_found
        });
        let took = begun.elapsed().as_secs_f64();
        match &*lock() {
            Some(outcome) => {
                found += 1;
                let (seed, runs) = (outcome.seed, outcome.seed - from + 1);
                let why = outcome.violations.first().map_or("", String::as_str);
                let why: String = why.chars().take(90).collect();
                println!("{:<20} {seed:>6} {runs:>6} {took:>8.1}  {why}", bug.name());
            }
            None => println!("{:<20} {:>6} {seeds:>6} {took:>8.1}  NOT FOUND: {}", bug.name(), "-", bug.what()),
        }
    }
    println!("{found} of {} faults found", Bug::ALL.len());
    found == Bug::ALL.len()
}
