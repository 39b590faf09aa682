//! How far a wish for very many jobs is.

use axum::extract::{Path, State};
use maud::{Markup, html};

use super::layout::{Frame, Page, Tab};
use super::parts;
use crate::http::many::{self, Stand};
use crate::http::{Api, BulkView};

/// `GET /bulk/{id}`
pub async fn page(State(api): State<Api>, Path(id): Path<String>) -> Page {
    let body = many::view(&api, &id).map(|view| content(&view));
    Page::of(&api, Frame::new("Many jobs", Tab::Jobs), body)
}

fn content(view: &BulkView) -> Markup {
    let looked_at = view.done + view.left;
    html! {
        h1 { "Many jobs" }
        p { @match view.state {
            Stand::Running => "Being carried out.",
            Stand::Done => "Done.",
            Stand::Stopped => strong { "Stopped before its end." },
        } @if let Some(why) = &view.error { " " (why) } }
        p { (parts::meter(looked_at, view.total)) " looked at: " (parts::number(view.done)) " done, "
            (parts::number(view.left)) " left as they are" }
        @if !view.skipped.is_empty() {
            h2 { "Left as they are" @if view.left > view.skipped.len() as u64 { span.dim { " · the first " (view.skipped.len()) } } }
            table { tbody { @for skipped in &view.skipped {
                tr { td.mono { (skipped.id) } td { (skipped.reason) } }
            } } }
        }
        p { a href="/jobs" { "Jobs" } }
    }
}
