//! Every key is bound to the queues it is meant for, and to no other.

use std::collections::BTreeSet;

use super::*;
use crate::diagnosis::Cause;
use crate::event::{AttemptSuperseded, GoneWhy, HOST_SOURCE, JOB_LEVEL, JobSnoozeRequested, PoolConfigured};
use crate::fixtures::*;

/// Topic matching as AMQP has it: `*` is one word, `#` is none or more.
fn matches(binding: &str, key: &str) -> bool {
    fn go(binding: &[&str], key: &[&str]) -> bool {
        match (binding, key) {
            ([], []) => true,
            (["#", rest @ ..], _) => go(rest, key) || (!key.is_empty() && go(binding, &key[1..])),
            (["*", rest @ ..], [_, key @ ..]) => go(rest, key),
            ([word, rest @ ..], [first, key @ ..]) => word == first && go(rest, key),
            _ => false,
        }
    }
    go(&binding.split('.').collect::<Vec<_>>(), &key.split('.').collect::<Vec<_>>())
}

const LANES: [Priority; 2] = [Priority::Normal, Priority::High];

fn pools() -> Vec<PoolName> {
    ["default", "gpu", "dead", "all"].map(|p| p.parse().unwrap()).to_vec()
}

fn hosts() -> Vec<HostName> {
    ["h-1", "host-01", "all", "host"].map(host).to_vec()
}

/// Queues (but not the history) that a key published to the events exchange reaches.
fn reached(key: &str) -> BTreeSet<String> {
    let names = Names::default();
    let mut bindings = Vec::new();
    for pool in pools() {
        bindings.extend(LANES.map(|lane| (names.jobs_queue(&pool, lane), jobs_binding(&pool, lane))));
    }
    for tier in DELAY_TIERS_MS {
        bindings.extend(delay_bindings(tier).map(|binding| (names.delay_queue(tier), binding)));
    }
    for host in hosts() {
        bindings.extend(host_bindings(&host).map(|binding| (names.host_queue(&host), binding)));
    }
    bindings.into_iter().filter(|(_, binding)| matches(binding, key)).map(|(queue, _)| queue).collect()
}

/// Queues that a key reaches when its delay is over.
fn due(key: &str) -> BTreeSet<String> {
    let names = Names::default();
    let lanes = pools().into_iter().flat_map(|pool| LANES.map(|lane| (pool.clone(), lane)));
    lanes.filter(|(p, l)| matches(&due_binding(p, *l), key)).map(|(p, l)| names.jobs_queue(&p, l)).collect()
}

fn one(queue: String) -> BTreeSet<String> {
    BTreeSet::from([queue])
}

#[test]
fn the_matcher_itself() {
    for (binding, key, expected) in [
        ("#", "a.b", true),
        ("a.#", "a", true),
        ("a.*", "a", false),
        ("*.b.#", "a.b.c.d", true),
        ("a.b", "a.b.c", false),
        ("#.c", "a.b.c", true),
    ] {
        assert_eq!(matches(binding, key), expected, "{binding} {key}");
    }
}

#[test]
fn a_job_reaches_the_queue_of_its_pool_and_lane_alone() {
    for pool in pools() {
        for lane in LANES {
            let queue = one(Names::default().jobs_queue(&pool, lane));
            let mut spec = spec();
            (spec.pool, spec.priority) = (pool.clone(), lane);
            let mut history = History::on("h-1");
            let tell = crate::command::Command::Enqueue { spec, by: String::new() };
            let (key, delay) = route(&history.tell(tell).unwrap()[0]);
            assert_eq!((reached(&key), delay), (queue, None), "{key}");
        }
    }
}

#[test]
fn a_retry_waits_in_one_tier_and_comes_back_to_its_lane() {
    for wait_ms in [0, 1, 100, 101, 5_000, 59_999, 86_400_000, 90_000_000] {
        let mut spec = spec();
        (spec.retry.base_ms, spec.retry.cap_ms) = (wait_ms, wait_ms);
        let mut history = given([enqueue()]);
        let crate::command::Command::Begin(begun) = begin(e(1)) else { unreachable!() };
        history.tell(crate::command::Command::Begin(crate::command::Begin { spec, ..begun })).unwrap();
        history.tell(fail(e(1), Cause::Unknown)).unwrap();
        let events = history.tell(gone(e(1), GoneWhy::Failed)).unwrap();
        let (key, delay) = route(&events[1]);
        assert_eq!(delay, Some(Duration::from_millis(wait_ms)));
        let tier = delay_tier_ms(Duration::from_millis(wait_ms));
        assert!(tier >= wait_ms.min(86_400_000));
        assert_eq!(reached(&key), one(Names::default().delay_queue(tier)), "{key}");
        let lane = Names::default().jobs_queue(&PoolName::default(), Priority::Normal);
        assert_eq!(due(&key), one(lane), "{key}");
    }
}

#[test]
fn commands_reach_hosts_and_are_not_repeated_by_them() {
    let all: BTreeSet<_> = hosts().iter().map(|h| Names::default().host_queue(h)).collect();
    let only = |name: &str| one(Names::default().host_queue(&host(name)));
    let vm = crate::VmId::derive(job(), e(1), &host("h-1"));
    let superseded = AttemptSuperseded { host: host("h-1"), vm, kept: None };
    let (by, reason) = ("bob".to_owned(), String::new());
    let snoozed = JobSnoozeRequested { attempt: 2, until: at(9), by: by.clone(), reason: reason.clone() };
    let snoozed = EventData::SnoozeRequested(snoozed);
    let paused = PoolConfigured { paused: true, max_per_host: None, host: None, by, reason };
    for (subject, data, queues) in [
        (job().to_string(), EventData::CancelRequested(request("bob").into()), all.clone()),
        (job().to_string(), EventData::StopRequested(request("bob").into()), all.clone()),
        (job().to_string(), snoozed, all.clone()),
        ("default".to_owned(), EventData::PoolConfigured(paused.clone()), all),
        (
            "default".to_owned(),
            EventData::PoolConfigured(PoolConfigured { host: Some(host("h-1")), ..paused }),
            only("h-1"),
        ),
        (job().to_string(), EventData::AttemptSuperseded(superseded), only("h-1")),
        ("h-1".to_owned(), EventData::HostDrainRequested(request("bob")), only("h-1")),
        ("all".to_owned(), EventData::HostDrainRequested(request("bob")), only("all")),
    ] {
        let source = "/producers/api".to_owned();
        let mut event = Event { source, subject, time: at(0), epoch: JOB_LEVEL, traceparent: None, data };
        let (key, _) = route(&event);
        assert_eq!(reached(&key), queues, "{key}");
        event.source = format!("{HOST_SOURCE}h-1");
        let (key, _) = route(&event);
        assert!(reached(&key).is_empty(), "retold by a host, {key} must only be history");
        assert!(is_history_only(&event), "{key}");
    }
}

#[test]
fn what_reaches_a_queue_is_not_only_history() {
    for event in crate::event::samples() {
        let (key, _) = route(&event);
        assert_eq!(is_history_only(&event), reached(&key).is_empty(), "{key} from {}", event.source);
    }
}

#[test]
fn everything_reaches_the_history_and_fits_a_routing_key() {
    for event in crate::event::samples() {
        let (key, _) = route(&event);
        assert!(matches(HISTORY_BINDING, &key));
        // AMQP's short string.
        assert!(key.len() <= 255, "{key}");
    }
}
