//! What waits for its next attempt, soonest first, and why.

use std::collections::BTreeMap;

use axum::extract::State;
use maud::{Markup, html};
use stoker_schemas::{Phase, Time};

use super::layout::{Frame, Page, Tab};
use super::{jobs, parts};
use crate::http::{Api, Problem};
use crate::readmodel::{Filter, JobSummary};
use crate::view::ms_between;

/// Jobs on the page: those due soonest. All of them are one click away.
const SHOWN: usize = 100;
/// Upper ends of the histogram's bars, and what they are called.
const BARS: [(u64, &str); 8] = [
    (10_000, "within 10 s"),
    (30_000, "within 30 s"),
    (60_000, "within 1 min"),
    (300_000, "within 5 min"),
    (1_800_000, "within 30 min"),
    (7_200_000, "within 2 h"),
    (86_400_000, "within a day"),
    (u64::MAX, "later"),
];

/// `GET /retries`
pub async fn page(State(api): State<Api>) -> Page {
    let body = content(&api);
    Page::of(&api, Frame::new("Retries", Tab::Retries), body)
}

fn content(api: &Api) -> Result<Markup, Problem> {
    let total = api.model().counts().phases.get(&Phase::Retrying).copied().unwrap_or(0);
    let soonest = api.model().due_soonest(SHOWN)?;
    let filter = Filter::in_phase(Phase::Retrying);
    Ok(html! {
        h1 { "Retries" }
        @if soonest.is_empty() {
            p.dim { "Nothing waits for another attempt." }
        } @else {
            div.panels {
                section { h2 { "By cause" } (groups(api)) }
                section { h2 { "When" (of(total, soonest.len())) } (histogram(&soonest, api.now())) }
            }
            h2 { "Soonest first" (of(total, soonest.len())) }
            (jobs::selectable(&soonest, &filter, "/retries"))
        }
    })
}

fn of(total: u64, shown: usize) -> Markup {
    html! { @if total > shown as u64 { span.dim { " · the first " (shown) " of " a href="/jobs?phase=retrying" { (parts::number(total)) } } } }
}

fn groups(api: &Api) -> Markup {
    let causes = api.model().causes_of(Phase::Retrying);
    html! {
        table { tbody { @for (cause, n) in causes {
            tr { td { (parts::cause_link(cause, Phase::Retrying)) } td.num { (parts::number(n)) } }
        } } }
    }
}

fn histogram(jobs: &[JobSummary], now: Time) -> Markup {
    let mut counts: BTreeMap<u64, u64> = BARS.iter().map(|(end, _)| (*end, 0)).collect();
    for due in jobs.iter().filter_map(|job| job.not_before) {
        let wait = ms_between(now, due);
        if let Some((_, n)) = counts.range_mut(wait..).next() {
            *n += 1;
        }
    }
    let values: Vec<_> =
        BARS.iter().map(|(end, name)| ((*name).to_owned(), counts.get(end).copied().unwrap_or(0), false)).collect();
    parts::bars("Coming retries by when they are due", &values)
}
