//! What `scripts/dev chaos` prints: a row for each fault.

use std::{io::Write, time::Duration};

use crate::load::Outcome;

/// File that the rows are added to; none, and they go to the test's own output.
const FILE: &str = "STOKER_CHAOS_TABLE";
/// Set where there is time for more than the suite has.
const OFTEN: &str = "STOKER_CHAOS_OFTEN";

/// How often a fault is made: in the suite, and where there is time.
pub fn times(quick: usize, often: usize) -> usize {
    if std::env::var_os(OFTEN).is_some() { often } else { quick }
}

/// One fault, made several times.
pub struct Row {
    fault: &'static str,
    recoveries: Vec<Duration>,
}

impl Row {
    pub fn new(fault: &'static str) -> Self {
        Self { fault, recoveries: Vec::new() }
    }

    /// The fault was made, and this long after it a new job was ready.
    pub fn recovered(&mut self, after: Duration) {
        self.recoveries.push(after);
    }

    /// Writes the row, and fails where anything was lost, doubled, leaked or stuck.
    pub fn end(mut self, outcome: Outcome) {
        self.recoveries.sort();
        let times = self.recoveries.len();
        let median = self.recoveries.get(times / 2).copied().unwrap_or_default();
        let longest = self.recoveries.last().copied().unwrap_or_default();
        let Outcome { jobs, lost, doubled, leaked, failures } = outcome;
        let line = format!(
            "| {} | {times} | {jobs} | {failures} | {lost} | {doubled} | {leaked} | {:.1} s | {:.1} s |\n",
            self.fault,
            median.as_secs_f64(),
            longest.as_secs_f64(),
        );
        match std::env::var_os(FILE) {
            Some(file) => {
                let mut table = std::fs::OpenOptions::new().append(true).create(true).open(file).unwrap();
                table.write_all(line.as_bytes()).unwrap();
            }
            None => eprint!("{line}"),
        }
        assert_eq!((lost, doubled, leaked), (0, 0, 0), "{}: {line}", self.fault);
    }
}
