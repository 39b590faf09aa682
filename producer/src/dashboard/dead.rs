//! Jobs that ended dead, by cause; messages that no worker could work on; and entries of the history that are
//! no events.

use axum::extract::State;
use maud::{Markup, html};
use stoker_schemas::Phase;

use super::layout::{Frame, Page, Tab};
use super::{jobs, letters, parts};
use crate::http::{Api, ListQuery, Params, Problem};
use crate::readmodel::{Filter, Undecodable};

/// Messages shown; the others have a page.
const LETTERS: usize = 20;
/// Entries of the history shown that could not be read.
const UNDECODABLE: usize = 20;
/// Bytes of each in hexadecimal.
const HEX_BYTES: usize = 64;

/// `GET /dead`
pub async fn page(State(api): State<Api>, Params(mut query): Params<ListQuery>) -> Page {
    query.forget_empty();
    let body = content(&api, &query);
    Page::of(&api, Frame::new("Dead letters", Tab::Dead), body)
}

fn content(api: &Api, query: &ListQuery) -> Result<Markup, Problem> {
    let filter = Filter { phase: Some(Phase::Dead.into()), ..query.filter()? };
    let found = query.page(api, &filter)?;
    let causes = api.model().causes_of(Phase::Dead);
    let undecodable = api.model().undecodable(UNDECODABLE)?;
    Ok(html! {
        h1 { "Dead letters" }
        @if causes.is_empty() && found.jobs.is_empty() {
            p.dim { "No job ended dead." }
        } @else {
            h2 { "Jobs that ended dead, by cause" }
            table { tbody { @for (cause, n) in causes {
                tr data-key=(cause) {
                    td { a href={ "/dead?cause=" (cause) } { (cause.title()) } }
                    td.num { (parts::number(n)) }
                    td { form.inline method="post" action="/jobs/act" {
                        (parts::form_guard())
                        input type="hidden" name="back" value="/dead";
                        input type="hidden" name="filter" value={ "phase=dead&cause=" (cause) };
                        button name="action" value="retry-all" { "Redrive " (parts::number(n)) "…" }
                    } }
                }
            } } }
            h2 { "Newest first"
                @if let Some(cause) = filter.cause { ": " (cause.title()) " · " a href="/dead" { "all causes" } } }
            (jobs::selectable(&found.jobs, &filter, "/dead"))
            @if let Some(next) = &found.next {
                p { a rel="next" href={ "/dead?" (jobs::address(&Filter { phase: None, ..filter.clone() })) "cursor=" (next) } { "Older" } }
            }
            @let these = jobs::address(&Filter { phase: None, ..filter.clone() });
            p { "Export " a href={ "/v1/dead?" (these) "format=ndjson" } { "NDJSON" }
                " · " a href={ "/v1/dead?" (these) "format=csv" } { "CSV" }
                " · " a href={ "/v1/dead?" (these) "limit=500" } { "As JSON" } }
        }
        (letters::section(api, LETTERS)?)
        @if !undecodable.is_empty() { (unread(&undecodable)) }
    })
}

fn unread(entries: &[Undecodable]) -> Markup {
    html! {
        h2 { "History entries that are no events" }
        p.dim { "Somebody publishes to Stoker's exchange what its schema does not know. The newest first." }
        @for entry in entries {
            details data-key={ "x" (entry.offset) } {
                summary { code { (entry.routing_key) } " at " (entry.offset) ": " (entry.reason) }
                pre.json tabindex="0" role="group" aria-label="As text" { (entry.body) }
                pre.json tabindex="0" role="group" aria-label="As bytes" { (hex(entry.body.as_bytes())) }
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().take(HEX_BYTES).fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x} ");
        text
    })
}
