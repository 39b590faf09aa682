//! Makes a failing plan smaller: leaves out what it fails without.

use std::time::{Duration, Instant};

use stoker_schemas::seeded::Bug;

use super::{Outcome, Plan, run};

/// What of a plan can be left out.
#[derive(Debug, Clone, Copy)]
enum Part {
    Faults,
    Loads,
}

/// A plan that still fails, and how. Tries for about so long.
pub fn shrink(seed: u64, plan: &Plan, bug: Option<Bug>, within: Duration) -> (Plan, Outcome) {
    let until = Instant::now() + within;
    let mut best = (plan.clone(), run(seed, plan, bug, false));
    if best.1.violations.is_empty() {
        return best;
    }
    // Halves first, then quarters, then single ones.
    let mut piece = plan.loads.len().max(plan.faults.len()).div_ceil(2).max(1);
    loop {
        for part in [Part::Faults, Part::Loads] {
            let mut at = 0;
            while let Some(smaller) = without(&best.0, part, at, piece).filter(|_| Instant::now() < until) {
                let outcome = run(seed, &smaller, bug, false);
                match outcome.violations.is_empty() {
                    true => at += piece,
                    false => best = (smaller, outcome),
                }
            }
        }
        if piece == 1 {
            return best;
        }
        piece = piece.div_ceil(2);
    }
}

/// The plan without some of its parts, from that place on; `None` where there are none.
fn without(plan: &Plan, part: Part, at: usize, piece: usize) -> Option<Plan> {
    let mut smaller = plan.clone();
    match part {
        Part::Faults if at < plan.faults.len() => drop(smaller.faults.drain(at..(at + piece).min(plan.faults.len()))),
        Part::Loads if at < plan.loads.len() => drop(smaller.loads.drain(at..(at + piece).min(plan.loads.len()))),
        Part::Faults | Part::Loads => return None,
    }
    Some(smaller)
}
