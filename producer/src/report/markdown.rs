//! The report as Markdown, section by section. What there is nothing to say about has no section.

use std::fmt::Write;

use stoker_schemas::diagnosis::Confidence;
use stoker_schemas::event::Stage;

use super::text::{fenced, inline};
use super::{AttemptChecks, Check, CheckStatus, Report, flow, waterfall};
use crate::view::{AttemptView, JobView, Outcome, duration};

/// Attempts shown side by side: the first, which tells how it began, and the latest.
const MAX_COLUMNS: usize = 6;

pub fn render(report: &Report) -> String {
    let shown = columns(report.job.attempts.len());
    let attempts: Vec<_> = shown.iter().map(|i| &report.job.attempts[*i]).collect();
    let checks: Vec<_> = shown.iter().map(|i| &report.checks[*i]).collect();
    let sections = [
        head(report),
        checks_table(&checks),
        flow::render(report, &attempts, &checks),
        before_after(&attempts),
        root_causes(&attempts),
        timings(&attempts),
        answer(&report.job),
        services(&attempts, &report.console),
    ];
    sections.into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join("\n")
}

pub fn summary(report: &Report) -> String {
    let last: Vec<_> = report.checks.last().into_iter().collect();
    format!("**{}**\n\n{}", inline(&report.verdict), checks_table(&last))
}

fn columns(attempts: usize) -> Vec<usize> {
    if attempts <= MAX_COLUMNS {
        return (0..attempts).collect();
    }
    std::iter::once(0).chain(attempts + 1 - MAX_COLUMNS..attempts).collect()
}

fn table(out: &mut String, rows: &[Vec<String>]) {
    for (i, row) in rows.iter().enumerate() {
        let _ = writeln!(out, "| {} |", row.join(" | "));
        if i == 0 {
            let _ = writeln!(out, "|{}", " --- |".repeat(row.len()));
        }
    }
}

pub(super) fn name(a: &AttemptView) -> String {
    numbered(a.attempt, a.delivery)
}

fn numbered(attempt: u32, delivery: u32) -> String {
    let again = if delivery > 0 { format!(" (delivery {})", delivery + 1) } else { String::new() };
    format!("attempt {attempt}{again}")
}

fn head(report: &Report) -> String {
    let job = &report.job;
    let mut out = format!("# {}\n\n**{}**\n\n", inline(&report.title), inline(&report.verdict));
    let mut rows = vec![vec!["job".to_owned(), format!("`{}`", job.id)]];
    let mut row = |key: &str, value: String| rows.push(vec![key.to_owned(), inline(&value)]);
    if let Some(spec) = &job.spec {
        row("image", spec.image.to_string());
        row("size", format!("{} vCPU, {} MiB", spec.vcpus, spec.memory_mib));
        row("pool", spec.pool.to_string());
        if !spec.kernel_args.is_empty() {
            row("kernel arguments", spec.kernel_args.clone());
        }
        let ready = &spec.readiness;
        row("ready means", format!("GET {} on port {} answers {}", ready.path, ready.port, ready.expected_status));
        if !spec.labels.is_empty() {
            let labels: Vec<_> = spec.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            row("labels", labels.join(", "));
        }
    }
    if let Some(at) = job.enqueued_at {
        row("enqueued", format!("{at} by {}", job.by.as_deref().unwrap_or("unknown")));
    }
    if let Some(reason) = &job.deferred {
        let since = job.deferred_since.map(|at| format!(", since {at}")).unwrap_or_default();
        row("put back", format!("{reason}{since}"));
    }
    table(&mut out, &rows);
    out
}

fn checks_table(columns: &[&AttemptChecks]) -> String {
    let Some(first) = columns.first() else { return String::new() };
    let mut out = "## Checks\n\n".to_owned();
    let mut header = vec!["check".to_owned()];
    header.extend(columns.iter().map(|c| numbered(c.attempt, c.delivery)));
    let mut rows = vec![header];
    // All attempts of a job have the same checks: they follow from its one spec.
    for (i, check) in first.checks.iter().enumerate() {
        let mut row = vec![inline(&check.name)];
        row.extend(columns.iter().map(|c| c.checks.get(i).map(cell).unwrap_or_default()));
        rows.push(row);
    }
    table(&mut out, &rows);
    out
}

fn cell(check: &Check) -> String {
    let after = check.after_ms.map(|ms| format!(" {}", duration(ms))).unwrap_or_default();
    let note = if check.note.is_empty() { String::new() } else { format!(" ({})", inline(&check.note)) };
    match check.status {
        CheckStatus::Passed => format!("✓{after}{note}"),
        CheckStatus::Failed => format!("✗ **failed**{note}"),
        CheckStatus::NotReached => "– not reached".to_owned(),
        CheckStatus::NotChecked => format!("○ not checked{note}"),
        CheckStatus::NotApplicable => format!("n/a{note}"),
        CheckStatus::Pending => "… pending".to_owned(),
    }
}

pub(super) fn stage_at(a: &AttemptView, stage: Stage) -> Option<(u64, &str)> {
    let seen = a.stages.iter().find(|s| s.name == stage.as_str())?;
    Some((seen.begin_ms + seen.took_ms, seen.detail.as_str()))
}

/// Failed and good attempts side by side: what was different.
fn before_after(attempts: &[&AttemptView]) -> String {
    let good = |a: &&AttemptView| a.outcome.was_proven();
    let failed = attempts.iter().any(|a| a.outcome == Outcome::Failed);
    if !(failed && attempts.iter().any(good)) {
        return String::new();
    }
    let mut out = "## Before and after\n\n".to_owned();
    let mut rows = vec![vec![String::new()]];
    rows[0].extend(attempts.iter().map(|a| format!("{}: {}", name(a), a.outcome.as_str())));
    let mut row = |key: &str, value: &dyn Fn(&AttemptView) -> Option<String>| {
        let values: Vec<_> = attempts.iter().map(|a| value(a)).collect();
        if values.iter().any(Option::is_some) {
            let cell = |value: Option<String>| value.map_or_else(|| "–".to_owned(), |v| inline(&v));
            rows.push(std::iter::once(key.to_owned()).chain(values.into_iter().map(cell)).collect());
        }
    };
    row("host", &|a| a.host.as_ref().map(ToString::to_string));
    row("address from the pool", &|a| a.address.map(|ip| ip.to_string()));
    row("address confirmed by DHCP", &|a| stage_at(a, Stage::DhcpAck).map(|(_, d)| d.to_owned()));
    row("agent answered at", &|a| a.proof.as_ref().map(|p| p.agent.to_string()));
    row("last stage", &|a| a.stages.iter().rfind(|s| !s.absent).map(|s| s.name.replace('_', " ")));
    row("took", &|a| a.took_ms.map(duration));
    row("cause", &|a| a.diagnosis.as_ref().map(|d| d.cause.title().to_owned()));
    table(&mut out, &rows);
    out
}

fn root_causes(attempts: &[&AttemptView]) -> String {
    let mut out = String::new();
    for a in attempts {
        let Some(d) = &a.diagnosis else { continue };
        if out.is_empty() {
            out.push_str("## Root cause\n");
        }
        let sure = match d.confidence {
            Some(Confidence::Certain) => " (certain)",
            Some(Confidence::Likely) => " (likely)",
            None => "",
        };
        let _ = writeln!(out, "\n### {}: {}{sure}\n", name(a), d.cause.title());
        let _ = writeln!(out, "{}\n\nRemedy: {}", inline(&d.summary), inline(&d.remedy));
        if !d.evidence.is_empty() {
            let _ = writeln!(out, "\nEvidence:\n\n```text\n{}\n```", fenced(&d.evidence.join("\n")));
        }
    }
    out
}

fn timings(attempts: &[&AttemptView]) -> String {
    let timed: Vec<_> = attempts.iter().filter(|a| !a.stages.is_empty()).collect();
    if timed.is_empty() {
        return String::new();
    }
    let mut out = "## Timings\n".to_owned();
    for a in timed {
        let _ = writeln!(out, "\n{}, {}:\n\n```text\n{}```", name(a), a.outcome.as_str(), waterfall::render(a));
    }
    out
}

fn answer(job: &JobView) -> String {
    let Some(proof) = job.attempts.iter().rev().find_map(|a| a.proof.as_ref()) else { return String::new() };
    let path = job.spec.as_ref().map_or("/", |s| s.readiness.path.as_str());
    let request = format!("GET http://{}{path}", proof.agent);
    let body = fenced(&format!("{request}\n{}\n\n{}", proof.status, proof.body));
    format!("## The agent's answer\n\n```http\n{body}\n```\n")
}

fn services(attempts: &[&AttemptView], console: &[String]) -> String {
    let last = attempts.iter().rev().find(|a| !a.units.is_empty());
    let line = |ok: bool, unit: &str| {
        if ok { format!("[  OK  ] Started {unit}") } else { format!("[FAILED] Failed to start {unit}") }
    };
    let units: Vec<_> = last.map(|a| a.units.iter().map(|u| line(u.ok, &u.name)).collect()).unwrap_or_default();
    let mut out = String::new();
    if !units.is_empty() {
        let _ = write!(out, "## Services\n\n```text\n{}\n```\n", fenced(&units.join("\n")));
    }
    if !console.is_empty() {
        let gap = if out.is_empty() { "" } else { "\n" };
        let _ = write!(out, "{gap}## End of the console\n\n```text\n{}\n```\n", fenced(&console.join("\n")));
    }
    out
}
