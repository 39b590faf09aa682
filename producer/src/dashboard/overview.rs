//! Is it bad, what is failing and why, what do I press: the three answers, in that order.

use axum::extract::State;
use maud::{Markup, html};
use stoker_schemas::Phase;
use stoker_schemas::diagnosis::Cause;
use stoker_schemas::event::DeadLetterReason;

use super::layout::{Frame, Page, Tab};
use super::{hosts, parts, pools, warm};
use crate::http::{Api, Problem};
use crate::readmodel::{Counts, Filter, HostStatus, HostView, Minute, begin_of};
use crate::view::{duration, ms_between};
use crate::work::Blocked;

/// Minutes that the numbers of the page are about.
const WINDOW_MIN: u64 = 60;
/// A job that waits longer for a host is worth a person's look, ms.
const QUEUED_TOO_LONG_MS: u64 = 5 * 60_000;
/// A drain that takes longer is worth a look, ms.
const DRAINING_TOO_LONG_MS: u64 = 30 * 60_000;
/// Jobs at the foot of the page.
const LATEST: usize = 10;
/// Phases with a tile, in the order of a job's life.
const TILES: [Phase; 6] = [Phase::Queued, Phase::Booting, Phase::Ready, Phase::Failing, Phase::Retrying, Phase::Dead];

/// `GET /`
pub async fn page(State(api): State<Api>) -> Page {
    let body = content(&api);
    Page::of(&api, Frame::new("Overview", Tab::Overview), body)
}

fn content(api: &Api) -> Result<Markup, Problem> {
    let counts = api.model().counts();
    let series = api.model().series(WINDOW_MIN)?;
    let hosts = api.model().hosts()?;
    let latest = api.model().list(&Filter::default(), None, LATEST)?;
    let mut hour = Minute::default();
    series.iter().for_each(|(_, minute)| hour.merge(minute));
    Ok(html! {
        h1 { "Overview" }
        (needs_you(api, &counts, &hosts)?)
        div.tiles { @for phase in TILES { (tile(phase, counts.phases.get(&phase).copied().unwrap_or(0))) } }
        div.panels {
            section { h2 { "Boots per minute" } (boots(&series, &hour)) }
            section { h2 { "Boot time" } (boot_time(&series, &hour)) }
            section { h2 { "Failing, last hour" } (failing(&hour)) }
            section { h2 { "Hosts" } (capacity(&hosts)) }
        }
        h2 { "Latest jobs" }
        @if latest.jobs.is_empty() {
            (parts::nothing("No jobs yet. Enqueue one:", &html! { pre { "stoker enqueue golden --wait" } }))
        } @else {
            (parts::job_table(&latest.jobs, false))
        }
    })
}

fn tile(phase: Phase, n: u64) -> Markup {
    html! { a.tile href={ "/jobs?phase=" (phase) } { (parts::state(phase, false)) b { (parts::number(n)) } } }
}

fn needs_you(api: &Api, counts: &Counts, hosts: &[HostView]) -> Result<Markup, Problem> {
    let mut needs = Vec::new();
    for (cause, n) in api.model().causes_of(Phase::Dead) {
        needs.push(dead(cause, n));
    }
    needs.extend(counts.dead_letters.iter().map(|(reason, n)| message(*reason, *n)));
    needs.extend(api.work().blocked.iter().map(blocked));
    let now = api.now();
    if let Some(job) = api.model().oldest(Phase::Queued)? {
        let waits = ms_between(job.created, now);
        if waits >= QUEUED_TOO_LONG_MS {
            needs.push(html! { li {
                span { "a job has been queued for " (duration(waits)) ": no host takes it" }
                a href={ "/jobs/" (job.id) } { "Look" }
            } });
        }
    }
    for host in hosts.iter().filter(|h| matches!(h.status, HostStatus::Draining | HostStatus::DrainRequested)) {
        let since = host.since.map_or(0, |since| ms_between(since, now));
        if since >= DRAINING_TOO_LONG_MS {
            needs.push(html! { li {
                span { "host " (host.name) " has been draining for " (duration(since)) }
                a href="/hosts" { "Look" }
            } });
        }
    }
    needs.extend(warm::needs(hosts));
    needs.extend(hosts::refusals(hosts));
    needs.extend(api.model().pools()?.iter().filter(|pool| pool.paused).map(pools::need));
    if counts.undecodable > 0 {
        needs.push(html! { li {
            span { (parts::number(counts.undecodable)) " history entries could not be read as events" }
            a href="/dead" { "Look" }
        } });
    }
    Ok(html! {
        @if !needs.is_empty() {
            section.needs aria-label="Needs you" { h2 { "Needs you" } ul { @for need in &needs { (need) } } }
        }
    })
}

fn blocked(blocked: &Blocked) -> Markup {
    html! { li {
        span { (blocked.sentence(true)) ": " (blocked.remedy()) }
        a href={ "/jobs?phase=queued&pool=" (blocked.pool) } { "Look" }
    } }
}

fn dead(cause: Cause, n: u64) -> Markup {
    html! { li {
        span { (parts::number(n)) @if n == 1 { " dead letter: " } @else { " dead letters: " } (cause.title()) }
        form.inline method="post" action="/jobs/act" {
            (parts::form_guard())
            a href={ "/dead?cause=" (cause) } { "Look" }
            input type="hidden" name="back" value="/";
            input type="hidden" name="filter" value={ "phase=dead&cause=" (cause) };
            button name="action" value="retry-all" { "Redrive " (parts::number(n)) "…" }
        }
    } }
}

fn message(reason: DeadLetterReason, n: u64) -> Markup {
    html! { li {
        span { (parts::number(n)) @if n == 1 { " message" } @else { " messages" } " no worker could work on: " (reason.title()) }
        a href={ "/dead-letters?reason=" (reason.as_str()) } { "Look" }
    } }
}

fn name(minute: u64) -> String {
    // 2026-11-23T16:05:00Z -> 16:05 UTC
    let text = begin_of(minute).to_string();
    format!("{} UTC", text.get(11..16).unwrap_or(&text))
}

fn boots(series: &[(u64, Minute)], hour: &Minute) -> Markup {
    let values: Vec<_> =
        series.iter().map(|(m, minute)| (name(*m), minute.ready, minute.failed > minute.ready)).collect();
    html! {
        p { b { (parts::number(hour.ready)) } " ready, " b { (parts::number(hour.failed)) } " failed"
            @if let Some(share) = hour.success() { ", " b { (format!("{:.1} %", share * 100.0)) } " ok" }
            ", " b { (parts::number(hour.enqueued)) } " enqueued in the last hour" }
        (parts::bars("Attempts that became ready, minute by minute", &values))
    }
}

fn boot_time(series: &[(u64, Minute)], hour: &Minute) -> Markup {
    let (Some(half), Some(most)) = (hour.boots.quantile(0.5), hour.boots.quantile(0.95)) else {
        return html! { p.dim { "No boot in the last hour." } };
    };
    let p95 = |minute: &Minute| minute.boots.quantile(0.95).unwrap_or(0);
    let values: Vec<_> = series.iter().map(|(m, minute)| (format!("{} (ms)", name(*m)), p95(minute), false)).collect();
    html! {
        p { "p50 " b { (duration(half)) } ", p95 " b { (duration(most)) } }
        (parts::bars("95th percentile of boot time, minute by minute", &values))
        (stages(hour))
    }
}

fn stages(hour: &Minute) -> Markup {
    let total = hour.stages.values().sum::<u64>().max(1);
    let mut stages: Vec<_> = hour.stages.iter().collect();
    stages.sort_by_key(|(_, ms)| std::cmp::Reverse(**ms));
    html! {
        h3 { "Where it goes" }
        table { tbody { @for (stage, ms) in stages.into_iter().take(6) {
            tr { td { (stage.replace('_', " ")) } td.num { (*ms * 100 / total) " %" } td { (parts::share(*ms, total)) } }
        } } }
    }
}

fn failing(hour: &Minute) -> Markup {
    if hour.causes.is_empty() {
        return html! { p.dim { "Nothing failed." } };
    }
    let mut causes: Vec<_> = hour.causes.iter().collect();
    causes.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
    html! {
        table { tbody { @for (cause, n) in causes {
            tr { td { a href={ "/jobs?cause=" (cause) } { (cause.title()) } } td.num { (parts::number(*n)) } }
        } } }
    }
}

fn capacity(hosts: &[HostView]) -> Markup {
    if hosts.is_empty() {
        return html! { p.dim { "No host has reported yet." } };
    }
    html! {
        table { tbody { @for host in hosts.iter().take(12) {
            tr data-key=(host.name) {
                td { a href={ "/jobs?host=" (host.name) } { (host.name) } }
                td { (parts::meter(host.booting + host.ready, host.slots.into())) }
                td { (host.status.as_str()) }
            }
        } } }
        @if hosts.len() > 12 { p { a href="/hosts" { "All " (hosts.len()) " hosts" } } }
    }
}
