//! The deterministic simulation: many seeds of the real code on virtual time, and that a seed is a seed.

#![allow(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use stoker_tests::sim::{Outcome, quiet_panics, run_seed};

/// Seeds of the suite; `scripts/dev sim` runs 10,000.
const SEEDS: u64 = 500;
/// Seeds that are run twice.
const TWICE: u64 = 24;

/// Runs them on all cores.
fn all(seeds: std::ops::RangeInclusive<u64>, each: impl Fn(u64) + Sync) {
    quiet_panics();
    let next = AtomicU64::new(*seeds.start());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(seed) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| seeds.contains(seed)) {
                    each(seed);
                }
            });
        }
    });
}

#[test]
fn whatever_goes_wrong_every_job_ends_and_nothing_is_left() {
    let failed: Mutex<Vec<Outcome>> = Mutex::default();
    all(1..=SEEDS, |seed| {
        let outcome = run_seed(seed, None, false);
        if !outcome.violations.is_empty() {
            failed.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
        }
    });
    let failed = failed.into_inner().unwrap();
    let told: Vec<_> =
        failed.iter().map(|o| format!("scripts/dev sim --seed {}: {:#?}", o.seed, o.violations)).collect();
    assert!(told.is_empty(), "{}", told.join("\n"));
}

#[test]
fn the_same_seed_gives_the_same_trace_byte_for_byte() {
    all(1_001..=1_000 + TWICE, |seed| {
        let (once, again) = (run_seed(seed, None, true), run_seed(seed, None, true));
        let differs = once.lines.iter().zip(&again.lines).find(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!((once.hash, once.lines.len()), (again.hash, again.lines.len()), "seed {seed}");
        assert_eq!(run_seed(seed, None, false).hash, once.hash, "seed {seed}: recording changes nothing");
    });
}

#[test]
fn another_seed_is_another_run() {
    quiet_panics();
    assert_ne!(run_seed(2_001, None, false).hash, run_seed(2_002, None, false).hash);
}
