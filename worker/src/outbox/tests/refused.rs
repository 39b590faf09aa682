//! A queue that refuses holds back its own messages, and nothing else.

use stoker_schemas::JobId;
use stoker_schemas::event::EventData;

use super::*;

/// Two delays, each with a queue of its own, and the ends of their routing keys.
const SHORT: (u64, &str) = (1_000, ".1000");
const LONG: (u64, &str) = (60_000, ".60000");

impl FakeBroker {
    fn fill(&self, end: &'static str) {
        self.full.lock().unwrap().insert(end);
    }

    fn make_room(&self, end: &'static str) {
        self.full.lock().unwrap().remove(end);
    }

    /// Waits until so many more messages were refused.
    async fn refused(&self, more: u64) {
        let mut refused = self.refused.subscribe();
        let wanted = *refused.borrow() + more;
        timeout(DEADLINE, refused.wait_for(|n| *n >= wanted)).await.expect("nothing is tried again").unwrap();
    }
}

impl Bench {
    /// Retries of jobs, in order, each with its delay, all in one commit.
    async fn retry(&self, jobs: impl IntoIterator<Item = (u64, u64)>) {
        let mut event = event::sample(WORK).unwrap();
        let mut encode = |(job, delay): (u64, u64)| {
            event.subject = Uuid::from_u128(job.into()).to_string();
            let EventData::JobRetryScheduled(retry) = &mut event.data else { panic!("{WORK}") };
            retry.delay_ms = delay;
            Bytes::from(event.encode().unwrap())
        };
        let events: Vec<_> = jobs.into_iter().map(&mut encode).collect();
        let append = Append { stream: Uuid::now_v7(), expected: Expected::Any, events, index: IndexChange::Keep };
        self.log.append(vec![append]).await.unwrap();
    }

    async fn until_progress(&mut self, what: &str, holds: impl FnMut(&Progress) -> bool) -> Progress {
        let held = timeout(DEADLINE, self.published.wait_for(holds)).await.map(|held| held.unwrap().clone());
        held.unwrap_or_else(|_| panic!("{what}: {:?}", *self.published.borrow()))
    }

    async fn restart_with(&mut self, set_aside: usize) {
        self.running.abort();
        let _ = (&mut self.running).await;
        (self.published, self.running) = begin_with(&self.log, &self.broker, set_aside);
    }

    fn set_aside(&self) -> Vec<u64> {
        self.log.cursors("outbox.refused.").unwrap().into_iter().map(|(_, at)| at).collect()
    }
}

fn job(number: u64) -> JobId {
    JobId(Uuid::from_u128(number.into()))
}

#[tokio::test]
async fn what_a_full_queue_refuses_holds_back_nothing_else() {
    let mut bench = Bench::new();
    bench.broker.fill(SHORT.1);
    bench.retry([(1, SHORT.0), (2, LONG.0)]).await;
    bench.append(HISTORY, [3]).await;
    bench.retry([(4, LONG.0), (5, SHORT.0)]).await;
    bench.settled().await;
    let arrived = bench.broker.until("work of others", |a| a.work == [2, 4] && a.history.contains(&3)).await;
    assert_eq!(arrived.history, (1..=5).collect(), "readers learn of what is refused, too");
    let progress = bench.until_progress("both are set aside", |p| p.refused() == 2).await;
    assert_eq!((progress.held.keys().copied().collect::<Vec<_>>(), progress.stopped), (vec![job(1), job(5)], false));
    let refusal = &progress.refusals[0];
    assert_eq!((progress.refusals.len(), refusal.queue.as_str(), refusal.messages), (1, "stoker.delay.1000", 2));
    assert!(refusal.reason.contains("full"), "{refusal:?}");

    bench.broker.refused(2).await;
    bench.broker.make_room(SHORT.1);
    bench.broker.until("refused work", |a| a.work == [2, 4, 1, 5]).await;
    let progress = bench.until_progress("nothing is set aside", |p| p.refused() == 0).await;
    assert_eq!((progress.held.len(), bench.set_aside()), (0, Vec::new()));
}

#[tokio::test]
async fn the_acknowledgement_of_a_job_waits_for_its_own_message_alone() {
    let mut bench = Bench::new();
    bench.broker.fill(SHORT.1);
    bench.retry([(1, SHORT.0), (2, LONG.0)]).await;
    let progress = bench.until_progress("published", |p| p.through >= 2).await;
    assert!(!progress.covers(Some(job(1)), 2), "its retry is nowhere but here");
    assert!(progress.covers(Some(job(2)), 2));
    assert!(progress.covers(None, 2));
    assert!(progress.covers(Some(job(1)), 0), "what it wrote before that is published");
    assert!(!progress.covers(Some(job(2)), 3), "not so far yet");
}

#[tokio::test]
async fn a_later_message_of_the_job_waits_behind_the_refused_one() {
    let mut bench = Bench::new();
    bench.broker.fill(SHORT.1);
    // In one page, and in a later one.
    bench.retry([(1, SHORT.0), (1, LONG.0), (2, LONG.0)]).await;
    bench.settled().await;
    bench.retry([(1, LONG.0), (3, LONG.0)]).await;
    bench.settled().await;
    bench.broker.until("work of others", |a| a.work == [2, 3]).await;
    bench.broker.refused(2).await;
    assert_eq!(bench.broker.arrived.borrow().work, [2, 3]);
    bench.broker.make_room(SHORT.1);
    let arrived = bench.broker.until("all", |a| a.work.len() == 5).await;
    assert_eq!(arrived.work, [2, 3, 1, 1, 1]);
    bench.until_progress("nothing is set aside", |p| p.held.is_empty()).await;
}

#[tokio::test]
async fn what_is_set_aside_survives_a_restart() {
    let mut bench = Bench::new();
    bench.broker.fill(SHORT.1);
    bench.retry([(1, SHORT.0), (2, LONG.0), (1, LONG.0)]).await;
    bench.settled().await;
    bench.broker.refused(1).await;
    bench.restart().await;
    bench.broker.refused(1).await;
    let progress = bench.until_progress("set aside", |p| p.through == 3).await;
    assert_eq!(progress.held.get(&job(1)), Some(&1));
    bench.broker.make_room(SHORT.1);
    let arrived = bench.broker.until("all", |a| a.work.len() == 3).await;
    assert_eq!(arrived.work, [2, 1, 1], "no work is lost or done twice");
    bench.until_progress("nothing is set aside", |p| p.held.is_empty()).await;
    bench.restart().await;
    bench.retry([(4, LONG.0)]).await;
    bench.broker.until("goes on", |a| a.work == [2, 1, 1, 4]).await;
}

#[tokio::test]
async fn so_many_may_be_set_aside_then_publishing_stops_and_says_so() {
    let mut bench = Bench::new();
    bench.restart_with(3).await;
    bench.broker.fill(SHORT.1);
    bench.retry((1..=10).map(|n| (n, SHORT.0))).await;
    bench.retry([(11, LONG.0)]).await;
    let progress = bench.until_progress("stopped", |p| p.stopped).await;
    assert_eq!((progress.through, progress.refused(), bench.set_aside().len()), (3, 3, 3));
    assert!(bench.broker.arrived.borrow().work.is_empty());
    bench.broker.make_room(SHORT.1);
    let arrived = bench.broker.until("all", |a| a.work.len() == 11).await;
    assert_eq!(arrived.work.iter().copied().collect::<BTreeSet<_>>(), (1..=11).collect());
    bench.until_progress("goes on", |p| !p.stopped && p.held.is_empty()).await;
}

/// More than wait in memory for one commit.
#[tokio::test]
async fn thousands_are_set_aside_and_published_each_once() {
    let mut bench = Bench::new();
    let jobs = 3_000;
    bench.broker.fill(SHORT.1);
    for first in (1..=jobs).step_by(MAX_CALL_EVENTS) {
        bench.retry((first..=jobs.min(first + MAX_CALL_EVENTS as u64 - 1)).map(|n| (n, SHORT.0))).await;
    }
    bench.settled().await;
    assert_eq!(bench.set_aside().len() as u64, jobs);
    bench.broker.make_room(SHORT.1);
    let arrived = bench.broker.until("all", |a| a.work.len() as u64 == jobs).await;
    assert_eq!(arrived.work, (1..=jobs).collect::<Vec<_>>(), "in their order");
    bench.until_progress("nothing is set aside", |p| p.held.is_empty()).await;
    assert!(bench.set_aside().is_empty());
}
