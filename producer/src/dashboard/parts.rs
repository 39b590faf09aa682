//! Pieces that pages share: states, times, causes, numbers, small charts.

use maud::{Markup, html};
use stoker_schemas::diagnosis::Cause;
use stoker_schemas::spec::FieldError;
use stoker_schemas::{JobId, Phase, Time};

use crate::http::access::{CSRF_FIELD, Caller};
use crate::readmodel::JobSummary;
use crate::view::duration;

/// A state by its name in the log; colour and shape come on top.
pub fn state(phase: Phase, cancelling: bool) -> Markup {
    html! { span class={ "state " (phase) } { (phase) @if cancelling { ", cancelling" } } }
}

/// A moment; the script shows it in local time, with UTC on hover.
pub fn time(at: Time) -> Markup {
    html! { time datetime=(at) { (at) } }
}

/// A moment shown as how long ago it was.
pub fn ago(at: Time) -> Markup {
    html! { time datetime=(at) data-relative { (at) } }
}

/// A moment that something is due at, shown as how long it takes until then.
pub fn due(at: Time) -> Markup {
    html! { time datetime=(at) data-due { (at) } }
}

/// A number with its thousands apart.
pub fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Enough of an id to tell jobs apart by the eye: its end, which is random; the beginning is a time.
pub fn job_link(id: JobId) -> Markup {
    let text = id.to_string();
    html! { a.mono href={ "/jobs/" (text) } title=(text) { (text.get(text.len().saturating_sub(12)..).unwrap_or(&text)) } }
}

/// A cause, as a link to the jobs that have it.
pub fn cause_link(cause: Cause, phase: Phase) -> Markup {
    html! { a href={ "/jobs?phase=" (phase) "&cause=" (cause) } { (cause.title()) } }
}

/// How long an attempt can be snoozed with one click: seconds, and their name.
pub const SNOOZES: [(u64, &str); 3] = [(15 * 60, "15 min"), (3_600, "1 h"), (8 * 3_600, "8 h")];

/// What every form that posts carries: with a session, its guard against forms of other sites.
pub fn form_guard() -> Markup {
    let csrf = Caller::current().and_then(|caller| caller.csrf);
    html! { @if let Some(csrf) = csrf { input type="hidden" name=(CSRF_FIELD) value=(csrf); } }
}

/// What is wrong with a form, field by field.
pub fn field_errors(errors: &[FieldError]) -> Markup {
    html! {
        ul { @for e in errors { li { code { (e.field) } ": " (e.message) @if !e.hint.is_empty() { "; " (e.hint) } } } }
    }
}

/// The table of jobs that lists share. `select` puts a box before each.
pub fn job_table(jobs: &[JobSummary], select: bool) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Jobs" {
            table {
                thead { tr {
                    @if select { th { input type="checkbox" data-all aria-label="Select all on this page"; } }
                    th { "state" } th { "job" } th { "image" } th.wide { "host" } th.num.wide { "attempts" } th.num { "boot" }
                    th { "problem" } th { "enqueued" }
                } }
                tbody { @for job in jobs { (job_row(job, select)) } }
            }
        }
    }
}

fn job_row(job: &JobSummary, select: bool) -> Markup {
    html! {
        tr data-key=(job.id) data-href={ "/jobs/" (job.id) } {
            @if select {
                td { input type="checkbox" name="id" value=(job.id) aria-label={ "Select job " (job.id) }; }
            }
            td.fit { (state(job.phase, job.cancelling)) }
            td.fit { (job_link(job.id)) }
            td { (job.image) @for (key, value) in job.labels.iter().take(3) { " " span.dim { (key) "=" (value) } } }
            td.wide { @if let Some(host) = &job.host { a href={ "/jobs?host=" (host) } { (host) } } }
            td.num.wide { (job.attempts) }
            td.num.fit { @if let Some(ms) = job.boot_ms { (duration(ms)) } }
            td { @if let Some(cause) = job.cause { (cause.title()) }
                @if let Some(at) = job.not_before { " · " (due(at)) }
                @if let Some(by) = &job.snoozed_by { " · snoozed by " (by) } }
            td.fit { (ago(job.created)) }
        }
    }
}

/// Bars side by side, the newest at the right, with the same numbers as a table for those who
/// cannot or would rather not look at them. `bad` marks bars.
pub fn bars(label: &str, values: &[(String, u64, bool)]) -> Markup {
    let most = values.iter().map(|(_, n, _)| *n).max().unwrap_or(0).max(1);
    let height = |n: u64| n * 60 / most;
    html! {
        svg.chart viewBox={ "0 0 " (values.len() * 10) " 64" } preserveAspectRatio="none" role="img" aria-label=(label) {
            line x1="0" y1="63.5" x2=(values.len() * 10) y2="63.5" {}
            @for (i, (name, n, bad)) in values.iter().enumerate() {
                rect class=[bad.then_some("bad")] x=(i * 10 + 1) y=(63 - height(*n)) width="8" height=(height(*n)) {
                    title { (name) ": " (number(*n)) }
                }
            }
        }
        details { summary.dim { "as a table" }
            table { tbody { @for (name, n, _) in values.iter().filter(|(_, n, _)| *n > 0) {
                tr { td { (name) } td.num { (number(*n)) } }
            } } }
        }
    }
}

/// How full something is.
pub fn meter(used: u64, total: u64) -> Markup {
    html! {
        (share(used, total))
        " " (number(used)) "/" (number(total))
    }
}

/// A share of a whole.
pub fn share(part: u64, whole: u64) -> Markup {
    html! {
        svg.meter viewBox="0 0 120 10" aria-hidden="true" {
            rect x="0" y="0" width=(part.min(whole) * 120 / whole.max(1)) height="10" {}
        }
    }
}

/// Says that nothing is there, and what would make something.
pub fn nothing(what: &str, hint: &Markup) -> Markup {
    html! { p.dim { (what) } (hint) }
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn thousands_are_apart() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
    }
}
