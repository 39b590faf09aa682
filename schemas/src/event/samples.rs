//! One event of every kind: the examples in the published schemas and documents, and the material
//! of tests. The tests fail for a kind without one.

use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::diagnosis::{Cause, Confidence, Diagnosis};
use crate::id::{Epoch, JobId, LetterId, VmId};
use crate::image::Driver;
use crate::spec::JobSpec;

/// One event of every kind, in the order of [`EventData::KINDS`].
pub fn samples() -> Vec<Event> {
    EventData::KINDS.iter().filter_map(|(kind, _)| sample(kind)).collect()
}

/// The example of a kind; `None` for one that does not exist (or has none: tests see to that).
pub fn sample(kind: &str) -> Option<Event> {
    let host: HostName = "host-01".parse().ok()?;
    let job: JobId = "018f6f0e-0a52-7c0e-9d1c-7a4b3b0d5e11".parse().ok()?;
    let first = Epoch::first(1);
    let (epoch, data) = payload(kind, &host, job, first)?;
    let by_producer = matches!(kind, "job.enqueued" | "job.republished" | "attempt.superseded" | "pool.configured")
        || kind.ends_with("-requested")
        || kind.starts_with("message.");
    let source = if by_producer { "/producers/ci".to_owned() } else { format!("{HOST_SOURCE}{host}") };
    let subject = match &data {
        EventData::PoolConfigured(_) => "default".to_owned(),
        data if data.is_about_letter() => LetterId::derive("stoker.jobs.default.normal", "", NOT_JSON).to_string(),
        data if data.is_about_host() => host.to_string(),
        _ => job.to_string(),
    };
    let traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned());
    Some(Event { source, subject, time: moment(0), epoch, traceparent, data })
}

fn payload(kind: &str, host: &HostName, job: JobId, first: Epoch) -> Option<(Epoch, EventData)> {
    let vm = VmId::derive(job, first, host);
    let spec = JobSpec::from_value(&json!({"image": "golden@7", "labels": {"team": "web"}})).ok()?;
    let request = || Request { by: "ada".to_owned(), reason: "not needed any more".to_owned() };
    Some(match kind {
        "host.started"
        | "host.hypervisor-changed"
        | "host.publishing-refused"
        | "host.publishing-resumed"
        | "host.drain-requested"
        | "host.draining"
        | "host.stopped"
        | "pool.configured" => (JOB_LEVEL, of_host(kind)?),
        "message.dead-lettered" | "message.redriven" | "message.dismissed" => (JOB_LEVEL, of_letter(kind)?),
        "warm.started" | "warm.ready" | "warm.taken" | "warm.gone" => (JOB_LEVEL, of_warm(kind, host, job)?),
        "job.snooze-requested" => {
            let Request { by, reason } = request();
            let snoozed = JobSnoozeRequested { attempt: 2, until: moment(3_600), by, reason };
            (JOB_LEVEL, EventData::SnoozeRequested(snoozed))
        }
        "attempt.superseded" => {
            let kept = Some(VmId::derive(job, Epoch { attempt: 1, delivery: 1 }, host));
            (first, EventData::AttemptSuperseded(AttemptSuperseded { host: host.clone(), vm, kept }))
        }
        "job.enqueued" => (JOB_LEVEL, EventData::JobEnqueued(JobEnqueued { spec, by: "ci".to_owned() })),
        "job.cancel-requested" => (JOB_LEVEL, EventData::CancelRequested(request().into())),
        "job.stop-requested" => (JOB_LEVEL, EventData::StopRequested(request().into())),
        "job.republished" => {
            let reason = "no host has taken it for 5 min 0 s, and its queue is empty".to_owned();
            (JOB_LEVEL, EventData::JobRepublished(JobRepublished { attempt: 1, by: None, reason }))
        }
        "job.cancelled" => (first, EventData::JobCancelled(JobCancelled { attempt: 1, by: "ada".to_owned() })),
        "job.retry-scheduled" | "job.deferred" | "job.dead" => of_queue(kind, spec, first)?,
        "attempt.started" => {
            let address = "192.168.100.79".parse().ok();
            let (host, driver) = (host.clone(), Driver::Firecracker);
            let enqueued_at = moment(0);
            let asked_attempt = 0;
            let started =
                AttemptStarted { host, vm, driver, address, spec, enqueued_at, asked_at: None, asked_attempt };
            (first, EventData::AttemptStarted(started))
        }
        _ => (first, of_try(kind)?),
    })
}

fn of_queue(kind: &str, spec: JobSpec, first: Epoch) -> Option<(Epoch, EventData)> {
    let enqueued_at = moment(0);
    Some(match kind {
        "job.retry-scheduled" => {
            let (cause, by) = (Some(Cause::AgentNotListening), None);
            let (attempt, not_before, delay_ms) = (2, moment(61), 1_000);
            let (asked_at, asked_attempt) = (Some(moment(30)), 0);
            let scheduled = JobRetryScheduled {
                attempt,
                not_before,
                delay_ms,
                cause,
                by,
                spec,
                enqueued_at,
                asked_at,
                asked_attempt,
            };
            (Epoch::first(2), EventData::JobRetryScheduled(scheduled))
        }
        "job.deferred" => {
            let reason = "host-01 is full: 0 slots free".to_owned();
            let (why, asked_at, asked_attempt) = (None, None, 0);
            let deferred =
                JobDeferred { attempt: 1, delay_ms: 1_000, reason, why, spec, enqueued_at, asked_at, asked_attempt };
            (JOB_LEVEL, EventData::JobDeferred(deferred))
        }
        "job.dead" => {
            let (reason, diagnosis) = (DeadReason::AttemptsExhausted, Some(diagnosis()));
            let detail = String::new();
            (first, EventData::JobDead(JobDead { attempt: 1, reason, diagnosis, detail, spec }))
        }
        _ => return None,
    })
}

fn of_try(kind: &str) -> Option<EventData> {
    let mark = |stage, seconds| StageMark { stage, at: moment(seconds), detail: String::new(), absent: false };
    Some(match kind {
        "attempt.progressed" => EventData::AttemptProgressed(AttemptProgressed {
            marks: vec![mark(Stage::Spawned, 1), mark(Stage::DhcpAck, 9)],
        }),
        "attempt.ready" => EventData::AttemptReady(AttemptReady {
            agent: "192.168.100.79:8080".parse().ok()?,
            status: 200,
            body: r#"{"status":"healthy","uptime":2.003244407}"#.to_owned(),
            identity: Identity::VmId,
            marks: vec![mark(Stage::AgentHealthy, 47)],
        }),
        "attempt.failed" => {
            EventData::AttemptFailed(AttemptFailed { diagnosis: diagnosis(), marks: vec![mark(Stage::DhcpAck, 9)] })
        }
        "attempt.message-settled" => EventData::AttemptMessageSettled(AttemptMessageSettled { held_ms: 600_000 }),
        "attempt.adopted" => EventData::AttemptAdopted(AttemptAdopted { pid: 4_711 }),
        "vm.gone" => EventData::VmGone(VmGone { why: GoneWhy::Exited, detail: "exit code 0".to_owned() }),
        _ => return None,
    })
}

fn of_host(kind: &str) -> Option<EventData> {
    Some(match kind {
        "host.started" => EventData::HostStarted(HostStarted {
            slots: 32,
            vcpus: 64,
            memory_mib: 131_072,
            max_booting: None,
            labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
            pools: vec!["default".to_owned()],
            hypervisor: "Firecracker 1.12.1".to_owned(),
            version: "0.1.0".to_owned(),
            adopted: 3,
        }),
        "host.hypervisor-changed" => EventData::HostHypervisorChanged(HostHypervisorChanged {
            hypervisor: "QEMU 7.2.22, KVM (a trial guest ran at 2400 MIPS); TCG for golden/vmlinux, silent with KVM"
                .to_owned(),
            reason:
                "kernel golden/vmlinux does not boot with KVM (no byte on its console after 5.0 s) and boots with TCG"
                    .to_owned(),
        }),
        "host.publishing-refused" => EventData::HostPublishingRefused(HostPublishingRefused {
            queue: "stoker.delay.2000".to_owned(),
            reason: "broker refused the message: a queue it goes to is full or unavailable".to_owned(),
            messages: 12,
            oldest: moment(0),
        }),
        "host.publishing-resumed" => {
            EventData::HostPublishingResumed(HostPublishingResumed { queue: "stoker.delay.2000".to_owned() })
        }
        "host.drain-requested" => {
            EventData::HostDrainRequested(Request { by: "ada".to_owned(), reason: "kernel update".to_owned() })
        }
        "host.draining" => EventData::HostDraining(HostDraining { booting: 1, running: 3 }),
        "pool.configured" => EventData::PoolConfigured(PoolConfigured {
            paused: true,
            max_per_host: Some(8),
            host: None,
            by: "ada".to_owned(),
            reason: "the base image is being replaced".to_owned(),
        }),
        "host.stopped" => EventData::HostStopped(HostStopped { running: 3 }),
        _ => return None,
    })
}

/// Body of the dead letter in the examples.
const NOT_JSON: &[u8] = b"not json";

fn of_letter(kind: &str) -> Option<EventData> {
    let (seen, by) = (moment(5), "ada".to_owned());
    Some(match kind {
        "message.dead-lettered" => EventData::MessageDeadLettered(MessageDeadLettered {
            reason: DeadLetterReason::Unreadable,
            detail: "not a CloudEvent in structured JSON: expected ident at line 1 column 2".to_owned(),
            died_at: seen,
            queue: "stoker.jobs.default.normal".to_owned(),
            exchange: String::new(),
            routing_key: "stoker.jobs.default.normal".to_owned(),
            count: 1,
            message_id: None,
            content_type: Some("text/plain".to_owned()),
            size: NOT_JSON.len() as u64,
            body: LetterBody {
                encoding: BodyEncoding::Text,
                content: String::from_utf8_lossy(NOT_JSON).into_owned(),
                truncated: false,
                sha256: "7ccfa1fbf3940e6f0c0375d87c0f9235a50514e14cb427bdfaf5077987b26ccf".to_owned(),
            },
            work: None,
        }),
        "message.redriven" => {
            let events = vec!["job.enqueued".to_owned()];
            EventData::MessageRedriven(MessageRedriven { seen, events, by, reason: String::new() })
        }
        "message.dismissed" => {
            EventData::MessageDismissed(MessageDismissed { seen, by, reason: "a mistake of a script".to_owned() })
        }
        _ => return None,
    })
}

fn of_warm(kind: &str, host: &HostName, job: JobId) -> Option<EventData> {
    let vm = VmId::warm(host, moment(0), 1);
    Some(match kind {
        "warm.started" => EventData::WarmStarted(WarmStarted {
            vm,
            image: "golden@7".parse().ok()?,
            vcpus: 2,
            memory_mib: 1_024,
            address: "192.168.100.80".parse().ok(),
            wanted: 3,
        }),
        "warm.ready" => EventData::WarmReady(WarmReady { vm, agent: "192.168.100.80:8080".parse().ok()? }),
        "warm.taken" => EventData::WarmTaken(WarmTaken { vm, job }),
        "warm.gone" => {
            let (why, diagnosis) = (WarmGoneWhy::Failed, Some(diagnosis()));
            EventData::WarmGone(WarmGone { vm, why, diagnosis, detail: String::new() })
        }
        _ => return None,
    })
}

fn diagnosis() -> Diagnosis {
    Diagnosis {
        stage: Stage::DhcpAck,
        cause: Cause::AgentNotListening,
        confidence: Some(Confidence::Certain),
        summary: "the VM has its address and nothing listens on the agent's port".to_owned(),
        remedy: "check that the agent is enabled, started, and bound to 0.0.0.0".to_owned(),
        evidence: vec!["probe of 192.168.100.79: refused ×31".to_owned()],
        retryable: true,
    }
}

/// 2025-11-04T19:20:00Z and so many seconds.
fn moment(seconds: u64) -> Time {
    Time::from_unix_micros(1_762_284_000_000_000).plus(std::time::Duration::from_secs(seconds))
}
