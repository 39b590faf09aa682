//! The read model: the same rows from the same events, whatever order, repetition and batching
//! they came in, and after a restart.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use stoker_producer::clock;
use stoker_producer::readmodel::{Counts, Filter, Found, HostStatus, HostView, JobSummary, ReadModel};
use stoker_schemas::event::{HostDraining, HostHypervisorChanged};
use stoker_schemas::{Event, EventData, JobState, Phase};
use stoker_worker::ports::broker::{CONTENT_BATCH, CONTENT_EVENT, HistoryEntry, Offset};
use support::story::{Story, host_started, publishing_refused, publishing_resumed};
use support::{SOON, Server};

fn model(dir: &tempfile::TempDir) -> ReadModel {
    ReadModel::open(dir.path(), clock::system()).unwrap()
}

fn entry(offset: u64, content_type: &str, body: Vec<u8>) -> HistoryEntry {
    HistoryEntry { offset, content_type: content_type.to_owned(), routing_key: "k".to_owned(), body: body.into() }
}

fn entries(events: &[Event]) -> Vec<HistoryEntry> {
    (0..).zip(events).map(|(offset, e)| entry(offset, CONTENT_EVENT, e.encode().unwrap())).collect()
}

fn batch(offset: u64, events: &[Event]) -> HistoryEntry {
    let list: Vec<_> = events.iter().map(|e| e.encode().unwrap()).collect();
    entry(offset, CONTENT_BATCH, [b"[".as_slice(), &list.join(b",".as_slice()), b"]"].concat())
}

/// A minute after its start a host finds that KVM does not run a kernel.
fn hypervisor_changed(host: &str) -> Event {
    let data = EventData::HostHypervisorChanged(HostHypervisorChanged {
        hypervisor: "QEMU 7.2.22, KVM; TCG for golden/vmlinux, silent with KVM".to_owned(),
        reason: "kernel golden/vmlinux does not boot with KVM and boots with TCG".to_owned(),
    });
    let started = host_started(host);
    Event { data, time: started.time.plus(std::time::Duration::from_secs(60)), ..started }
}

fn world() -> Vec<Event> {
    let mut events = vec![host_started("h-01"), host_started("h-02")];
    let draining = EventData::HostDraining(HostDraining { booting: 0, running: 3 });
    let time = host_started("h-02").time.plus(std::time::Duration::from_secs(60));
    events.push(Event { data: draining, time, ..host_started("h-02") });
    events.push(hypervisor_changed("h-01"));
    events.extend(Story::ready_at_first("a").events);
    events.extend(Story::failed_then_ready("b").later(1).events);
    events.extend(Story::conflict("c").later(2).events);
    events.extend(Story::of("d").later(3).enqueued().events);
    events.extend(Story::of("e").later(4).enqueued().cancelled(50).events);
    events
}

/// All rows that a reader can see.
fn rows(model: &ReadModel) -> (Vec<JobSummary>, Counts, Vec<HostView>, Vec<Option<JobState>>) {
    let jobs = model.list(&Filter::default(), None, 500).unwrap().jobs;
    let states = jobs.iter().map(|j| model.job(j.id).unwrap()).collect();
    (jobs, model.counts(), model.hosts().unwrap(), states)
}

#[test]
fn a_host_shows_the_queues_that_refuse_its_messages_until_they_do_not() {
    let started = |seconds| {
        let time = host_started("h-01").time.plus(std::time::Duration::from_secs(seconds));
        Event { time, ..host_started("h-01") }
    };
    let refused = || publishing_refused("h-01", 60);
    for (events, wanted) in [
        (vec![started(0), refused()], 1),
        (vec![refused(), started(0)], 1),
        (vec![started(0), refused(), publishing_resumed("h-01", 61)], 0),
        (vec![publishing_resumed("h-01", 61), refused(), started(0)], 0),
        (vec![publishing_resumed("h-01", 59), refused(), started(0)], 1),
        // The next worker says it again if it is so.
        (vec![started(0), refused(), started(90)], 0),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let model = model(&dir);
        model.apply(&entries(&events)).unwrap();
        let host = model.hosts().unwrap().remove(0);
        assert_eq!(host.refusals.len(), wanted, "{events:#?}");
        assert!(host.refusals.iter().all(|refusal| refusal.messages == 12));
    }
}

#[test]
fn a_host_shows_what_its_worker_last_said_of_its_hypervisor() {
    let later =
        Event { time: host_started("h-01").time.plus(std::time::Duration::from_secs(120)), ..host_started("h-01") };
    for (events, wanted) in [
        (vec![hypervisor_changed("h-01"), host_started("h-01")], "TCG for golden/vmlinux"),
        (vec![later, hypervisor_changed("h-01"), host_started("h-01")], "Firecracker"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let model = model(&dir);
        model.apply(&entries(&events)).unwrap();
        let host = model.hosts().unwrap().remove(0);
        assert!(host.hypervisor.contains(wanted), "{}", host.hypervisor);
    }
}

/// A small generator: the same shuffles in every run.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        (1..items.len()).rev().for_each(|i| items.swap(i, self.below(i + 1)));
    }
}

#[test]
fn order_repetition_and_batching_do_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let reference = model(&dir);
    reference.apply(&entries(&world())).unwrap();
    let expected = rows(&reference);
    assert_eq!(expected.0.len(), 5);
    let mut random = Lcg(7);
    for round in 0..25 {
        let mut events = world();
        let again: Vec<_> = (0..10).map(|_| events[random.below(events.len())].clone()).collect();
        events.extend(again);
        random.shuffle(&mut events);
        let dir = tempfile::tempdir().unwrap();
        let other = model(&dir);
        let mut offset = 0;
        while !events.is_empty() {
            let piece: Vec<_> = events.drain(..random.below(events.len()) + 1).collect();
            let told = if random.below(2) == 0 { vec![batch(offset, &piece)] } else { entries(&piece) };
            other.apply(&told).unwrap();
            offset += 1;
        }
        assert_eq!(rows(&other), expected, "round {round}");
    }
}

#[test]
fn of_two_tellings_of_a_fact_the_earlier_one_counts_in_any_order() {
    let early = Story::of("twice").enqueued().events.remove(0);
    let mut late = Story::of("twice").later(9).enqueued().events.remove(0);
    late.source = "/producers/other".to_owned();
    let both = |first: &Event, second: &Event| {
        let dir = tempfile::tempdir().unwrap();
        let model = model(&dir);
        model.apply(&entries(std::slice::from_ref(first))).unwrap();
        model.apply(&entries(std::slice::from_ref(second))).unwrap();
        assert_eq!(model.stored_events(first.job().unwrap()).unwrap().len(), 1);
        rows(&model)
    };
    assert_eq!(both(&early, &late), both(&late, &early));
    assert_eq!(both(&late, &early).0[0].created, early.time);
}

#[test]
fn a_restart_goes_on_where_it_stopped_with_the_same_rows() {
    let dir = tempfile::tempdir().unwrap();
    let all = entries(&world());
    let (before, after) = all.split_at(11);
    let first = model(&dir);
    assert_eq!(first.next_offset(), Offset::First);
    first.apply(before).unwrap();
    let seen = rows(&first);
    drop(first);
    let second = model(&dir);
    assert_eq!(second.next_offset(), Offset::After(before[10].mark()));
    assert_eq!(rows(&second), seen);
    second.apply(after).unwrap();
    let other = tempfile::tempdir().unwrap();
    let whole = model(&other);
    whole.apply(&all).unwrap();
    assert_eq!(rows(&second), rows(&whole));
    // A history whose offsets begin anew is read again, and nothing changes.
    second.rewind();
    assert_eq!(second.next_offset(), Offset::First);
    second.apply(&all).unwrap();
    assert_eq!(rows(&second), rows(&whole));
    assert_eq!(second.next_seq(), whole.next_seq());
}

#[test]
fn what_cannot_be_decoded_is_counted_kept_and_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&dir);
    let garbage: Vec<_> = (0..1_200).map(|n| entry(n, CONTENT_EVENT, format!("garbage {n}").into_bytes())).collect();
    garbage.chunks(100).for_each(|chunk| model.apply(chunk).unwrap());
    let good = Story::of("good").enqueued().events;
    let mixed = [b"[{\"no\":\"event\"},".as_slice(), &good[0].encode().unwrap(), b"]"].concat();
    model.apply(&[entry(1_200, CONTENT_BATCH, mixed), entry(1_201, CONTENT_BATCH, b"[{".to_vec())]).unwrap();
    assert_eq!(model.counts().undecodable, 1_202);
    assert_eq!(model.counts().phases[&Phase::Queued], 1, "the good event of a bad batch counts");
    let kept = model.undecodable(5_000).unwrap();
    assert!(kept.len() <= 1_000, "{} kept", kept.len());
    assert_eq!(kept[0].offset, 1_201);
    assert!(kept[2].body.contains("garbage 1199"), "{:?}", kept[2]);
    assert_eq!(model.next_offset().next(), 1_202);
}

#[test]
fn a_flood_of_events_for_one_id_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&dir);
    let request = Story::of("flood").enqueued().cancelled(1).events[1].clone();
    let later = |n: u64| Event { time: request.time.plus(std::time::Duration::from_micros(n)), ..request.clone() };
    let flood: Vec<_> = (0..10_050).map(later).collect();
    for (n, chunk) in (0..).zip(flood.chunks(512)) {
        model.apply(&[batch(n, chunk)]).unwrap();
    }
    assert_eq!(model.stored_events(request.job().unwrap()).unwrap().len(), 10_000);
    assert_eq!(model.counts().undecodable, 50);
}

#[test]
fn pages_are_whole_newest_first_and_filters_hold() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&dir);
    let stories: Vec<_> = (0..50).map(|n| Story::of(&format!("job {n}")).later(n).enqueued()).collect();
    let mut events: Vec<_> = stories.iter().flat_map(|s| s.events.clone()).collect();
    events.extend(Story::conflict("dead").later(100).events);
    model.apply(&entries(&events)).unwrap();
    let queued = Filter::in_phase(Phase::Queued);
    let (mut cursor, mut seen) = (None, Vec::new());
    loop {
        let page = model.list(&queued, cursor.as_deref(), 7).unwrap();
        seen.extend(page.jobs.into_iter().map(|j| j.id));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    let newest_first: Vec<_> = stories.iter().rev().map(|s| s.id).collect();
    assert_eq!(seen, newest_first);
    let count = |filter: Filter| model.list(&filter, None, 500).unwrap().jobs.len();
    let text = |s: &str| Some(s.to_owned());
    assert_eq!(count(Filter { image: text("golden"), ..Filter::default() }), 51);
    assert_eq!(count(Filter { image: text("gold"), ..Filter::default() }), 0);
    assert_eq!(count(Filter { label: text("team=web"), ..Filter::default() }), 51);
    assert_eq!(count(Filter { label: text("team=api"), ..Filter::default() }), 0);
    assert_eq!(count(Filter { host: text("h-01"), ..Filter::default() }), 1);
    assert_eq!(count(Filter { cause: Some("conflicting_network".parse().unwrap()), ..Filter::default() }), 1);
    assert_eq!(count(Filter { text: text("192.168.100.79"), ..Filter::default() }), 1);
    assert!(model.list(&queued, Some("../../etc"), 7).is_err());
    let id = stories[3].id;
    assert_eq!(model.find(&id.to_string()).unwrap(), Found::One(id));
    assert_eq!(model.find(&id.to_string()[..13]).unwrap(), Found::One(id));
    assert_eq!(model.find("nonsense").unwrap(), Found::Nothing);
    assert!(matches!(model.find("").unwrap(), Found::Nothing));
}

#[test]
fn hosts_show_their_latest_word_and_what_runs_on_them() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&dir);
    model.apply(&entries(&world())).unwrap();
    let hosts = model.hosts().unwrap();
    assert_eq!((hosts[0].status, hosts[0].ready), (HostStatus::Up, 1));
    assert_eq!((hosts[1].status, hosts[1].ready), (HostStatus::Draining, 1));
    assert_eq!(hosts[0].labels["rack"], "7");
}

#[tokio::test]
async fn it_follows_the_history_as_it_grows() {
    let server = Server::start().await;
    let mut news = server.model.changes();
    let story = Story::ready_at_first("followed");
    server.tell(&story.events).await;
    let change = tokio::time::timeout(SOON, news.recv()).await.unwrap().unwrap();
    assert_eq!((change.seq, change.job, change.kind), (0, Some(story.id), "job.enqueued"));
    assert_eq!(server.model.job(story.id).unwrap().unwrap(), story.state());
    let more = Story::conflict("batched");
    let list = batch(0, &more.events);
    server.broker.put("batch", CONTENT_BATCH, list.body.to_vec());
    assert!(server.model.wait_for_event(more.events.last().unwrap(), SOON).await);
    assert_eq!(server.model.counts().phases[&Phase::Dead], 1);
}
