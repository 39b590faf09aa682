//! What every broker must do, as cases that any implementation of `Broker` can be put through.
//!
//! An adapter's test file says how to open its broker ([`Setup`]) and gets one test per case:
//!
//! ```ignore
//! stoker_tests::broker_conformance!(my_setup); // async fn(&str) -> Option<Box<dyn Setup>>
//! ```

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, resume_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use stoker_schemas::{PoolName, spec::Priority, topology::delay_tier_ms};
use stoker_worker::ports::broker::{
    Broker, BrokerError, BrokerStatus, CONTENT_BATCH, CONTENT_EVENT, Delivery, HistoryEntry, HistoryReader, Offset,
    Outgoing, Parked, Source, Subscription,
};
use tokio::time::timeout;

/// What must come, comes within this.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// What must not come would have come within this.
pub const QUIET: Duration = Duration::from_millis(300);
/// The pools that cases use; `FRESH` is never named when a broker is opened.
pub const POOL: &str = "alpha";
/// See [`POOL`].
pub const OTHER_POOL: &str = "beta";
/// See [`POOL`].
pub const FRESH: &str = "fresh";
/// The hosts that cases use.
pub const HOST: &str = "host-1";
/// See [`HOST`].
pub const OTHER_HOST: &str = "host-2";

/// One isolated place (a prefix, a folder) in which brokers can be opened, one after the other.
#[async_trait]
pub trait Setup: Send + Sync {
    /// Opens a broker for a host, with [`POOL`] and [`OTHER_POOL`].
    async fn open(&self, host: &str) -> Arc<dyn Broker>;
    /// Whether several can be open at once, as on different hosts.
    fn shared(&self) -> bool;
    /// Removes what the case left behind.
    async fn clean(&self);
}

/// Runs one case, and cleans up also after a failure.
pub async fn run_case(setup: Option<Box<dyn Setup>>, case: impl for<'a> FnOnce(&'a dyn Setup) -> BoxFuture<'a, ()>) {
    let Some(setup) = setup else { return };
    let outcome = AssertUnwindSafe(case(&*setup)).catch_unwind().await;
    setup.clean().await;
    if let Err(failure) = outcome {
        resume_unwind(failure);
    }
}

macro_rules! cases {
    ($d:tt $($case:ident)+) => {
        /// One `#[tokio::test]` for each case.
        #[macro_export]
        macro_rules! broker_conformance {
            ($d setup:path) => {$(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    use $crate::conformance::broker as suite;
                    let setup = $d setup(stringify!($case)).await;
                    suite::run_case(setup, |s| Box::pin(suite::$case(s))).await;
                }
            )+};
        }

        /// Every case, one after the other; the maker is told the case's name.
        pub async fn run_all(make: impl AsyncFn(&str) -> Option<Box<dyn Setup>>) {
            $(run_case(make(stringify!($case)).await, |s| Box::pin($case(s))).await;)+
        }
    };
}

cases! { $
    a_publish_is_delivered
    a_confirmed_publish_survives_reopening
    order_is_kept
    an_acknowledged_message_is_gone
    a_requeued_message_comes_again
    unacknowledged_messages_come_again_after_reopening
    credit_limits_what_is_in_flight
    credit_zero_pauses
    a_lowered_credit_waits_for_acknowledgements
    a_delay_is_kept
    a_delayed_message_keeps_its_lane_and_pool
    lanes_and_pools_are_separate
    history_has_everything_in_order
    history_survives_reopening
    history_says_what_is_a_batch
    a_parked_message_is_readable
    a_dead_job_is_readable
    commands_reach_their_host
    many_pipelined_publishes_all_arrive
    a_fresh_pool_keeps_its_jobs
    work_without_a_queue_is_refused
    depth_counts_what_waits
    a_closed_broker_says_so
}

/// An event with a routing key.
pub fn event(routing_key: impl Into<String>, body: impl Into<String>) -> Outgoing {
    Outgoing {
        routing_key: routing_key.into(),
        message_id: uuid::Uuid::now_v7().to_string(),
        content_type: CONTENT_EVENT,
        delay: None,
        body: Bytes::from(body.into()),
    }
}

/// A job for a pool and lane.
pub fn job(pool: &str, lane: Priority, body: impl Into<String>) -> Outgoing {
    event(format!("job.enqueued.{pool}.{}", lane.as_str()), body)
}

/// A source of jobs.
pub fn jobs(pool: &str, lane: Priority) -> Source {
    Source::Jobs(pool.parse().unwrap(), lane)
}

/// Subscribes with a credit.
pub async fn subscribe(broker: &dyn Broker, source: Source, credit: u32) -> Subscription {
    let subscription = broker.subscribe(source).await.unwrap();
    subscription.credit.send_replace(credit);
    subscription
}

/// The next delivery, which must come.
pub async fn next(subscription: &mut Subscription) -> Delivery {
    timeout(DEADLINE, subscription.deliveries.recv()).await.expect("no delivery came").expect("subscription ended")
}

/// The next `count` deliveries.
pub async fn take(subscription: &mut Subscription, count: usize) -> Vec<Delivery> {
    let mut taken = Vec::with_capacity(count);
    while taken.len() < count {
        taken.push(next(subscription).await);
    }
    taken
}

/// Nothing comes.
pub async fn quiet(subscription: &mut Subscription) {
    if let Ok(Some(delivery)) = timeout(QUIET, subscription.deliveries.recv()).await {
        panic!("unexpected delivery: {delivery:?} {:?}", text(&delivery));
    }
}

/// The body as text.
pub fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.body).into_owned()
}

async fn next_entry(reader: &mut HistoryReader) -> HistoryEntry {
    timeout(DEADLINE, reader.recv()).await.expect("no history entry came").expect("history ended")
}

async fn bodies(reader: &mut HistoryReader, count: usize) -> Vec<String> {
    let mut read = Vec::with_capacity(count);
    while read.len() < count {
        read.push(String::from_utf8_lossy(&next_entry(reader).await.body).into_owned());
    }
    read
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

async fn publish_numbers(broker: &dyn Broker, range: std::ops::Range<usize>) {
    for body in numbers(range) {
        broker.publish(job(POOL, Priority::Normal, body)).await.unwrap();
    }
}

/// A publish reaches a subscriber, whole.
pub async fn a_publish_is_delivered(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    assert_eq!(*broker.status().borrow(), BrokerStatus::Connected);
    let mut subscription = subscribe(&*broker, jobs(POOL, Priority::Normal), 10).await;
    broker.publish(job(POOL, Priority::Normal, "hello")).await.unwrap();
    let delivery = next(&mut subscription).await;
    assert_eq!(text(&delivery), "hello");
    assert_eq!(delivery.routing_key, format!("job.enqueued.{POOL}.normal"));
    assert_eq!(delivery.delivery_count, 0);
    delivery.ack.ack().await.unwrap();
}

/// Confirmed means kept, also before anybody subscribed.
pub async fn a_confirmed_publish_survives_reopening(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    broker.publish(job(POOL, Priority::Normal, "kept")).await.unwrap();
    broker.close().await;
    let broker = setup.open(HOST).await;
    let mut subscription = subscribe(&*broker, jobs(POOL, Priority::Normal), 10).await;
    assert_eq!(text(&next(&mut subscription).await), "kept");
}

/// First in, first out.
pub async fn order_is_kept(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    publish_numbers(&*broker, 0..50).await;
    let mut subscription = subscribe(&*broker, jobs(POOL, Priority::Normal), 7).await;
    for expected in numbers(0..50) {
        let delivery = next(&mut subscription).await;
        assert_eq!(text(&delivery), expected);
        delivery.ack.ack().await.unwrap();
    }
}

/// An acknowledged message never comes again.
pub async fn an_acknowledged_message_is_gone(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    publish_numbers(&*broker, 0..3).await;
    let mut subscription = subscribe(&*broker, jobs(POOL, Priority::Normal), 10).await;
    let mut held = take(&mut subscription, 3).await;
    // The middle one stays open, so that the others cannot be settled in one go.
    let kept = held.remove(1);
    for delivery in held {
        delivery.ack.ack().await.unwrap();
    }
    broker.close().await;
    drop(kept);
    let broker = setup.open(HOST).await;
    let mut subscription = subscribe(&*broker, jobs(POOL, Priority::Normal), 10).await;
    assert_eq!(text(&next(&mut subscription).await), "1");
    quiet(&mut subscription).await;
}

/// A requeued message comes again and says so.
pub async fn a_requeued_message_comes_again(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    publish_numbers(&*broker, 0..1).await;
    let mut subscription = subscribe(&*broker, jobs(POOL, Priority::Normal), 1).await;
    next(&mut subscription).await.ack.requeue().await.unwrap();
    let again = next(&mut subscription).await;
    assert_eq!((text(&again), again.delivery_count), ("0".to_owned(), 1));
    again.ack.ack().await.unwrap();
    quiet(&mut subscription).await;
}

/// What a closed broker held comes again, counted.
pub async fn unacknowledged_messages_come_again_after_reopening(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    publish_numbers(&*broker, 0..5).await;
    let mut subscription = subscribe(&*broker, jobs(POOL, Priority::Normal), 10).await;
    let held = take(&mut subscription, 5).await;
    broker.close().await;
    drop(held);
    let broker = setup.open(HOST).await;
    let mut subscription = subscribe(&*broker, jobs(POOL, Priority::Normal), 10).await;
    let again = take(&mut subscription, 5).await;
    assert_eq!(again.iter().map(text).collect::<Vec<_>>(), numbers(0..5));
    assert!(again.iter().all(|d| d.delivery_count >= 1), "{again:?}");
}

/// Never more unacknowledged than the credit; settling and raising let more through.
pub async fn credit_limits_what_is_in_flight(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    publish_numbers(&*broker, 0..10).await;
    let mut subscription = subscribe(&*broker, jobs(POOL, Priority::Normal), 3).await;
    let mut held = take(&mut subscription, 3).await;
    quiet(&mut subscription).await;
    held.remove(0).ack.ack().await.unwrap();
    held.push(next(&mut subscription).await);
    quiet(&mut subscription).await;
    subscription.credit.send_replace(5);
    held.extend(take(&mut subscription, 2).await);
    quiet(&mut subscription).await;
    assert_eq!(held.iter().map(text).collect::<Vec<_>>(), numbers(1..6));
    assert!(held.iter().all(|d| d.delivery_count == 0), "a change of credit must not redeliver");
}

/// Credit 0 stops the flow, keeps what is held, and can be lifted.
pub async fn credit_zero_pauses(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    publish_numbers(&*broker, 0..4).await;
    let mut subscription = subscribe(&*broker, jobs(POOL, Priority::Normal), 2).await;
    let held = take(&mut subscription, 2).await;
    subscription.credit.send_replace(0);
    // Once a requeued message does not come back, the pause has taken effect.
    for delivery in held {
        delivery.ack.ack().await.unwrap();
    }
    let mut seen = 0;
    while let Ok(Some(delivery)) = timeout(QUIET, subscription.deliveries.recv()).await {
        // Under way when the credit fell; at most what the old credit allowed.
        seen += 1;
        assert!(seen <= 2);
        delivery.ack.requeue().await.unwrap();
    }
    subscription.credit.send_replace(10);
    let rest: BTreeSet<_> = take(&mut subscription, 2).await.iter().map(text).collect();
    assert_eq!(rest, numbers(2..4).into_iter().collect());
    quiet(&mut subscription).await;
}

/// Lowered below what is held, nothing comes until enough is settled.
pub async fn a_lowered_credit_waits_for_acknowledgements(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    publish_numbers(&*broker, 0..8).await;
    let mut subscription = subscribe(&*broker, jobs(POOL, Priority::Normal), 4).await;
    let mut held = take(&mut subscription, 4).await;
    subscription.credit.send_replace(2);
    quiet(&mut subscription).await;
    for _ in 0..2 {
        held.remove(0).ack.ack().await.unwrap();
    }
    quiet(&mut subscription).await;
    held.remove(0).ack.ack().await.unwrap();
    held.push(next(&mut subscription).await);
    quiet(&mut subscription).await;
    assert_eq!(held.iter().map(text).collect::<Vec<_>>(), ["3", "4"]);
}

fn delayed(pool: &str, lane: Priority, delay: Duration, body: &str) -> Outgoing {
    let key = format!("job.deferred.{pool}.{}.{}", lane.as_str(), delay_tier_ms(delay));
    Outgoing { delay: Some(delay), ..event(key, body) }
}

/// Not before its delay, and not long after.
pub async fn a_delay_is_kept(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    let mut subscription = subscribe(&*broker, jobs(POOL, Priority::Normal), 10).await;
    let started = Instant::now();
    let delays = [700, 0, 150].map(Duration::from_millis);
    for delay in delays {
        let body = delay.as_millis().to_string();
        broker.publish(delayed(POOL, Priority::Normal, delay, &body)).await.unwrap();
    }
    let mut arrived = BTreeMap::new();
    for delivery in take(&mut subscription, delays.len()).await {
        arrived.insert(text(&delivery), started.elapsed());
        delivery.ack.ack().await.unwrap();
    }
    for delay in delays {
        let after = arrived[&delay.as_millis().to_string()];
        assert!(after >= delay && after < delay + Duration::from_secs(5), "{delay:?} took {after:?}");
    }
    quiet(&mut subscription).await;
}

/// After its delay a message goes to the lane and pool of its key, and nowhere else.
pub async fn a_delayed_message_keeps_its_lane_and_pool(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    let mut high = subscribe(&*broker, jobs(POOL, Priority::High), 10).await;
    let mut normal = subscribe(&*broker, jobs(POOL, Priority::Normal), 10).await;
    let mut other = subscribe(&*broker, jobs(OTHER_POOL, Priority::High), 10).await;
    let delay = Duration::from_millis(100);
    broker.publish(delayed(POOL, Priority::High, delay, "mine")).await.unwrap();
    let delivery = next(&mut high).await;
    assert_eq!(text(&delivery), "mine");
    assert_eq!(delivery.routing_key, format!("job.deferred.{POOL}.high.100"));
    quiet(&mut normal).await;
    quiet(&mut other).await;
}

/// A lane of a pool gets its own jobs only.
pub async fn lanes_and_pools_are_separate(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    let wanted = [(POOL, Priority::High), (POOL, Priority::Normal), (OTHER_POOL, Priority::High)];
    for (pool, lane) in wanted {
        broker.publish(job(pool, lane, format!("{pool} {}", lane.as_str()))).await.unwrap();
    }
    for (pool, lane) in wanted {
        let mut subscription = subscribe(&*broker, jobs(pool, lane), 10).await;
        assert_eq!(text(&next(&mut subscription).await), format!("{pool} {}", lane.as_str()));
        quiet(&mut subscription).await;
    }
}

/// From the start, from a position, and on as it comes.
pub async fn history_has_everything_in_order(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    publish_numbers(&*broker, 0..10).await;
    for body in numbers(10..20) {
        broker.publish(event("vm.ready", body)).await.unwrap();
    }
    let mut reader = broker.history(Offset::First).await.unwrap();
    let mut offsets = Vec::new();
    for expected in numbers(0..20) {
        let entry = next_entry(&mut reader).await;
        assert_eq!(String::from_utf8_lossy(&entry.body), expected);
        offsets.push(entry.offset);
    }
    assert!(offsets.windows(2).all(|w| w[0] < w[1]), "{offsets:?}");
    let mut late = broker.history(Offset::At(offsets[12])).await.unwrap();
    assert_eq!(bodies(&mut late, 8).await, numbers(12..20));
    publish_numbers(&*broker, 20..25).await;
    assert_eq!(bodies(&mut reader, 5).await, numbers(20..25));
    assert_eq!(bodies(&mut late, 5).await, numbers(20..25));
}

/// Offsets mean the same after a restart.
pub async fn history_survives_reopening(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    publish_numbers(&*broker, 0..6).await;
    let mut reader = broker.history(Offset::First).await.unwrap();
    let mut fourth = next_entry(&mut reader).await;
    for _ in 0..3 {
        fourth = next_entry(&mut reader).await;
    }
    broker.close().await;
    let broker = setup.open(HOST).await;
    publish_numbers(&*broker, 6..8).await;
    let mut reader = broker.history(Offset::At(fourth.offset)).await.unwrap();
    assert_eq!(bodies(&mut reader, 5).await, numbers(3..8));
    let mut reader = broker.history(Offset::First).await.unwrap();
    assert_eq!(bodies(&mut reader, 8).await, numbers(0..8));
}

/// A reader can tell one event from an array of them.
pub async fn history_says_what_is_a_batch(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    broker.publish(event("vm.ready", "{}")).await.unwrap();
    let batch = Outgoing { content_type: CONTENT_BATCH, ..event("vm.steps", "[]") };
    broker.publish(batch).await.unwrap();
    let mut reader = broker.history(Offset::First).await.unwrap();
    for (content_type, key) in [(CONTENT_EVENT, "vm.ready"), (CONTENT_BATCH, "vm.steps")] {
        let entry = next_entry(&mut reader).await;
        assert_eq!((entry.content_type.as_str(), entry.routing_key.as_str()), (content_type, key));
    }
}

/// What could not be worked on is there for people, as it was.
pub async fn a_parked_message_is_readable(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    let body = Bytes::from_static(b"\xff not json");
    let key = format!("job.enqueued.{POOL}.normal");
    let parked = Parked { routing_key: key.clone(), reason: "not JSON".into(), body: body.clone() };
    broker.park(parked).await.unwrap();
    broker.close().await;
    let broker = setup.open(HOST).await;
    let mut dead = subscribe(&*broker, Source::Dead, 10).await;
    let delivery = next(&mut dead).await;
    assert_eq!((delivery.routing_key.as_str(), &delivery.body), (key.as_str(), &body));
}

/// A dead job is in the dead queue too.
pub async fn a_dead_job_is_readable(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    broker.publish(event(format!("job.dead.{POOL}"), "died")).await.unwrap();
    let mut dead = subscribe(&*broker, Source::Dead, 10).await;
    assert_eq!(text(&next(&mut dead).await), "died");
}

/// A command reaches the host it names, or all.
pub async fn commands_reach_their_host(setup: &dyn Setup) {
    let first = setup.open(HOST).await;
    let mut mine = subscribe(&*first, Source::HostCommands, 10).await;
    first.publish(event(format!("command.host.{HOST}"), "you")).await.unwrap();
    first.publish(event("command.all", "everybody")).await.unwrap();
    for expected in ["you", "everybody"] {
        assert_eq!(text(&next(&mut mine).await), expected);
    }
    if !setup.shared() {
        return;
    }
    let second = setup.open(OTHER_HOST).await;
    let mut theirs = subscribe(&*second, Source::HostCommands, 10).await;
    first.publish(event(format!("command.host.{OTHER_HOST}"), "other")).await.unwrap();
    first.publish(event("command.all", "both")).await.unwrap();
    for expected in ["other", "both"] {
        assert_eq!(text(&next(&mut theirs).await), expected);
    }
    assert_eq!(text(&next(&mut mine).await), "both");
    quiet(&mut mine).await;
}

/// Many callers at once, nothing lost.
pub async fn many_pipelined_publishes_all_arrive(setup: &dyn Setup) {
    const MANY: usize = 2_000;
    let broker = setup.open(HOST).await;
    let mut subscription = subscribe(&*broker, jobs(POOL, Priority::Normal), 100).await;
    let mut confirms: FuturesUnordered<_> =
        numbers(0..MANY).into_iter().map(|body| broker.publish(job(POOL, Priority::Normal, body))).collect();
    let publishing = async { while let Some(confirm) = confirms.next().await { confirm.unwrap() } };
    let receiving = async {
        let mut seen = BTreeSet::new();
        while seen.len() < MANY {
            let delivery = next(&mut subscription).await;
            seen.insert(text(&delivery));
            delivery.ack.ack().await.unwrap();
        }
    };
    tokio::join!(publishing, receiving);
    quiet(&mut subscription).await;
}

/// A job for a pool that no worker serves yet waits for one.
pub async fn a_fresh_pool_keeps_its_jobs(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    broker.publish(job(FRESH, Priority::Normal, "early")).await.unwrap();
    broker.publish(delayed(FRESH, Priority::High, Duration::from_millis(100), "delayed")).await.unwrap();
    broker.close().await;
    let broker = setup.open(HOST).await;
    let mut normal = subscribe(&*broker, jobs(FRESH, Priority::Normal), 10).await;
    let mut high = subscribe(&*broker, jobs(FRESH, Priority::High), 10).await;
    assert_eq!(text(&next(&mut normal).await), "early");
    assert_eq!(text(&next(&mut high).await), "delayed");
}

/// Work that no queue could ever take is refused, not only written to the history.
pub async fn work_without_a_queue_is_refused(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    for key in ["job.enqueued.alpha", "job.enqueued.alpha.urgent", "job.deferred.alpha.normal.123"] {
        let answer = broker.publish(event(key, "lost")).await;
        assert!(matches!(answer, Err(BrokerError::Unroutable(_))), "{key}: {answer:?}");
    }
}

/// Waiting messages are counted; a pool nobody knows has none.
pub async fn depth_counts_what_waits(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    publish_numbers(&*broker, 0..3).await;
    let pool: PoolName = POOL.parse().unwrap();
    let three = async {
        while broker.depth(&pool, Priority::Normal).await.unwrap() != 3 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, three).await.expect("depth never became 3");
    assert_eq!(broker.depth(&pool, Priority::High).await.unwrap(), 0);
    assert_eq!(broker.depth(&"nobody".parse().unwrap(), Priority::High).await.unwrap(), 0);
}

/// Closed means closed: publishes fail, streams end.
pub async fn a_closed_broker_says_so(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    let mut reader = broker.history(Offset::First).await.unwrap();
    let mut subscription = subscribe(&*broker, jobs(POOL, Priority::Normal), 1).await;
    broker.close().await;
    let answer = broker.publish(job(POOL, Priority::Normal, "late")).await;
    assert!(matches!(answer, Err(BrokerError::Closed)), "{answer:?}");
    assert!(matches!(broker.subscribe(Source::Dead).await, Err(BrokerError::Closed)));
    assert!(timeout(DEADLINE, reader.recv()).await.expect("history did not end").is_none());
    assert!(timeout(DEADLINE, subscription.deliveries.recv()).await.expect("deliveries did not end").is_none());
}
