//! Publishing, delivering, acknowledging.

use std::collections::BTreeSet;

use futures_util::{StreamExt, stream::FuturesUnordered};
use stoker_schemas::spec::Priority;
use stoker_worker::ports::broker::{BrokerError, BrokerStatus, Offset, Source};
use tokio::time::timeout;

use super::{
    Ability, DEADLINE, HOST, POOL, Setup, job, jobs, next, numbers, publish_numbers, quiet, read, settle, subscribe,
    take, text,
};

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
    assert_eq!(read(&mut subscription).await, "kept");
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
        setup.written_down(&delivery).await;
        delivery.ack.ack().await.unwrap();
    }
    broker.close().await;
    drop(kept);
    let broker = setup.open(HOST).await;
    let mut subscription = subscribe(&*broker, jobs(POOL, Priority::Normal), 10).await;
    assert_eq!(read(&mut subscription).await, "1");
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
    let counted = again.iter().all(|d| d.delivery_count >= 1);
    assert!(counted || !setup.can(Ability::CountsKept), "{again:?}");
    settle(again).await;
}

/// Many callers at once, nothing lost.
pub async fn many_pipelined_publishes_all_arrive(setup: &dyn Setup) {
    const MANY: usize = 2_000;
    let broker = setup.open(HOST).await;
    let mut subscription = subscribe(&*broker, jobs(POOL, Priority::Normal), 100).await;
    let mut confirms: FuturesUnordered<_> =
        numbers(0..MANY).into_iter().map(|body| broker.publish(job(POOL, Priority::Normal, body))).collect();
    let publishing = async {
        while let Some(confirm) = confirms.next().await {
            confirm.unwrap()
        }
    };
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
