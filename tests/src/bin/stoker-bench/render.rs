//! The table, for a terminal, for a page and for programs.

use std::io::Write as _;
use std::process::ExitCode;

use serde_json::json;

use crate::Fallible;
use crate::figure::{Figure, Outcome, Target};
use crate::machine::Machine;

const HEADER: [&str; 4] = ["figure", "measured", "target", "met"];

fn cells(figure: &Figure) -> [String; 4] {
    let (measured, met) = match (&figure.outcome, figure.met()) {
        (Outcome::Value(value), met) => {
            let word = met.map_or("-", |met| if met { "met" } else { "MISSED" });
            (with_unit(*value, figure.unit), word)
        }
        (Outcome::Skipped(_), _) => (String::new(), "skipped"),
        (Outcome::Failed(_), _) => (String::new(), "FAILED"),
    };
    let target = match figure.target {
        Target::AtMost(limit) => format!("<= {}", with_unit(limit, figure.unit)),
        Target::AtLeast(limit) => format!(">= {}", with_unit(limit, figure.unit)),
        Target::None => "-".to_owned(),
    };
    [figure.name.clone(), measured, target, met.to_owned()]
}

fn with_unit(value: f64, unit: &str) -> String {
    let space = if unit == "x" { "" } else { " " };
    if value.abs() >= 1_000.0 { format!("{value:.0}{space}{unit}") } else { format!("{value:.2}{space}{unit}") }
}

/// What the value was made of, or why there is none.
fn note(figure: &Figure) -> &str {
    match &figure.outcome {
        Outcome::Value(_) => &figure.detail,
        Outcome::Skipped(reason) | Outcome::Failed(reason) => reason,
    }
}

pub fn stdout(machine: &Machine, figures: &[Figure]) -> Fallible<()> {
    let rows: Vec<[String; 4]> = figures.iter().map(cells).collect();
    let width =
        |column: usize| rows.iter().map(|row| row[column].len()).chain([HEADER[column].len()]).max().unwrap_or(0);
    let widths = [0, 1, 2].map(width);
    let mut out = std::io::stdout().lock();
    for line in machine.lines() {
        writeln!(out, "{line}")?;
    }
    writeln!(out)?;
    for row in std::iter::once(&HEADER.map(str::to_owned)).chain(&rows) {
        let [a, b, c] = widths;
        writeln!(out, "{:a$}  {:>b$}  {:>c$}  {}", row[0], row[1], row[2], row[3])?;
    }
    writeln!(out)?;
    for figure in figures {
        writeln!(out, "{}: {}", figure.name, note(figure))?;
    }
    Ok(())
}

pub fn markdown(machine: &Machine, figures: &[Figure]) -> String {
    let row = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = machine.lines().join("  \n");
    text.push_str("\n\n| figure | measured | target | met | made of |\n| --- | ---: | ---: | --- | --- |\n");
    for figure in figures {
        let mut all = cells(figure).to_vec();
        // A bar would end the cell.
        all.push(note(figure).replace('|', "/"));
        text.push_str(&row(&all));
    }
    text
}

pub fn json(machine: &Machine, figures: &[Figure]) -> Fallible<String> {
    let figures: Result<Vec<_>, _> = figures
        .iter()
        .map(|figure| {
            let mut value = serde_json::to_value(figure)?;
            value["met"] = json!(figure.met());
            serde_json::Result::Ok(value)
        })
        .collect();
    Ok(serde_json::to_string_pretty(&json!({"machine": machine, "figures": figures?}))?)
}

/// A missed target is a finding, not a failure; a figure that could not be measured is one.
pub fn exit_code(figures: &[Figure]) -> ExitCode {
    let failed = figures.iter().any(|figure| matches!(figure.outcome, Outcome::Failed(_)));
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
