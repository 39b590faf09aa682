//! VMs that hosts keep up for jobs to come, part of the page of hosts.

use maud::{Markup, html};

use super::parts;
use crate::readmodel::{HostStatus, HostView, WarmView};

/// What each host keeps, and why it has fewer than it should.
pub fn section(hosts: &[HostView]) -> Markup {
    let kinds: Vec<_> = kinds(hosts).collect();
    html! {
        @if !kinds.is_empty() {
            h2 #warm { "Warm VMs" }
            p.dim { "Up before their job comes, and handed to it in milliseconds. They give way to jobs that need their place." }
            div.scroll tabindex="0" role="region" aria-label="Warm VMs" { table {
                thead { tr {
                    th { "host" } th { "image" } th.num { "vCPUs" } th.num { "memory" } th { "ready" } th.num { "booting" }
                    th { "last taken" } th { "problem" }
                } }
                tbody { @for (host, kind) in kinds { (row(host, kind)) } }
            } }
        }
    }
}

fn row(host: &HostView, kind: &WarmView) -> Markup {
    html! {
        tr data-key={ (host.name) "/" (kind.image) "/" (kind.vcpus) "/" (kind.memory_mib) } {
            td { a href={ "/jobs?host=" (host.name) } { (host.name) } }
            td { (kind.image) }
            td.num { (kind.vcpus) }
            td.num.fit { (kind.memory_mib) " MiB" }
            td.fit { (parts::meter(kind.ready.into(), kind.wanted.into())) }
            td.num { (kind.booting) }
            td { @if let Some(at) = kind.last_taken { (parts::ago(at)) } @else { span.dim { "never" } } }
            td { @if let (Some(at), Some(failure)) = (kind.failed_at, &kind.failure) {
                (failure) " " span.dim { (parts::ago(at)) }
                @if let Some(remedy) = &kind.remedy { div.dim { (remedy) } }
            } }
        }
    }
}

/// One item of "Needs you" for each kind of which none comes up.
pub fn needs(hosts: &[HostView]) -> Vec<Markup> {
    let failing = kinds(hosts).filter(|(_, kind)| kind.ready == 0 && kind.failure.is_some());
    let need = |(host, kind): (&HostView, &WarmView)| {
        html! { li {
            span { "host " (host.name) " has no warm VM of " (kind.image) ": " (kind.failure.as_deref().unwrap_or_default()) }
            a href="/hosts#warm" { "Look" }
        } }
    };
    failing.map(need).collect()
}

/// Of hosts whose worker runs.
fn kinds(hosts: &[HostView]) -> impl Iterator<Item = (&HostView, &WarmView)> {
    let up = hosts.iter().filter(|host| host.status != HostStatus::Stopped);
    up.flat_map(|host| host.warm.iter().map(move |kind| (host, kind)))
}
