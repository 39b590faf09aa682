//! Lists of jobs: what the address says is what is shown, and what may be done with it.

use std::fmt::Write as _;

use axum::extract::State;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use stoker_schemas::diagnosis::Cause;
use stoker_schemas::{Phase, Time};

use super::layout::{Frame, Page, Tab};
use super::parts;
use crate::http::{Api, ListQuery, Params, Problem};
use crate::readmodel::{Filter, Found, JobSummary, Phases};

/// Ranges of time to choose from: name and minutes.
const RANGES: [(&str, i64); 3] = [("in the last hour", 60), ("24 hours", 24 * 60), ("7 days", 7 * 24 * 60)];

/// What can be asked for of many jobs: the action's name, and its words around theirs.
pub type Wish = (&'static str, &'static str, &'static str);
const WISHES: [Wish; 3] = [("retry", "Retry", ""), ("cancel", "Cancel", ""), ("stop", "Stop", "")];

/// `GET /jobs`
pub async fn page(State(api): State<Api>, Params(mut query): Params<ListQuery>) -> Response {
    query.forget_empty();
    // An id, or enough of one, leads straight to its job.
    if let Some(text) = query.text().filter(|text| text.len() >= 8)
        && let Ok(Found::One(id)) = api.model().find(text)
    {
        return Redirect::to(&format!("/jobs/{id}")).into_response();
    }
    let search = query.text().unwrap_or_default().to_owned();
    let frame = Frame { search: &search, ..Frame::new("Jobs", Tab::Jobs) };
    let body = content(&api, &query);
    Page::of(&api, frame, body).into_response()
}

fn content(api: &Api, query: &ListQuery) -> Result<Markup, Problem> {
    let filter = query.filter()?;
    let found = query.page(api, &filter)?;
    let known = api.model().counts().phases.values().sum::<u64>();
    Ok(html! {
        h1 { "Jobs" }
        (filters(&filter))
        (ranges(&filter, api.now()))
        @if found.jobs.is_empty() {
            (empty(known, found.next.is_some()))
        } @else {
            (selectable(&found.jobs, &filter, "/jobs"))
        }
        @if let Some(next) = &found.next {
            p { a rel="next" href={ "/jobs?" (address(&filter)) "cursor=" (next) } { "Older jobs" } }
        }
    })
}

fn empty(known: u64, more: bool) -> Markup {
    if more {
        return html! { p.dim { "Nothing in the newest of them; older jobs are not searched yet." } };
    }
    if known == 0 {
        return parts::nothing("No jobs yet. Enqueue one:", &html! { pre { "stoker enqueue golden --wait" } });
    }
    html! { p.dim { "No job matches. " a href="/jobs" { "Show all" } } }
}

/// A table whose rows can be ticked, with what may be done to the ticked ones or to all that match.
pub fn selectable(jobs: &[JobSummary], filter: &Filter, back: &str) -> Markup {
    picking(filter, back, &parts::job_table(jobs, true), &WISHES)
}

/// A form around a table whose rows can be ticked.
pub fn picking(filter: &Filter, back: &str, table: &Markup, wishes: &[Wish]) -> Markup {
    html! {
        form method="post" action="/jobs/act" {
            (parts::form_guard())
            input type="hidden" name="back" value=(back);
            input type="hidden" name="filter" value=(address(filter));
            (table)
            div.bar {
                span { span data-picked { "0" } " selected" }
                @for (action, verb, how) in wishes {
                    button name="action" value=(action) data-needs-picked { (verb) " selected" (how) }
                }
                span.dim { "or all that match:" }
                @for (action, verb, how) in wishes {
                    button name="action" value={ (action) "-all" } { (verb) " all" (how) "…" }
                }
            }
        }
    }
}

fn filters(filter: &Filter) -> Markup {
    let field = |name: &str, label: &str, value: Option<&String>| {
        html! { label { (label) input name=(name) value=[value] size="14"; } }
    };
    // The address may ask for more than a list to choose one from can show.
    let only = filter.phase.as_ref().and_then(Phases::only);
    let several = filter.phase.as_ref().filter(|_| only.is_none());
    let times = [("since", filter.since), ("until", filter.until)];
    html! {
        form.filters action="/jobs" {
            @for (name, time) in times { @if let Some(time) = time { input type="hidden" name=(name) value=(time); } }
            label { "state" select name="phase" {
                option value="" { "any" }
                @if let Some(several) = several { option value=(several) selected { (several) } }
                @for phase in Phase::ALL { option value=(phase) selected[only == Some(phase)] { (phase) } }
            } }
            label { "cause" select name="cause" {
                option value="" { "any" }
                @for cause in Cause::ALL { option value=(cause) selected[filter.cause == Some(*cause)] { (cause.title()) } }
            } }
            (field("image", "image", filter.image.as_ref()))
            (field("pool", "pool", filter.pool.as_ref()))
            (field("host", "host", filter.host.as_ref()))
            (field("label", "label (key or key=value)", filter.label.as_ref()))
            (field("text", "text", filter.text.as_ref()))
            button.main { "Filter" }
            @if *filter != Filter::default() { a href="/jobs" { "Clear" } }
        }
    }
}

/// The usual ranges of time, as links: what a browser's own field for times sends is local time,
/// and the server does not know whose.
fn ranges(filter: &Filter, now: Time) -> Markup {
    let begin = |minutes: i64| Time::from_unix_micros(now.unix_micros() - minutes * 60_000_000);
    let asked = filter.since.is_some() || filter.until.is_some();
    let all = Filter { since: None, until: None, ..filter.clone() };
    html! {
        p.dim { "Enqueued "
            @for (name, minutes) in RANGES {
                @let within = Filter { since: Some(begin(minutes)), ..all.clone() };
                a href={ "/jobs?" (address(&within)) } { (name) } " · "
            }
            a href={ "/jobs?" (address(&all)) } aria-current=[(!asked).then_some("true")] { "at any time" }
            @if let Some(since) = filter.since { " · now since " (parts::time(since)) }
            @if let Some(until) = filter.until { " · now before " (parts::time(until)) }
        }
    }
}

/// A filter as the query of an address; ends in `&` unless it is empty.
pub fn address(filter: &Filter) -> String {
    let fields = [
        ("phase", filter.phase.as_ref().map(Phases::to_string)),
        ("cause", filter.cause.map(|c| c.to_string())),
        ("image", filter.image.clone()),
        ("pool", filter.pool.clone()),
        ("host", filter.host.clone()),
        ("label", filter.label.clone()),
        ("text", filter.text.clone()),
        ("since", filter.since.map(|t| t.to_string())),
        ("until", filter.until.map(|t| t.to_string())),
    ];
    let mut query = String::new();
    for (name, value) in fields.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        query.push_str(name);
        query.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => query.push(char::from(byte)),
                // Writing to a String cannot fail.
                _ => drop(write!(query, "%{byte:02X}")),
            }
        }
        query.push('&');
    }
    query
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_says_what_is_filtered_and_nothing_more() {
        assert_eq!(address(&Filter::default()), "");
        let filter =
            Filter { phase: Some(Phase::Dead.into()), text: Some("a b&c=\u{e9}".to_owned()), ..Filter::default() };
        assert_eq!(address(&filter), "phase=dead&text=a%20b%26c%3D%C3%A9&");
    }
}
