//! Webhooks: who may send, what came in and what became of it, and what was told to others.

use axum::extract::{Form, Path, State};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;

use super::layout::{Frame, Page, Tab};
use super::parts;
use crate::callbacks::{Call, Callbacks};
use crate::hooks::{self, Delivery, Hooks, Outcome};
use crate::http::{Api, Params, Problem};

/// Rows of each list on a page.
const SHOWN: usize = 50;
/// Bytes of a body that the page shows; the API has all of it.
const BODY_SHOWN: usize = 4 * 1024;
/// Outcomes, in the order of their columns.
const OUTCOMES: [Outcome; 4] = [Outcome::Accepted, Outcome::Duplicate, Outcome::Ignored, Outcome::Refused];

/// Query of the page.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhooksQuery {
    source: Option<String>,
    /// Only deliveries with a number below this.
    before: Option<u64>,
    /// Only callbacks with a number below this.
    calls_before: Option<u64>,
}

/// `GET /webhooks`
pub async fn page(State(api): State<Api>, Params(query): Params<WebhooksQuery>) -> Page {
    let body = content(&api, &query);
    Page::of(&api, Frame::new("Webhooks", Tab::Webhooks), body)
}

/// The button's form.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplayForm {
    /// How often the page showed that it was replayed.
    replays: u32,
}

/// `POST /webhooks/{n}/replay`
pub async fn replay(State(api): State<Api>, Path(n): Path<u64>, Form(form): Form<ReplayForm>) -> Response {
    match hooks::replay(&api, n, Some(form.replays)).await {
        // Its own row says what became of it, refusals too.
        Ok(_) => Redirect::to("/webhooks").into_response(),
        Err(problem) => Page::problem(&api, Tab::Webhooks, &problem).into_response(),
    }
}

fn content(api: &Api, query: &WebhooksQuery) -> Result<Markup, Problem> {
    let Some(webhooks) = api.webhooks() else {
        return Ok(html! {
            h1 { "Webhooks" }
            (parts::nothing("Webhooks are not set up.", &html! {
                p { "Describe sources in a file and start Stoker with " code { "--hooks FILE" } "." }
            }))
        });
    };
    Ok(html! {
        h1 { "Webhooks" }
        (sources(&webhooks.hooks))
        (deliveries(&webhooks.hooks, query)?)
        h2 { "Callbacks out" }
        @match &webhooks.callbacks {
            Some(callbacks) => (calls(callbacks, query)?),
            None => p.dim { "Callbacks are not sent: the hooks file has no " code { "[callbacks]" } "." },
        }
    })
}

fn sources(hooks: &Hooks) -> Markup {
    html! {
        h2 { "Sources" }
        @if hooks.sources().is_empty() { p.dim { "The hooks file has no " code { "[[source]]" } "." } } @else {
            table {
                thead { tr { th { "source" } th { "address" } th { "kind" }
                    @for outcome in OUTCOMES { th.num { (outcome.as_str()) } } } }
                tbody { @for (name, source) in hooks.sources() { tr {
                    td { a href={ "/webhooks?source=" (name) } { (name) } }
                    td.mono { "/hooks/" (name) }
                    td { (source.kind.as_str()) }
                    @for outcome in OUTCOMES { td.num { (parts::number(hooks.log().count(name, outcome))) } }
                } } }
            }
        }
    }
}

fn deliveries(hooks: &Hooks, query: &WebhooksQuery) -> Result<Markup, Problem> {
    let source = query.source.as_deref().filter(|source| !source.is_empty());
    let rows = hooks.log().list(source, query.before.unwrap_or(u64::MAX), SHOWN)?;
    let next = rows.last().filter(|_| rows.len() == SHOWN).map(|last| last.n);
    let shown = rows.iter().map(|row| delivery(hooks, row)).collect::<Result<Vec<_>, _>>()?;
    Ok(html! {
        h2 { "Deliveries in" @if let Some(source) = source { " of " (source) } }
        @if source.is_some() { p { a href="/webhooks" { "All sources" } } }
        @if rows.is_empty() { p.dim { "Nothing." } } @else {
            div.scroll tabindex="0" role="region" aria-label="Deliveries" { table {
                thead { tr { th { "time" } th { "source" } th { "id" } th { "outcome" } th { "why" } th { "job" } th { "body" } th {} } }
                tbody { @for row in &shown { (row) } }
            } }
        }
        @if let Some(next) = next {
            p { a rel="next" href={ "/webhooks?before=" (next) @if let Some(source) = source { "&source=" (source) } } { "Older deliveries" } }
        }
    })
}

fn delivery(hooks: &Hooks, row: &Delivery) -> Result<Markup, Problem> {
    let body = if row.replayable { hooks.log().body(row.n)? } else { None };
    Ok(html! {
        tr data-key={ "w" (row.n) } {
            td.fit { (parts::ago(row.at)) }
            td { (row.source) @if let Some(event) = &row.event { " " span.dim { (event) } } }
            td.mono { (row.id.as_deref().unwrap_or("–"))
                @if let Some(first) = row.replay_of { " " span.dim { "replay of " (first) } } }
            td.fit { (row.outcome.as_str()) " " span.dim { (row.status) } }
            td { (row.why) }
            td.fit { @if let Some(job) = row.job { (parts::job_link(job)) } }
            td { @if let Some(body) = &body { (body_of(row, body)) } @else { (parts::number(row.bytes)) " bytes" } }
            td.fit { @if row.replayable { form method="post" action={ "/webhooks/" (row.n) "/replay" } {
                (parts::form_guard())
                input type="hidden" name="replays" value=(row.replays);
                button { "Replay" @if row.replays > 0 { " (" (row.replays) ")" } }
            } } }
        }
    })
}

fn body_of(row: &Delivery, body: &[u8]) -> Markup {
    let text = String::from_utf8_lossy(&body[..body.len().min(BODY_SHOWN)]);
    html! {
        details { summary { (parts::number(row.bytes)) " bytes" }
            pre.json tabindex="0" role="group" aria-label="Body" { (text) @if body.len() > BODY_SHOWN { "…" } }
            a href={ "/v1/hooks/deliveries/" (row.n) } { "with headers, as JSON" }
        }
    }
}

fn calls(callbacks: &Callbacks, query: &WebhooksQuery) -> Result<Markup, Problem> {
    let rows = callbacks.list(query.calls_before.unwrap_or(u64::MAX), SHOWN)?;
    let next = rows.last().filter(|_| rows.len() == SHOWN).map(|last| last.n);
    let waiting = callbacks.waiting();
    Ok(html! {
        @if waiting > 0 { p { (parts::number(waiting)) " wait for their next try." } }
        @if rows.is_empty() { p.dim { "Nothing. Jobs with a " code { "callback_url" } " are told about here." } } @else {
            div.scroll tabindex="0" role="region" aria-label="Callbacks" { table {
                thead { tr { th { "made" } th { "event" } th { "job" } th { "target" } th { "state" } th.num { "tries" }
                    th { "last answer" } th { "next try" } } }
                tbody { @for row in &rows { (call(row)) } }
            } }
        }
        @if let Some(next) = next { p { a rel="next" href={ "/webhooks?calls_before=" (next) } { "Older callbacks" } } }
    })
}

fn call(row: &Call) -> Markup {
    html! {
        tr data-key={ "c" (row.n) } {
            td.fit { (parts::ago(row.created)) }
            td.fit { (row.kind) }
            td.fit { (parts::job_link(row.job)) }
            td.mono { (row.target()) }
            td.fit { (row.state.as_str()) }
            td.num { (row.tries) }
            td { @if let Some(last) = &row.last { @if let Some(status) = last.status { (status) " " } (last.words) } }
            td.fit { @if let Some(due) = row.due { (parts::due(due)) } }
        }
    }
}
