//! One attempt: how it went, stage by stage, the proof or the diagnosis.

use maud::{Markup, html};
use stoker_schemas::Phase;
use stoker_schemas::diagnosis::Diagnosis;

use super::{job, parts};
use crate::view::{AttemptView, JobView, Outcome, duration};

/// Width of the waterfall's drawing.
const LANE: u64 = 400;

/// The part of a page about it.
pub fn section(view: &JobView, a: &AttemptView) -> Markup {
    let class = match a.outcome {
        Outcome::Booting => Phase::Booting,
        Outcome::Ready => Phase::Ready,
        Outcome::Failed => Phase::Dead,
        Outcome::WasReady | Outcome::Removed => Phase::Stopped,
    };
    html! {
        section id={ "a" (a.attempt) "-" (a.delivery) } {
            h2 { a href={ "#a" (a.attempt) "-" (a.delivery) } { (job::name(a)) } " "
                span class={ "state " (class) } { (a.outcome.as_str()) }
                @if let Some(ms) = a.took_ms { " after " (duration(ms)) }
                @if let Some(host) = &a.host { " on " a href={ "/jobs?host=" (host) } { (host) } } }
            @if let Some(diagnosis) = &a.diagnosis { (why(view, diagnosis)) }
            (waterfall(a))
            @if let Some(proof) = &a.proof {
                p { "GET http://" (proof.agent) "/… answered " b { (proof.status) } ": " code { (proof.body) } }
            }
            @if !a.units.is_empty() {
                p { @for unit in &a.units { span class=[(!unit.ok).then_some("dead")] {
                    @if unit.ok { "✓ " } @else { " " } (unit.name) } " " } }
            }
            (facts(a))
            @if let Some(gone) = &a.gone { p.dim { "VM gone " (parts::ago(gone.at)) ": " (gone.why.as_str()) @if !gone.detail.is_empty() { ", " (gone.detail) } } }
        }
    }
}

fn facts(a: &AttemptView) -> Markup {
    let facts = [
        ("VM", a.vm.map(|v| v.to_string())),
        ("address", a.address.map(|v| v.to_string())),
        ("MAC", a.mac.clone()),
        ("tap", a.tap.clone()),
        ("hypervisor", a.driver.map(|d| d.as_str().to_owned())),
    ];
    html! {
        p.dim { @for (name, value) in facts.iter().filter_map(|(n, v)| Some((n, v.as_ref()?))) {
            (name) " " span.mono { (value) } "  "
        } @if a.adopted > 0 { "adopted " (a.adopted) "× by a restarted worker " } @if a.superseded { "superseded" } }
    }
}

fn why(view: &JobView, d: &Diagnosis) -> Markup {
    html! {
        div.why {
            b { (d.cause.title()) }
            dl {
                dt { "why" } dd { (d.summary) }
                dt { "do" } dd { (d.remedy) " " a href={ "/jobs/" (view.id) "/edit" } { "Edit and retry" } }
                @if !d.evidence.is_empty() {
                    dt { "seen" } dd { @for line in &d.evidence { code { (line) } br; } }
                }
            }
        }
    }
}

fn waterfall(a: &AttemptView) -> Markup {
    let reached = a.stages.iter().filter(|s| s.name != "queued").map(|s| s.begin_ms + s.took_ms).max().unwrap_or(0);
    let end = a.took_ms.unwrap_or(0).max(reached).max(1);
    // What an attempt spent waiting for the stage that never came is the most telling bar of all.
    let waited = a.diagnosis.is_some().then(|| end - reached).filter(|ms| *ms > 0);
    let place = |ms: u64| ms.min(end) * LANE / end;
    html! {
        div.scroll tabindex="0" role="region" aria-label={ "Stages of " (job::name(a)) } { table.waterfall { tbody {
            @for stage in a.stages.iter().filter(|stage| !stage.absent) {
                // The wait in the queue lies before the attempt: it has a length, no place.
                @let queued = stage.name == "queued";
                @let width = if queued { 0 } else { place(stage.took_ms).max(1) };
                tr {
                    td.fit { (stage.name.replace('_', " ")) }
                    td.num.fit { (duration(stage.took_ms)) }
                    td.lane { svg viewBox={ "0 0 " (LANE) " 16" } preserveAspectRatio="none" aria-hidden="true" {
                        rect x=(place(stage.begin_ms)) y="2" width=(width) height="12" {}
                    } }
                    td.wide { (stage.detail) }
                }
            }
            @if let Some(ms) = waited {
                tr {
                    td.fit { "then nothing" }
                    td.num.fit { (duration(ms)) }
                    td.lane { svg viewBox={ "0 0 " (LANE) " 16" } preserveAspectRatio="none" aria-hidden="true" {
                        rect.bad x=(place(reached)) y="2" width=(place(ms).max(1)) height="12" {}
                    } }
                    td.wide { "gave up" }
                }
            }
        } } }
    }
}
