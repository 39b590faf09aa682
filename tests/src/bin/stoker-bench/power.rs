//! Acknowledged events that power cuts at random moments lose: none may be.

use std::path::Path;
use std::process::Command;

use stoker_tests::power;
use stoker_worker::log::SyncMode;

use crate::Fallible;
use crate::figure::{Figure, Target};

const NAME: &str = "power-loss";

/// The process whose power is cut.
pub fn child(dir: &Path) {
    power::write_until_killed(dir, SyncMode::Data);
}

pub async fn figures(quick: bool) -> Fallible<Vec<Figure>> {
    let scratch = tempfile::tempdir()?;
    if let Err(reason) = power::new_disk(scratch.path(), 16) {
        return Ok(vec![Figure::skipped(NAME, &reason)]);
    }
    let (times, program) = (if quick { 20 } else { 200 }, std::env::current_exe()?);
    let writer = move |log: &Path| {
        let mut command = Command::new(&program);
        command.arg("--power-child").arg(log);
        command
    };
    let outcome = tokio::task::spawn_blocking(move || power::cut(times, writer)).await??;
    let power::Outcome { cuts, acknowledged, missing, on_their_way, unusable, before_the_log } = outcome;
    let detail = format!(
        "{cuts} cuts, each between two system calls of a process that appends from twelve callers and compacts; of \
         {acknowledged} events acknowledged before them; {on_their_way} more were written and not acknowledged yet; \
         {before_the_log} cuts came before the log was made; {unusable} logs could not be used"
    );
    Ok(vec![Figure::measured(NAME, "events", Target::AtMost(0.0), missing as f64, detail)])
}
