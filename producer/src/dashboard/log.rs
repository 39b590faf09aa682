//! The event log as it grows: what was written last, newest first.

use axum::extract::State;
use maud::{Markup, html};
use serde::Deserialize;

use super::layout::{Frame, Page, Tab};
use super::parts;
use crate::http::{Api, Params, Problem};
use crate::readmodel::Stored;

/// Events on a page.
const SHOWN: u64 = 100;
/// Events looked through for a page when a kind is asked for.
const LOOKED_THROUGH: u64 = 5_000;

/// Query of the page.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogPageQuery {
    /// Only events with a number below this.
    before: Option<u64>,
    /// Only kinds that contain this.
    kind: Option<String>,
}

/// `GET /log`
pub async fn page(State(api): State<Api>, Params(query): Params<LogPageQuery>) -> Page {
    let body = content(&api, &query);
    Page::of(&api, Frame::new("Log", Tab::Log), body)
}

fn content(api: &Api, query: &LogPageQuery) -> Result<Markup, Problem> {
    let kind = query.kind.as_deref().filter(|kind| !kind.is_empty());
    let end = query.before.unwrap_or(u64::MAX).min(api.model().next_seq());
    let wanted = if kind.is_some() { LOOKED_THROUGH } else { SHOWN };
    let from = end.saturating_sub(wanted);
    let events = api.model().arrived(from, usize::try_from(end - from).unwrap_or(usize::MAX))?;
    let mut rows = Vec::new();
    for stored in events.iter().rev() {
        let event = stored.event()?;
        if kind.is_none_or(|kind| event.data.kind().contains(kind)) {
            rows.push((stored, event));
        }
        if rows.len() as u64 >= SHOWN {
            break;
        }
    }
    let oldest = if rows.len() as u64 >= SHOWN { rows.last().map_or(from, |(s, _)| s.seq) } else { from };
    Ok(html! {
        h1 { "Log" }
        form.filters action="/log" {
            label { "kind contains" input name="kind" value=[kind] size="24"; }
            button.main { "Filter" }
        }
        @if rows.is_empty() { p.dim { "Nothing." } }
        div.scroll tabindex="0" role="region" aria-label="Events" { table {
            thead { tr { th.num { "number" } th { "time" } th { "kind" } th { "about" } th.wide { "told by" } } }
            tbody { @for (stored, event) in &rows { (row(stored, event)) } }
        } }
        @if oldest > 0 {
            p { a rel="next" href={ "/log?before=" (oldest) @if let Some(kind) = kind { "&kind=" (kind) } } { "Older events" } }
        }
        p { a href="/v1/log?last=1000" { "The last thousand as NDJSON" } }
    })
}

fn row(stored: &Stored, event: &stoker_schemas::Event) -> Markup {
    html! {
        tr data-key={ "e" (stored.seq) } {
            td.num { (stored.seq) }
            td.fit { (parts::time(event.time)) }
            td { @if let Some(job) = stored.job { a href={ "/jobs/" (job) "#e" (stored.seq) } { (event.data.kind()) } }
                @else { (event.data.kind()) } }
            td { @if let Some(job) = stored.job { (parts::job_link(job)) } @else { (event.subject) } }
            td.wide { (event.source) }
        }
    }
}
