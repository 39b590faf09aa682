//! An event in words: one line for most, one for each stage of a progress report.

use std::time::Duration;

use stoker_schemas::event::{DeadReason, MessageDeadLettered, StageMark};
use stoker_schemas::{Event, EventData, Time};

use crate::progress::stage_line;
use crate::view::duration;

/// Something that happened, with its time.
pub struct Line {
    /// When.
    pub at: Time,
    /// What.
    pub text: String,
}

/// The lines of an event, in order.
pub fn lines(event: &Event) -> Vec<Line> {
    let attempt = event.epoch.attempt;
    let one = |text: String| vec![Line { at: event.time, text }];
    match &event.data {
        EventData::AttemptProgressed(e) => marks(&e.marks),
        EventData::AttemptReady(e) => {
            let text = format!("ready: agent at {} answered {}", e.agent, e.status);
            marks(&e.marks).into_iter().chain(one(text)).collect()
        }
        EventData::AttemptFailed(e) => {
            let d = &e.diagnosis;
            let text = format!("attempt {attempt} failed: {}: {}", d.cause.title(), d.summary);
            marks(&e.marks).into_iter().chain(one(text)).collect()
        }
        EventData::AttemptStarted(e) => {
            let address = e.address.map(|a| format!(", address {a}")).unwrap_or_default();
            one(format!("attempt {attempt} started on {} ({}){address}", e.host, e.driver.as_str()))
        }
        EventData::JobEnqueued(e) => one(format!("enqueued by {}: {} for pool {}", e.by, e.spec.image, e.spec.pool)),
        EventData::JobRetryScheduled(e) => {
            let why = match (&e.cause, &e.by) {
                (Some(cause), _) => format!(" after {}", cause.title()),
                (None, Some(by)) => format!(" because {by} asked"),
                (None, None) => String::new(),
            };
            one(format!("attempt {} follows in {}{why}", e.attempt, duration(e.delay_ms)))
        }
        EventData::JobDeferred(e) => one(format!("put back: {}", e.reason)),
        EventData::JobRepublished(e) => one(format!("published again: {}", e.reason)),
        EventData::JobDead(e) => one(format!("dead: {}{}", dead_reason(e.reason), reason(&e.detail))),
        EventData::CancelRequested(e) => one(format!("cancel requested by {}{}", e.by, reason(&e.reason))),
        EventData::StopRequested(e) => one(format!("stop requested by {}{}", e.by, reason(&e.reason))),
        EventData::SnoozeRequested(e) => {
            one(format!("attempt {} is not to start before {}, said {}{}", e.attempt, e.until, e.by, reason(&e.reason)))
        }
        EventData::JobCancelled(e) => one(format!("cancelled by {}", e.by)),
        EventData::AttemptMessageSettled(e) => one(format!(
            "attempt takes longer than {}: its message was acknowledged, this host decides what follows",
            duration(e.held_ms)
        )),
        EventData::AttemptAdopted(e) => one(format!("VM taken over by a restarted worker, process {}", e.pid)),
        EventData::AttemptSuperseded(e) => {
            let kept = e.kept.map_or_else(|| "the job has ended".to_owned(), |vm| format!("VM {vm} stays"));
            one(format!("VM on {} is to go: {kept}", e.host))
        }
        EventData::VmGone(e) => one(format!("VM gone: {}{}", e.why.as_str(), reason(&e.detail))),
        EventData::HostStarted(e) => one(format!("host started: {} slots, {}", e.slots, e.hypervisor)),
        EventData::HostHypervisorChanged(e) => one(format!("hypervisor is now {}: {}", e.hypervisor, e.reason)),
        EventData::HostPublishingRefused(e) => {
            let waiting =
                if e.messages == 1 { "1 message waits".to_owned() } else { format!("{} messages wait", e.messages) };
            one(format!("queue {} refuses what the host publishes, {waiting}: {}", e.queue, e.reason))
        }
        EventData::HostPublishingResumed(e) => one(format!("queue {} takes what the host publishes again", e.queue)),
        EventData::HostDrainRequested(e) => one(format!("drain requested by {}{}", e.by, reason(&e.reason))),
        EventData::HostDraining(e) => one(format!("draining: {} booting, {} running", e.booting, e.running)),
        EventData::PoolConfigured(e) => {
            let state = if e.paused { "paused" } else { "takes jobs" };
            let limit = e.max_per_host.map(|n| format!(", at most {n} VMs on each host")).unwrap_or_default();
            one(format!("pool {state}{limit}, said {}{}", e.by, reason(&e.reason)))
        }
        EventData::WarmStarted(e) => {
            let size = format!("{}, {} vCPUs, {} MiB", e.image, e.vcpus, e.memory_mib);
            one(format!("VM {} boots for a job to come: {size}; {} are kept", e.vm, e.wanted))
        }
        EventData::WarmReady(e) => one(format!("VM {} is up and waits for a job", e.vm)),
        EventData::WarmTaken(e) => one(format!("VM {} was up and is job {}'s now", e.vm, e.job)),
        EventData::WarmGone(e) => {
            let found = e.diagnosis.as_ref().map_or(&e.detail, |diagnosis| &diagnosis.summary);
            one(format!("VM {} goes before a job took it: {}{}", e.vm, e.why.as_str(), reason(found)))
        }
        EventData::MessageDeadLettered(e) => {
            one(format!("message of {} bytes from {} is a dead letter: {}", e.size, origin(e), e.detail))
        }
        EventData::MessageRedriven(e) => {
            one(format!("redriven by {}{}: {}", e.by, reason(&e.reason), e.events.join(", ")))
        }
        EventData::MessageDismissed(e) => one(format!("dismissed by {}{}", e.by, reason(&e.reason))),
        EventData::HostStopped(e) => one(format!("host stopped, {} VMs keep running", e.running)),
    }
}

fn marks(marks: &[StageMark]) -> Vec<Line> {
    let line = |m: &StageMark| Line { at: m.at, text: stage_line(m) };
    marks.iter().map(line).collect()
}

fn reason(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

/// Where a message came from.
fn origin(letter: &MessageDeadLettered) -> &str {
    if letter.queue.is_empty() { &letter.routing_key } else { &letter.queue }
}

/// Why a job is dead, in words.
pub fn dead_reason(reason: DeadReason) -> &'static str {
    match reason {
        DeadReason::AttemptsExhausted => "as many attempts as allowed were made",
        DeadReason::NotRetryable => "another attempt would fail the same way",
        DeadReason::Expired => "its time-to-live passed before a host could start it",
        DeadReason::MessageLost => "its message was given up, so that no host gets it",
    }
}

/// Wall-clock time without the date, for lines that scroll by.
pub fn clock(at: Time) -> String {
    // `2025-11-24T16:00:00.123456Z`: the middle, to the millisecond.
    at.to_string().get(11..23).unwrap_or_default().to_owned()
}

/// How long ago, in the largest unit that says something.
pub fn age(at: Time, now: Time) -> String {
    let passed = now.since(at);
    let s = passed.as_secs();
    match passed {
        p if p < Duration::from_secs(60) => format!("{s} s"),
        p if p < Duration::from_secs(3_600) => format!("{} min", s / 60),
        p if p < Duration::from_secs(86_400) => format!("{} h", s / 3_600),
        _ => format!("{} d", s / 86_400),
    }
}
