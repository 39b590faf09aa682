//! Messages that no worker could work on: the list, one with its body, and the buttons.

use axum::extract::{Form, Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;
use stoker_schemas::event::BodyEncoding;

use super::layout::{Frame, Page, Tab};
use super::parts;
use crate::http::access::is_own_path;
use crate::http::letters::{self, LetterAction, LettersQuery};
use crate::http::{Api, Params, Problem};
use crate::readmodel::{LetterPage, LetterState, LetterSummary, WholeLetter};

/// A form about one letter.
#[derive(Debug, Default, Deserialize)]
pub struct LetterForm {
    /// Why.
    #[serde(default)]
    reason: String,
    /// The page to go back to; without it, the letter's.
    back: Option<String>,
}

/// `GET /dead-letters`
pub async fn page(State(api): State<Api>, Params(query): Params<LettersQuery>) -> Page {
    let body = query.page(&api).map(|found| content(&found, &query));
    Page::of(&api, Frame::new("Messages", Tab::Dead), body)
}

/// `GET /dead-letters/{id}`
pub async fn one(State(api): State<Api>, Path(id): Path<String>) -> Page {
    let body = letters::find(&api, &id).map(|letter| whole(&letter));
    Page::of(&api, Frame::new("Message", Tab::Dead), body)
}

/// `POST /dead-letters/{id}/{action}`
pub async fn act(
    State(api): State<Api>,
    Path((id, action)): Path<(String, String)>,
    headers: HeaderMap,
    Form(form): Form<LetterForm>,
) -> Response {
    let done = async {
        let action: LetterAction = action.parse()?;
        letters::act(&api, &id, action, &form.reason, &headers).await
    };
    match done.await {
        Ok(answer) => {
            let back = form.back.filter(|back| is_own_path(back));
            Redirect::to(&back.unwrap_or_else(|| format!("/dead-letters/{}", answer.id))).into_response()
        }
        Err(problem) => Page::problem(&api, Tab::Dead, &problem).into_response(),
    }
}

fn content(found: &LetterPage, query: &LettersQuery) -> Markup {
    html! {
        h1 { "Messages that no worker could work on" }
        p { a href="/dead" { "Dead letters" } " · "
            @if query.is_open() { a href="/dead-letters?state=done" { "Those done with" } }
            @else { a href="/dead-letters" { "Those open" } } }
        @if found.letters.is_empty() { p.dim { "None." } } @else { (table(&found.letters, "/dead-letters")) }
        @if let Some(next) = &found.next {
            p { a rel="next" href={ "/dead-letters?" (query.address()) "cursor=" (next) } { "Older" } }
        }
    }
}

/// The part of the page of dead letters that is about messages.
pub fn section(api: &Api, shown: usize) -> Result<Markup, Problem> {
    let found = api.model().letters(true, None, None, shown)?;
    Ok(html! {
        @if !found.letters.is_empty() {
            h2 { "Messages that no worker could work on" }
            p.dim { "They cannot be read, or the broker gave them up. The latest first." }
            (table(&found.letters, "/dead"))
        }
        p { a href="/dead-letters" { "All messages" } " · " a href="/dead-letters?state=done" { "Those done with" } }
    })
}

fn table(letters: &[LetterSummary], back: &str) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Messages" { table {
            thead { tr { th { "died" } th { "message" } th { "why" } th.wide { "queue" } th.num.wide { "bytes" } th.num { "times" }
                th { "job" } th {} } }
            tbody { @for letter in letters { (row(letter, back)) } }
        } }
    }
}

fn row(letter: &LetterSummary, back: &str) -> Markup {
    let id = letter.id.to_string();
    html! {
        tr data-key=(id) data-href={ "/dead-letters/" (id) } {
            td.fit { (parts::ago(letter.died_at)) }
            td.fit { a.mono href={ "/dead-letters/" (id) } title=(id) { (id.get(..12).unwrap_or(&id)) } }
            td { b { (letter.reason.title()) } ": " (letter.detail)
                @if letter.state != LetterState::Open { " · " (said(letter)) } }
            td.wide { (letter.queue) }
            td.num.wide { (parts::number(letter.size)) }
            td.num { (letter.deaths) }
            td.fit { @if let Some(work) = &letter.work { (parts::job_link(work.job)) } }
            td.fit { (buttons(letter, Some(back))) }
        }
    }
}

/// What was done about it, and who did.
fn said(letter: &LetterSummary) -> Markup {
    html! {
        @match (&letter.word, letter.state) {
            (Some(word), LetterState::Redriven | LetterState::Dismissed) => {
                (letter.state.as_str()) " by " (word.by) " " (parts::ago(word.at))
                @if !word.reason.is_empty() { ": " (word.reason) }
            }
            _ => "the job went on without it",
        }
    }
}

fn buttons(letter: &LetterSummary, back: Option<&str>) -> Markup {
    let form = |action: &str, name: &str| {
        html! {
            form.inline method="post" action={ "/dead-letters/" (letter.id) "/" (action) } {
                (parts::form_guard())
                @if let Some(back) = back { input type="hidden" name="back" value=(back); }
                button { (name) }
            }
        }
    };
    html! {
        @if letter.state == LetterState::Open { (form("redrive", "Redrive")) " " (form("dismiss", "Dismiss")) }
    }
}

fn whole(letter: &WholeLetter) -> Markup {
    let WholeLetter { summary, body } = letter;
    html! {
        h1 { "Message " code { (summary.id) } }
        p { b { (summary.reason.title()) } ": " (summary.detail) }
        p { "What to do: " (summary.reason.remedy()) "." }
        @if summary.state != LetterState::Open { p { (said(summary)) } }
        div.row { (buttons(summary, None)) }
        table { tbody {
            @for (name, value) in facts(summary) { tr { th { (name) } td { (value) } } }
            tr { th { "died" } td { (parts::time(summary.died_at))
                @if summary.deaths > 1 { ", " (summary.deaths) " times since " (parts::time(summary.first_died_at)) } } }
            @if let Some(work) = &summary.work {
                tr { th { "job" } td { (parts::job_link(work.job)) ", attempt " (work.attempt) " (" (work.kind) ")" } }
            }
        } }
        h2 { "Body" @if summary.truncated { ": its beginning" } @else if body.encoding == BodyEncoding::Base64 { ", in base64" } }
        pre.json tabindex="0" role="group" aria-label="Body" { (body.content) }
        p { a href={ "/v1/dead-letters/" (summary.id) } { "As JSON" } " · " a href="/dead" { "Dead letters" } }
    }
}

fn facts(letter: &LetterSummary) -> Vec<(&'static str, String)> {
    let facts = [
        ("queue", letter.queue.clone()),
        ("exchange", letter.exchange.clone()),
        ("routing key", letter.routing_key.clone()),
        ("message id", letter.message_id.clone().unwrap_or_default()),
        ("content type", letter.content_type.clone().unwrap_or_default()),
        ("size", format!("{} bytes", parts::number(letter.size))),
        ("SHA-256", letter.sha256.clone()),
    ];
    facts.into_iter().filter(|(_, value)| !value.is_empty()).collect()
}
