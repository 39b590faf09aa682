//! `GET /metrics`: how it stands, from the rows; what was counted, from the rows; and how the work is.

use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use stoker_schemas::event::DeadLetterReason;
use stoker_worker::metrics::{Metric, label, render};
use stoker_worker::ports::broker::BrokerStatus;

use super::{Api, Problem};
use crate::readmodel::{Counts, HostStatus, HostView, WarmView};
use crate::work::{Why, Work};

/// The broker is asked how many dead letters wait for no longer than this.
const DEPTH_WITHIN: Duration = Duration::from_secs(1);

/// `GET /metrics`, as Prometheus reads it.
pub async fn metrics(State(api): State<Api>) -> Result<Response, Problem> {
    let counts = api.model.counts();
    let hosts = api.model.hosts()?;
    let mut metrics = jobs(&counts);
    metrics.extend(api.model.totals().metrics());
    metrics.extend(work(&api.work()));
    metrics.extend(of_hosts(&hosts));
    metrics.extend(dead_letters(&counts, dead_depth(&api).await));
    let is_connected = matches!(*api.submitter.broker().status().borrow(), BrokerStatus::Connected);
    let known = api.model.next_seq();
    metrics.extend([
        Metric::level("stoker_broker_up", "Whether the broker takes messages.", u64::from(is_connected)),
        Metric::level(
            "stoker_history_undecodable_entries",
            "History entries that are not events we know.",
            counts.undecodable,
        ),
        Metric::level("stoker_events_known", "Events in the read model.", known),
    ]);
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], render(&metrics)).into_response())
}

fn jobs(counts: &Counts) -> Vec<Metric> {
    let phases = counts.phases.iter().map(|(phase, n)| (label("phase", phase), *n));
    let causes = counts.causes.iter().map(|(cause, n)| (label("cause", cause), *n));
    vec![
        Metric::gauge("stoker_jobs", "Jobs by phase.", phases),
        Metric::gauge(
            "stoker_jobs_failing",
            "Failing, retrying and dead jobs by the cause of their last failure.",
            causes,
        ),
    ]
}

fn work(work: &Work) -> [Metric; 2] {
    let blocked = [(Why::NothingStarts, "nothing_starts"), (Why::NoHost, "no_host")].map(|(why, reason)| {
        let pools = u64::try_from(work.blocked_by(why).count()).unwrap_or(u64::MAX);
        (label("reason", reason), pools)
    });
    [
        Metric::gauge(
            "stoker_work_stalled",
            "Pools whose jobs wait although hosts have room and nothing starts, or that no host serves.",
            blocked,
        ),
        Metric::level("stoker_work_known", "Whether that is known: rows are current.", u64::from(work.is_known)),
    ]
}

fn of_hosts(hosts: &[HostView]) -> Vec<Metric> {
    let with = |status| u64::try_from(hosts.iter().filter(|h| h.status == status).count()).unwrap_or(u64::MAX);
    let all = [HostStatus::Up, HostStatus::DrainRequested, HostStatus::Draining, HostStatus::Stopped];
    let by_status = all.map(|status| (label("status", status.as_str().replace(' ', "_")), with(status)));
    let running = || hosts.iter().filter(|host| host.status != HostStatus::Stopped);
    let slots: u64 = running().map(|host| u64::from(host.slots)).sum();
    let sum = |of: fn(&HostView) -> u64| hosts.iter().map(of).sum::<u64>();
    let (booting, ready) = (sum(|host| host.booting), sum(|host| host.ready));
    let used = running().map(|host| host.booting + host.ready).sum();
    let kept = |of: fn(&WarmView) -> u32| hosts.iter().flat_map(|h| &h.warm).map(|kind| u64::from(of(kind))).sum();
    let warm = [
        ("ready", kept(|kind| kind.ready)),
        ("booting", kept(|kind| kind.booting)),
        ("wanted", kept(|kind| kind.wanted)),
    ];
    let refused = |host: &HostView| host.refusals.iter().map(|refusal| refusal.messages).sum();
    let refused = hosts.iter().map(|host| (label("host", &host.name), refused(host)));
    let by_state = |(state, n)| (label("state", state), n);
    vec![
        Metric::gauge("stoker_hosts", "Hosts by status.", by_status),
        Metric::gauge(
            "stoker_slots",
            "VMs that hosts may run, and places taken by jobs; of hosts whose worker has not ended.",
            [("total", slots), ("used", used)].map(by_state),
        ),
        Metric::gauge("stoker_vms", "VMs of jobs.", [("booting", booting), ("ready", ready)].map(by_state)),
        Metric::gauge("stoker_warm_vms", "VMs kept up for jobs to come, and how many are wanted.", warm.map(by_state)),
        Metric::gauge(
            "stoker_outbox_refused_messages",
            "Messages that a host keeps because their queue refuses them, as the host last said.",
            refused,
        ),
    ]
}

fn dead_letters(counts: &Counts, depth: Option<u64>) -> Vec<Metric> {
    let open = |reason| counts.dead_letters.get(&reason).copied().unwrap_or(0);
    let letters = DeadLetterReason::ALL.map(|reason| (label("reason", reason.as_str()), open(reason)));
    let mut metrics = vec![Metric::gauge(
        "stoker_dead_letters",
        "Open dead letters (messages that no worker could work on) by reason.",
        letters,
    )];
    metrics.extend(depth.map(|depth| {
        let help = "Dead letters at the broker that no control plane has read.";
        Metric::level("stoker_dead_letter_queue_messages", help, depth)
    }));
    metrics
}

/// Dead letters that wait at the broker; `None` when it does not say in time.
async fn dead_depth(api: &Api) -> Option<u64> {
    let broker = api.submitter.broker();
    if matches!(*broker.status().borrow(), BrokerStatus::Down(_)) {
        return None;
    }
    tokio::time::timeout(DEPTH_WITHIN, broker.dead_depth()).await.ok()?.ok()
}
