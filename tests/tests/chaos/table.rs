//! What `scripts/dev chaos` prints: a row for each fault.

use std::{
    fs::File,
    io::{Seek, SeekFrom, Write},
    time::Duration,
};

/// File that the rows are added to; none, and they go to the test's own output.
pub const FILE: &str = "STOKER_CHAOS_TABLE";
/// Set where there is time for more than the suite has.
const OFTEN: &str = "STOKER_CHAOS_OFTEN";
const HEAD: &str =
    "| fault | times | jobs | lost | doubled | leaked | stuck | publishes repeated | recovered (median) | (longest) |
|---|---|---|---|---|---|---|---|---|---|
";

/// How often a fault is made: in the suite, and where there is time. `STOKER_CHAOS_<NAME>` says otherwise.
pub fn times(name: &str, quick: usize, often: usize) -> usize {
    let wanted = std::env::var(format!("STOKER_CHAOS_{name}")).ok();
    wanted.and_then(|n| n.parse().ok()).unwrap_or(if is_often() { often } else { quick })
}

/// Whether there is time for more than the suite has.
pub fn is_often() -> bool {
    std::env::var_os(OFTEN).is_some()
}

/// What came of the jobs under a fault.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Jobs that were confirmed.
    pub jobs: usize,
    /// Of these, those that no book knows or that ended without ever having had a VM.
    pub lost: usize,
    /// Jobs that had two VMs at one time.
    pub doubled: usize,
    /// VMs, cards and addresses that no job owns.
    pub leaked: usize,
    /// Jobs that are known and did not end in time, messages that nobody settles, recoveries that did not come.
    pub stuck: usize,
    /// Publishes that failed and were made again.
    pub repeated: usize,
}

/// One fault, made several times. Its row is written, also when the test fails before.
pub struct Row {
    fault: &'static str,
    recoveries: Vec<Duration>,
    outcome: Option<Outcome>,
    stuck: usize,
}

impl Row {
    pub fn new(fault: &'static str) -> Self {
        Self { fault, recoveries: Vec::new(), outcome: None, stuck: 0 }
    }

    /// The fault was made, and this long after it a new job was ready; `None` when its deadline passed first.
    pub fn recovered(&mut self, after: Option<Duration>) {
        match after {
            Some(after) => self.recoveries.push(after),
            None => self.stuck += 1,
        }
    }

    /// No row: the fault cannot be made here.
    pub fn forget(mut self) {
        self.fault = "";
    }

    /// Writes the row, and fails where anything was lost, doubled, leaked or stuck.
    pub fn end(mut self, outcome: Outcome) {
        let outcome = Outcome { stuck: outcome.stuck + self.stuck, ..outcome };
        self.outcome = Some(outcome);
        let Outcome { lost, doubled, leaked, stuck, .. } = outcome;
        assert_eq!((lost, doubled, leaked, stuck), (0, 0, 0, 0), "lost, doubled, leaked, stuck: {}", self.fault);
    }

    fn line(&mut self) -> String {
        self.recoveries.sort();
        let recovered = self.recoveries.len();
        let seconds =
            |time: Option<&Duration>| time.map_or("-".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()));
        let (median, longest) = (seconds(self.recoveries.get(recovered / 2)), seconds(self.recoveries.last()));
        let Some(Outcome { jobs, lost, doubled, leaked, stuck, repeated }) = self.outcome else {
            // Whatever else came of it: it was waited for in vain.
            let (times, stuck) = (recovered + self.stuck + 1, self.stuck + 1);
            return format!("| {} | {times} | ? | ? | ? | ? | {stuck} | ? | {median} | {longest} |\n", self.fault);
        };
        let times = recovered + self.stuck;
        let counts = format!("{times} | {jobs} | {lost} | {doubled} | {leaked} | {stuck} | {repeated}");
        format!("| {} | {counts} | {median} | {longest} |\n", self.fault)
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        if self.fault.is_empty() {
            return;
        }
        let line = self.line();
        eprint!("{line}");
        if let Some(file) = std::env::var_os(FILE) {
            let mut table = File::options().append(true).create(true).open(file).unwrap();
            if table.seek(SeekFrom::End(0)).unwrap() == 0 {
                table.write_all(HEAD.as_bytes()).unwrap();
            }
            table.write_all(line.as_bytes()).unwrap();
        }
    }
}

#[test]
fn a_recovery_that_does_not_come_is_in_the_row() {
    let mut row = Row::new("something");
    row.recovered(Some(Duration::from_millis(1_240)));
    row.recovered(None);
    assert_eq!(row.line(), "| something | 3 | ? | ? | ? | ? | 2 | ? | 1.2 s | 1.2 s |\n", "cut off in the third");
    row.outcome = Some(Outcome { jobs: 7, lost: 1, doubled: 2, leaked: 3, stuck: 4, repeated: 5 });
    assert_eq!(row.line(), "| something | 2 | 7 | 1 | 2 | 3 | 4 | 5 | 1.2 s | 1.2 s |\n");
    row.forget();
}
