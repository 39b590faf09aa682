//! The end of a guest's console: escapes taken out, lines numbered, good and bad ones marked.

use maud::{Markup, html};
use stoker_schemas::JobId;

use crate::report::plain;
use crate::view::AttemptView;

/// Lines on the page.
const LINES: usize = 400;
/// What a line contains that says something went wrong.
const BAD: [&str; 8] = [
    "[FAILED]",
    "[DEPEND]",
    "[ TIME ]",
    "Kernel panic",
    "Out of memory",
    "emergency mode",
    "Call Trace",
    "IP-Config: Complete",
];

/// The part of the page about it.
pub fn section(id: JobId, last: Option<&AttemptView>, text: &str) -> Markup {
    let lines: Vec<_> = text.lines().collect();
    let first = lines.len().saturating_sub(LINES);
    html! {
        h2 #console { "Console" @if let Some(a) = last { " of attempt " (a.attempt) } }
        @if lines.is_empty() { p.dim { "Nothing was printed." } } @else {
            pre.console data-follow tabindex="0" role="group" aria-label="Console" { @for (i, line) in lines.iter().enumerate().skip(first) {
                (row(i + 1, line))
            } }
            @if first > 0 { p { a href={ "/v1/jobs/" (id) "/console" } { "All of it" } } }
        }
    }
}

fn row(number: usize, line: &str) -> Markup {
    let text = plain(line);
    let class = if BAD.iter().any(|bad| text.contains(bad)) {
        Some("bad")
    } else if text.contains("[  OK  ]") {
        Some("good")
    } else {
        None
    };
    html! { span id={ "c" (number) } class=[class] { a href={ "#c" (number) } aria-label={ "Line " (number) } { (number) } " " (text) } }
}
