//! Hosts: what each may give out, what it runs, whether it takes jobs.

use axum::extract::State;
use maud::{Markup, html};

use super::layout::{Frame, Page, Tab};
use super::{parts, pools, warm};
use crate::http::{Api, Problem};
use crate::readmodel::{HostStatus, HostView, RefusalView};

/// `GET /hosts`
pub async fn page(State(api): State<Api>) -> Page {
    let body = content(&api);
    Page::of(&api, Frame::new("Hosts", Tab::Hosts), body)
}

fn content(api: &Api) -> Result<Markup, Problem> {
    let (hosts, known) = (api.model().hosts()?, api.model().pools()?);
    Ok(html! {
        h1 { "Hosts" }
        @if hosts.is_empty() {
            (parts::nothing("No host has reported yet.", &html! { pre { "stoker-worker run --broker amqp://user@broker:5672" } }))
        } @else {
            div.scroll tabindex="0" role="region" aria-label="Hosts" { table {
                thead { tr {
                    th { "host" } th { "status" } th { "VMs" } th.num { "vCPUs" } th.num { "memory" } th.wide { "pools" }
                    th.wide { "labels" } th.wide { "hypervisor" } th { "" }
                } }
                tbody { @for host in &hosts { (row(host)) } }
            } }
        }
        (warm::section(&hosts))
        (pools::section(&known))
    })
}

/// One item of "Needs you" for each queue that refuses what a host publishes.
pub fn refusals(hosts: &[HostView]) -> Vec<Markup> {
    let need = |(host, refusal): (&HostView, &RefusalView)| {
        html! { li {
            span {
                "host " (host.name) " keeps " (parts::number(refusal.messages))
                @if refusal.messages == 1 { " message" } @else { " messages" }
                " that queue " (refusal.queue) " refuses, the oldest from " (parts::ago(refusal.oldest)) ": "
                (refusal.reason)
            }
            a href="/hosts" { "Look" }
        } }
    };
    hosts.iter().flat_map(|host| host.refusals.iter().map(move |refusal| (host, refusal))).map(need).collect()
}

fn row(host: &HostView) -> Markup {
    html! {
        tr data-key=(host.name) data-href={ "/jobs?host=" (host.name) } {
            td { a href={ "/jobs?host=" (host.name) } { (host.name) } }
            td { (host.status.as_str()) @if let Some(since) = host.since { " " span.dim { (parts::ago(since)) } }
                @for refusal in &host.refusals {
                    div.dim { "queue " (refusal.queue) " refuses its messages: " (refusal.reason) }
                }
            }
            td.fit { (parts::meter(host.booting + host.ready, host.slots.into())) }
            td.num { (host.vcpus) }
            td.num.fit { (host.memory_mib) " MiB" }
            td.wide { (host.pools.join(", ")) }
            td.wide { @for (key, value) in &host.labels { span.dim { (key) "=" (value) } " " } }
            td.wide { (host.hypervisor) " · " (host.version) }
            td { @if host.status == HostStatus::Up {
                form.inline method="post" action={ "/hosts/" (host.name) "/drain" } {
                    (parts::form_guard())
                    button title="Takes no more jobs; its VMs keep running" { "Drain" }
                }
            } }
        }
    }
}
