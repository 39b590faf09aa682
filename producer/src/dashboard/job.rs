//! One job: where it stands, its attempts side by side, why it failed and what to press, its
//! console, its events, its spec.

use axum::extract::{Path, State};
use maud::{Markup, html};
use stoker_schemas::{JobState, Phase};

use super::layout::{Frame, Page, Tab};
use super::{attempt, console, parts};
use crate::http::{Api, Problem, console_tail};
use crate::readmodel::Stored;
use crate::report::Report;
use crate::view::{AttemptView, JobView};

/// Events shown; a job that has more is a page of JSON away.
const EVENTS: usize = 200;

/// `GET /jobs/{id}`
pub async fn page(State(api): State<Api>, Path(id): Path<String>) -> Page {
    let state = match api.state(&id) {
        Ok(state) => state,
        Err(problem) => return Page::problem(&api, Tab::Jobs, &problem),
    };
    let tail = console_tail(&api, &state).await;
    let body = content(&api, &state, tail.as_deref());
    let title = format!("Job {}", state.id);
    Page::of(&api, Frame { job: Some(state.id), ..Frame::new(&title, Tab::Jobs) }, body)
}

fn content(api: &Api, state: &JobState, tail: Option<&str>) -> Result<Markup, Problem> {
    let report = Report::of(state, tail);
    let job = &report.job;
    let events = api.model().stored_events(state.id)?;
    Ok(html! {
        (head(job, &report.verdict))
        @if let Some(next) = &job.next {
            p { "Attempt " (next.attempt) " is due " (parts::due(next.not_before))
                @if let Some(cause) = next.cause { ", after " (cause.title()) }
                @if let Some(by) = &next.by { ", asked for by " (by) }
                @if let Some(by) = &next.snoozed_by { ", snoozed by " (by) } }
        }
        @if let Some(reason) = &job.deferred {
            p { "Put back by the last host that had it: " (reason)
                @if let Some(since) = job.deferred_since { " (since " (parts::ago(since)) ")" } }
        }
        @if let Some(again) = &job.republished {
            p { "Its message was published again " (parts::time(again.at))
                @if again.times > 1 { ", " (again.times) " times by now" }
                ": " (again.reason) }
        }
        div.panels { @for a in job.attempts.iter().rev() { (attempt::section(job, a)) } }
        @if let Some(tail) = tail { (console::section(job.id, job.last(), tail)) }
        (spec(job))
        (history(&events)?)
        p { a href={ "/v1/jobs/" (job.id) "/report" } { "Report (Markdown)" } " · "
            a href={ "/v1/jobs/" (job.id) "/events" } { "Events (JSON)" } " · "
            a href={ "/v1/jobs/" (job.id) "/console" } { "Console (text)" } }
    })
}

fn head(job: &JobView, verdict: &str) -> Markup {
    let labels = job.spec.iter().flat_map(|spec| &spec.labels);
    html! {
        h1 { "Job " code #id { (job.id) } " " button type="button" data-copy="id" title="Copy the id" { "Copy" } }
        p { (parts::state(job.phase, job.cancelling)) " · " (verdict) }
        p.dim {
            @if let Some(spec) = &job.spec { (spec.image) " · pool " (spec.pool) " · " }
            "enqueued " @if let Some(at) = job.enqueued_at { (parts::time(at)) }
            @if let Some(by) = &job.by { " by " (by) }
            @for (key, value) in labels { " · " (key) "=" (value) }
        }
        (actions(job))
    }
}

/// What may be done in this state. The rules are the log's own; the host decides again.
fn actions(job: &JobView) -> Markup {
    let JobView { id, phase, cancelling, .. } = *job;
    let button = |action: &str, label: &str, class: &str, key: bool| {
        html! { form.inline method="post" action={ "/jobs/" (id) "/" (action) } {
            (parts::form_guard())
            button class=(class) data-key-r[key] { (label) }
        } }
    };
    let again = matches!(phase, Phase::Dead | Phase::Cancelled | Phase::Stopped | Phase::Retrying);
    let waits = matches!(phase, Phase::Retrying | Phase::Queued);
    html! {
        div.row {
            @if again || waits { (button("retry", if waits { "Retry now" } else { "Retry" }, "main", true)) }
            @if again { a href={ "/jobs/" (id) "/edit" } { "Edit and retry" } }
            @if phase == Phase::Ready { (button("stop", "Stop the VM", "danger", false)) }
            @if !cancelling && matches!(phase, Phase::Queued | Phase::Booting | Phase::Retrying | Phase::Failing) {
                (button("cancel", "Cancel", "danger", false))
            }
            @if phase == Phase::Retrying { @for (seconds, name) in parts::SNOOZES {
                (button(&format!("snooze-{seconds}"), &format!("Snooze {name}"), "", false))
            } }
        }
    }
}

fn spec(job: &JobView) -> Markup {
    let Some(spec) = &job.spec else { return html! {} };
    let text = serde_json::to_string_pretty(spec).unwrap_or_default();
    html! {
        details #spec { summary { "Spec" }
            button type="button" data-copy="spec-text" { "Copy" }
            pre.json #spec-text tabindex="0" role="group" aria-label="Spec" { (text) }
        }
    }
}

fn history(events: &[Stored]) -> Result<Markup, Problem> {
    let shown = events.len().saturating_sub(EVENTS);
    let mut rows = Vec::with_capacity(events.len().min(EVENTS));
    for stored in &events[shown..] {
        rows.push((stored, stored.event()?));
    }
    Ok(html! {
        details #events { summary { "Events (" (events.len()) ")" }
            table { tbody { @for (stored, event) in &rows {
                tr id={ "e" (stored.seq) } {
                    td.num { a href={ "#e" (stored.seq) } { (stored.seq) } }
                    td.fit { (parts::time(event.time)) }
                    td { details { summary { (event.data.kind()) }
                        pre.json tabindex="0" role="group" aria-label="Event" { (String::from_utf8_lossy(&stored.json)) } } }
                    td.wide { (event.source) }
                }
            } } }
        }
    })
}

/// A name for an attempt.
pub fn name(a: &AttemptView) -> String {
    if a.delivery == 0 { format!("Attempt {}", a.attempt) } else { format!("Attempt {}, given out again", a.attempt) }
}
