//! Which queue gets what, and when.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use stoker_schemas::{
    Event, EventData,
    event::{DeadLetterReason, MessageDeadLettered},
    letter::{Letter, dead_lettered},
    spec::Priority,
};
use stoker_worker::{
    clock::Clock,
    ports::broker::{About, Broker, BrokerError, Delivery, Offset, Parked, Source},
};
use tokio::time::timeout;

use super::{
    Ability, DEADLINE, FRESH, HOST, OTHER_HOST, OTHER_POOL, POOL, QUIET, Setup, applies, command_to, command_to_all,
    dead, job, jobs, next, pool, publish_numbers, quiet, raw, read, retrying, subscribe, take, text, text_of,
};

/// Not before its delay, and not long after.
pub async fn a_delay_is_kept(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    let mut subscription = subscribe(&*broker, jobs(POOL, Priority::Normal), 10).await;
    let started = Instant::now();
    let delays = [700, 0, 150].map(Duration::from_millis);
    for delay in delays {
        let body = delay.as_millis().to_string();
        broker.publish(retrying(POOL, Priority::Normal, delay, &body)).await.unwrap();
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
    broker.publish(retrying(POOL, Priority::High, delay, "mine")).await.unwrap();
    let delivery = next(&mut high).await;
    assert_eq!(text(&delivery), "mine");
    assert_eq!(delivery.routing_key, format!("job.retry-scheduled.{POOL}.high.100"));
    delivery.ack.ack().await.unwrap();
    quiet(&mut normal).await;
    quiet(&mut other).await;
}

/// A delivery that is put back for a while comes again as it was, counted, to the same lane. Meanwhile it takes no
/// credit, and readers of the history get nothing.
pub async fn a_deferred_message_comes_again_after_its_delay(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    let mut high = subscribe(&*broker, jobs(POOL, Priority::High), 1).await;
    let mut normal = subscribe(&*broker, jobs(POOL, Priority::Normal), 1).await;
    broker.publish(job(POOL, Priority::High, "waits")).await.unwrap();
    let mut delivery = next(&mut high).await;
    let body = delivery.body.clone();
    for deferrals in 1..=2 {
        assert_eq!((delivery.deferrals, delivery.delivery_count), (deferrals - 1, 0));
        let (delay, since) = (Duration::from_millis(600), Instant::now());
        delivery.ack.defer(delay).await.unwrap();
        broker.publish(job(POOL, Priority::High, format!("other {deferrals}"))).await.unwrap();
        let other = next(&mut high).await;
        assert_eq!(text(&other), format!("other {deferrals}"), "its credit is free");
        other.ack.ack().await.unwrap();
        delivery = next(&mut high).await;
        assert!(since.elapsed() >= delay, "after {:?}", since.elapsed());
        assert_eq!((delivery.deferrals, &delivery.body), (deferrals, &body));
    }
    delivery.ack.ack().await.unwrap();
    quiet(&mut high).await;
    quiet(&mut normal).await;
    let mut history = broker.history(Offset::First).await.unwrap();
    for expected in ["waits", "other 1", "other 2"] {
        let entry = timeout(DEADLINE, history.recv()).await.expect("no history entry came").expect("history ended");
        assert_eq!(text_of(&entry.body), expected);
    }
    assert!(timeout(QUIET, history.recv()).await.is_err(), "nothing happened that readers should know of");
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
        assert_eq!(read(&mut subscription).await, format!("{pool} {}", lane.as_str()));
        quiet(&mut subscription).await;
    }
}

/// A command reaches the host it names, or all.
pub async fn commands_reach_their_host(setup: &dyn Setup) {
    let first = setup.open(HOST).await;
    let mut mine = subscribe(&*first, Source::HostCommands, 10).await;
    first.publish(command_to(HOST, "you")).await.unwrap();
    first.publish(command_to_all("everybody")).await.unwrap();
    for expected in ["you", "everybody"] {
        assert_eq!(read(&mut mine).await, expected);
    }
    if !setup.can(Ability::SeveralHosts) {
        return;
    }
    let second = setup.open(OTHER_HOST).await;
    let mut theirs = subscribe(&*second, Source::HostCommands, 10).await;
    first.publish(command_to(OTHER_HOST, "other")).await.unwrap();
    first.publish(command_to_all("both")).await.unwrap();
    for expected in ["other", "both"] {
        assert_eq!(read(&mut theirs).await, expected);
    }
    assert_eq!(read(&mut mine).await, "both");
    quiet(&mut mine).await;
}

/// The only dead letter there is, as the event that tells of it.
async fn dead_letter(setup: &dyn Setup, broker: &dyn Broker) -> MessageDeadLettered {
    let event = if setup.can(Ability::DeadQueue) {
        let mut dead = subscribe(broker, Source::Dead, 10).await;
        let Delivery { about, body, ack, .. } = next(&mut dead).await;
        ack.ack().await.unwrap();
        let (message_id, content_type) = (about.message_id.as_deref(), about.content_type.as_deref());
        let death = about.death.as_ref().expect("says how it died");
        dead_lettered(Letter { death, message_id, content_type, body: &body }, "/producers/test", Clock::system().now())
    } else {
        let mut history = broker.history(Offset::First).await.unwrap();
        loop {
            let entry = timeout(DEADLINE, history.recv()).await.expect("it was not told").unwrap();
            if entry.routing_key == "message.dead-lettered" {
                break Event::decode(&entry.body, Clock::system().now()).unwrap();
            }
        }
    };
    match event.data {
        EventData::MessageDeadLettered(letter) => letter,
        other => panic!("{other:?}"),
    }
}

/// What could not be worked on is there for people, as it was, also after a restart.
pub async fn a_parked_message_is_a_dead_letter_with_its_reason(setup: &dyn Setup) {
    let body = Bytes::from_static(b"\xff not json");
    let (key, reason) = (format!("job.enqueued.{POOL}.normal"), "not JSON".to_owned());
    let (queue, message_id) = ("where.it.was".to_owned(), Some("m-1".to_owned()));
    let about = About { queue, message_id, content_type: Some("text/plain".to_owned()), death: None };
    let at = Clock::system().now();
    let broker = setup.open(HOST).await;
    broker.park(Parked { routing_key: key.clone(), reason, at, about, body: body.clone() }).await.unwrap();
    broker.close().await;
    let letter = dead_letter(setup, &*setup.open(HOST).await).await;
    assert_eq!((letter.reason, letter.detail.as_str()), (DeadLetterReason::Unreadable, "not JSON"));
    assert_eq!((letter.queue.as_str(), letter.routing_key, letter.died_at), ("where.it.was", key, at));
    assert_eq!((letter.message_id.as_deref(), letter.content_type.as_deref()), (Some("m-1"), Some("text/plain")));
    assert_eq!((letter.body.bytes(), letter.size), (Some(body.to_vec()), body.len() as u64));
}

/// What its reader will never take, and cannot park, is not forgotten.
pub async fn a_rejected_message_is_a_dead_letter(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    broker.publish(job(POOL, Priority::Normal, "rejected")).await.unwrap();
    let mut subscription = subscribe(&*broker, jobs(POOL, Priority::Normal), 1).await;
    next(&mut subscription).await.ack.dead_letter().await.unwrap();
    quiet(&mut subscription).await;
    let letter = dead_letter(setup, &*broker).await;
    assert_eq!(letter.reason, DeadLetterReason::Rejected, "{letter:?}");
    assert_eq!(letter.routing_key, format!("job.enqueued.{POOL}.normal"));
    assert!(letter.queue.ends_with(&format!("jobs.{POOL}.normal")), "{}", letter.queue);
    assert_eq!(letter.work.expect("it is work").attempt, 1);
    assert_eq!(text_of(&letter.body.bytes().expect("whole")), "rejected");
}

/// That a job is dead is a fact for readers of the history: no queue fills with dead jobs.
pub async fn a_dead_job_fills_no_queue(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    broker.publish(dead(POOL, "died")).await.unwrap();
    let mut letters = subscribe(&*broker, Source::Dead, 10).await;
    quiet(&mut letters).await;
}

/// A job for a pool that no worker serves yet waits for one.
pub async fn a_fresh_pool_keeps_its_jobs(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    broker.publish(job(FRESH, Priority::Normal, "early")).await.unwrap();
    broker.publish(retrying(FRESH, Priority::High, Duration::from_millis(100), "delayed")).await.unwrap();
    broker.close().await;
    let broker = setup.open(HOST).await;
    let mut normal = subscribe(&*broker, jobs(FRESH, Priority::Normal), 10).await;
    let mut high = subscribe(&*broker, jobs(FRESH, Priority::High), 10).await;
    assert_eq!(read(&mut normal).await, "early");
    assert_eq!(read(&mut high).await, "delayed");
}

/// Work that no queue could ever take is refused, not only written to the history.
pub async fn work_without_a_queue_is_refused(setup: &dyn Setup) {
    if !applies(setup, "work_without_a_queue_is_refused", Ability::RoutingByKey) {
        return;
    }
    let broker = setup.open(HOST).await;
    for key in ["job.enqueued.alpha", "job.enqueued.alpha.urgent", "job.deferred.alpha.normal.123"] {
        let answer = broker.publish(raw(key, "lost")).await;
        assert!(matches!(answer, Err(BrokerError::Unroutable(_))), "{key}: {answer:?}");
    }
}

/// Waiting messages are counted; a pool nobody knows has none.
pub async fn depth_counts_what_waits(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    publish_numbers(&*broker, 0..3).await;
    let pool = pool(POOL);
    let three = async {
        while broker.depth(&pool, Priority::Normal).await.unwrap() != 3 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, three).await.expect("depth never became 3");
    assert_eq!(broker.depth(&pool, Priority::High).await.unwrap(), 0);
    assert_eq!(broker.depth(&"nobody".parse().unwrap(), Priority::High).await.unwrap(), 0);
}
