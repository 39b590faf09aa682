//! Pools, part of the page of hosts: how each stands, and the buttons that pause and limit it.

use axum::extract::{Form, Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;
use stoker_schemas::Phase;
use stoker_schemas::limits::clip;

use super::layout::{Page, Tab};
use super::parts;
use crate::http::access::is_own_path;
use crate::http::pools::{self, Change};
use crate::http::{Api, Problem, asker};
use crate::readmodel::PoolView;

/// Phases of jobs that still concern a pool.
const PHASES: [Phase; 4] = [Phase::Queued, Phase::Booting, Phase::Ready, Phase::Retrying];

/// A form about one pool.
#[derive(Debug, Default, Deserialize)]
pub struct PoolForm {
    /// VMs on each host; nothing for as many as fit.
    #[serde(default)]
    max_per_host: String,
    /// Why.
    #[serde(default)]
    reason: String,
    /// The page to go back to.
    back: Option<String>,
}

/// `POST /pools/{pool}/{action}`
pub async fn act(
    State(api): State<Api>,
    Path((pool, action)): Path<(String, String)>,
    headers: HeaderMap,
    Form(form): Form<PoolForm>,
) -> Response {
    let change = change(&action, &form);
    let done = match change {
        Ok(change) => pools::configure(&api, &pool, change, &form.reason, &asker(&headers)).await,
        Err(problem) => Err(problem),
    };
    let back = form.back.as_deref().filter(|back| is_own_path(back)).unwrap_or("/hosts");
    match done {
        Ok(_) => Redirect::to(back).into_response(),
        Err(problem) => Page::problem(&api, Tab::Hosts, &problem).into_response(),
    }
}

fn change(action: &str, form: &PoolForm) -> Result<Change, Problem> {
    match action {
        "pause" => Ok(Change::Paused(true)),
        "resume" => Ok(Change::Paused(false)),
        "limit" => {
            let given = form.max_per_host.trim();
            let number = given.parse::<u64>().map_or_else(|_| Value::from(given), Value::from);
            Change::limit(if given.is_empty() { &Value::Null } else { &number })
        }
        _ => Err(Problem::bad_request(format!("{:?} is not an action", clip(action, 40)), "pause, resume or limit")),
    }
}

/// The pools, with what may be done to each.
pub fn section(pools: &[PoolView]) -> Markup {
    html! {
        @if !pools.is_empty() {
            h2 #pools { "Pools" }
            div.scroll tabindex="0" role="region" aria-label="Pools" { table {
                thead { tr {
                    th { "pool" } th { "status" } th.num { "hosts" }
                    @for phase in PHASES { th.num { (phase) } }
                    th { "VMs on each host" } th { "" }
                } }
                tbody { @for pool in pools { (row(pool)) } }
            } }
        }
    }
}

fn row(pool: &PoolView) -> Markup {
    let name = pool.name.as_str();
    html! {
        tr data-key={ "pool " (name) } {
            td { a href={ "/jobs?pool=" (name) } { (name) } }
            td { (if pool.paused { "paused" } else { "takes jobs" }) (said(pool)) }
            td.num { (pool.hosts.len()) }
            @for phase in PHASES {
                @let n = pool.jobs.get(&phase).copied().unwrap_or(0);
                td.num { @if n > 0 { a href={ "/jobs?pool=" (name) "&phase=" (phase) } { (parts::number(n)) } } @else { "0" } }
            }
            td { form.inline method="post" action={ "/pools/" (name) "/limit" } {
                (parts::form_guard())
                input name="max_per_host" inputmode="numeric" size="12" autocomplete="off" placeholder="as many as fit"
                    value=[pool.max_per_host] aria-label={ "VMs of pool " (name) " on each host" };
                button aria-label={ "Set the limit of pool " (name) } { "Set the limit" }
            } }
            td { (button(pool, "/hosts")) }
        }
    }
}

/// Since when, by whom, why.
fn said(pool: &PoolView) -> Markup {
    html! {
        @if let Some(since) = pool.since { " " span.dim { (parts::ago(since))
            @if let Some(by) = &pool.by { " by " (by) } @if !pool.reason.is_empty() { ": " (pool.reason) } } }
    }
}

fn button(pool: &PoolView, back: &str) -> Markup {
    let (action, label) = if pool.paused { ("resume", "Resume") } else { ("pause", "Pause") };
    html! {
        form.inline method="post" action={ "/pools/" (pool.name) "/" (action) } {
            (parts::form_guard())
            input type="hidden" name="back" value=(back);
            button aria-label={ (label) " pool " (pool.name) } title=[(!pool.paused).then_some("No new attempt starts; what boots or is up stays")] { (label) }
        }
    }
}

/// A paused pool, as one of the things that need somebody.
pub fn need(pool: &PoolView) -> Markup {
    html! { li {
        span { "pool " a href={ "/jobs?pool=" (pool.name) "&phase=queued" } { (pool.name) } " is paused"
            @if let Some(since) = pool.since { " since " (parts::time(since)) }
            @if let Some(by) = &pool.by { ", by " (by) } @if !pool.reason.is_empty() { ": " (pool.reason) } }
        (button(pool, "/"))
    } }
}
