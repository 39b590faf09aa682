//! Where the time of an attempt went, as bars of text.

use std::fmt::Write;

use crate::view::{AttemptView, Outcome, duration};

/// Columns of the widest bar.
const WIDTH: u64 = 40;
/// Columns of a stage's name.
const NAME: usize = 15;

/// One line per stage. The wait in the queue has no bar: it would dwarf the boot.
pub fn render(attempt: &AttemptView) -> String {
    let boot = || attempt.stages.iter().filter(|s| s.name != "queued");
    let total = boot().map(|s| s.begin_ms + s.took_ms).max().unwrap_or(0).max(attempt.took_ms.unwrap_or(0)).max(1);
    let mut out = String::new();
    for stage in attempt.stages.iter().filter(|stage| !stage.absent) {
        let bar = if stage.name == "queued" { String::new() } else { bar(stage.begin_ms, stage.took_ms, total) };
        let line = format!("{:<NAME$} {:>10}  {bar}", stage.name, duration(stage.took_ms));
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{}", line.trim_end());
    }
    let reached = boot().map(|s| s.begin_ms + s.took_ms).max().unwrap_or(0);
    if let Some(waited) = attempt.took_ms.and_then(|ms| ms.checked_sub(reached)).filter(|ms| *ms > 0)
        && attempt.outcome == Outcome::Failed
    {
        // What a failed attempt spent its time on: waiting for a stage that did not come.
        let _ = writeln!(out, "{:<NAME$} {:>10}  {}", "(waited)", duration(waited), bar(reached, waited, total));
    }
    if let Some(ms) = attempt.took_ms {
        let _ = writeln!(out, "{:<NAME$} {:>10}", "total", duration(ms));
    }
    out
}

fn bar(begin_ms: u64, took_ms: u64, total: u64) -> String {
    let column = |ms: u64| usize::try_from(ms.min(total) * WIDTH / total).unwrap_or(0);
    let begin = column(begin_ms);
    let width = column(begin_ms + took_ms).saturating_sub(begin);
    let drawn = if width == 0 { "▏".to_owned() } else { "█".repeat(width) };
    format!("{}{drawn}", " ".repeat(begin))
}
