//! No parser of bytes from outside panics, hangs or grows, whatever it is given. `STOKER_FUZZ_SECONDS` is the
//! time for each parser, `STOKER_FUZZ_TARGET` chooses one, `STOKER_FUZZ_SEED` repeats a run.
#![allow(
    clippy::panic,
    clippy::print_stdout,
    reason = "a setting that cannot be read ends the run; figures are for people"
)]

use std::env;
use std::str::FromStr;
use std::time::Duration;

use stoker_schemas::fuzz::Target;
use stoker_tests::fuzz::{Mutator, fuzz, targets};

/// For each parser, where nothing else is asked for; then the inputs are the same each time.
const SECONDS: f64 = 0.2;
const SEED: u64 = 7;

fn setting<T: FromStr>(name: &str, default: T) -> T {
    match env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} cannot be read")),
        Err(_) => default,
    }
}

#[test]
fn no_parser_panics_hangs_or_grows() {
    let time = Duration::from_secs_f64(setting("STOKER_FUZZ_SECONDS", SECONDS));
    let is_asked_for = env::var_os("STOKER_FUZZ_SECONDS").is_some();
    let seed = setting("STOKER_FUZZ_SEED", if is_asked_for { fastrand::u64(..) } else { SEED });
    let only = setting("STOKER_FUZZ_TARGET", String::new());
    let chosen: Vec<_> = targets().into_iter().filter(|target| only.is_empty() || target.name == only).collect();
    assert!(!chosen.is_empty(), "STOKER_FUZZ_TARGET={only} is none of {:?}", targets().map_names());
    println!("seed {seed}");
    let mut failures = Vec::new();
    for target in chosen {
        match fuzz(target, seed, time) {
            Ok(report) => println!("{:22} {:>9} inputs", target.name, report.inputs),
            Err(failure) => failures.push(failure.to_string()),
        }
    }
    assert!(failures.is_empty(), "seed {seed}\n{}", failures.join("\n"));
}

trait Names {
    fn map_names(&self) -> Vec<&'static str>;
}

impl Names for Vec<Target> {
    fn map_names(&self) -> Vec<&'static str> {
        self.iter().map(|target| target.name).collect()
    }
}

fn fails_on_a_brace_in_a_brace(bytes: &[u8]) {
    let depth = bytes.iter().fold((0_i32, 0), |(now, most), byte| {
        let now = now + i32::from(*byte == b'[') - i32::from(*byte == b']');
        (now, most.max(now))
    });
    assert!(depth.1 < 3, "too deep");
}

#[test]
fn a_parser_with_a_fault_is_caught_and_its_input_made_small() {
    let samples = || vec![br#"{"a":[1,2]}"#.to_vec()];
    let target = Target { name: "faulty", run: fails_on_a_brace_in_a_brace, samples };
    let failure = fuzz(target, 1, Duration::from_secs(30)).unwrap_err();
    assert_eq!(failure.what, "too deep");
    assert_eq!(failure.input, b"[[[");
    assert_eq!(std::fs::read(&failure.kept).unwrap(), failure.input, "saved for the next run");
    std::fs::remove_dir_all(failure.kept.parent().unwrap()).unwrap();
}

#[test]
fn the_same_seed_makes_the_same_inputs_and_every_sample_is_taken_by_its_parser() {
    for target in targets() {
        let samples = (target.samples)();
        assert!(!samples.is_empty(), "{} starts from nothing", target.name);
        samples.iter().for_each(|sample| (target.run)(sample));
        let inputs = |seed| {
            let mut mutator = Mutator::new(samples.clone(), seed);
            (0..50).map(|_| mutator.input()).collect::<Vec<_>>()
        };
        assert_eq!(inputs(7), inputs(7), "{}", target.name);
        assert_ne!(inputs(7), inputs(8), "{}", target.name);
    }
}
