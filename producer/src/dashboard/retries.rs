//! What waits for its next attempt, soonest first, and why.

use std::collections::BTreeMap;

use axum::extract::State;
use maud::{Markup, html};
use stoker_schemas::{Phase, Time};

use super::jobs::Wish;
use super::layout::{Frame, Page, Tab};
use super::{jobs, parts};
use crate::http::{Api, Problem};
use crate::readmodel::{Filter, JobSummary};
use crate::view::ms_between;

/// Jobs on the page: those due soonest. All of them are one click away.
const SHOWN: usize = 100;
/// Hosts on the page: those with the most.
const HOSTS: usize = 20;
/// What is asked for of jobs that wait: their VMs are gone, there is nothing to stop.
const WISHES: [Wish; 5] = [
    ("retry", "Retry", " now"),
    ("cancel", "Cancel", ""),
    ("snooze-900", "Snooze", " for 15 min"),
    ("snooze-3600", "Snooze", " for 1 h"),
    ("snooze-28800", "Snooze", " for 8 h"),
];
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
                section { h2 { "By cause" } (causes(api)) }
                section { h2 { "By host of the last attempt" } (hosts(api)) }
                section { h2 { "When" (of(total, soonest.len())) } (histogram(&soonest, api.now())) }
            }
            h2 { "Soonest first" (of(total, soonest.len())) }
            (jobs::picking(&filter, "/retries", &table(&soonest, api.now()), &WISHES))
        }
    })
}

fn of(total: u64, shown: usize) -> Markup {
    html! { @if total > shown as u64 { span.dim { " · the first " (shown) " of " a href="/jobs?phase=retrying" { (parts::number(total)) } } } }
}

fn causes(api: &Api) -> Markup {
    let causes = api.model().causes_of(Phase::Retrying);
    html! {
        table { tbody { @for (cause, n) in causes {
            tr { td { (parts::cause_link(cause, Phase::Retrying)) } td.num { (parts::number(n)) } }
        } } }
    }
}

fn hosts(api: &Api) -> Markup {
    let hosts = api.model().retrying_hosts();
    let rest = hosts.len().saturating_sub(HOSTS);
    html! {
        table { tbody { @for (host, n) in hosts.iter().take(HOSTS) {
            tr { td { a href={ "/jobs?phase=retrying&host=" (host) } { (host) } } td.num { (parts::number(*n)) } }
        } } }
        @if rest > 0 { p.dim { (parts::number(rest as u64)) " more hosts with fewer" } }
    }
}

fn table(jobs: &[JobSummary], now: Time) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Jobs that wait" { table {
            thead { tr {
                th { input type="checkbox" data-all aria-label="Select all on this page"; }
                th { "due" } th { "job" } th.wide { "image" } th.wide { "host" } th.num.wide { "attempts" }
                th { "problem" } th { "snooze for" }
            } }
            tbody { @for job in jobs { (row(job, now)) } }
        } }
    }
}

fn row(job: &JobSummary, now: Time) -> Markup {
    let waits = job.not_before.map_or(0, |due| ms_between(now, due));
    html! {
        tr data-key=(job.id) data-href={ "/jobs/" (job.id) } {
            td { input type="checkbox" name="id" value=(job.id) aria-label={ "Select job " (job.id) }; }
            td.fit { @if let Some(at) = job.not_before { (parts::due(at)) }
                @if let Some(by) = &job.snoozed_by { br; span.dim { "snoozed by " (by) } } }
            td.fit { (parts::job_link(job.id)) }
            td.wide { (job.image) }
            td.wide { @if let Some(host) = &job.host { a href={ "/jobs?host=" (host) } { (host) } } }
            td.num.wide { (job.attempts) }
            td { @if let Some(cause) = job.cause { (cause.title()) } }
            td.fit { @for (seconds, name) in parts::SNOOZES {
                // What is due later than that anyway cannot be made to wait less.
                @if seconds * 1_000 > waits {
                    button formaction={ "/jobs/" (job.id) "/snooze-" (seconds) } aria-label={ "Snooze " (job.id) " for " (name) } { (name) } " "
                }
            } }
        }
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
