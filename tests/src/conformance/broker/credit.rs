//! How much may be unacknowledged at once.

use std::collections::BTreeSet;

use stoker_schemas::spec::Priority;
use tokio::time::timeout;

use super::{
    HOST, POOL, QUIET, Setup, jobs, next, numbers, publish_numbers, quiet, read, settle, subscribe, take, text,
};

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
    settle(held).await;
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
    let rest = take(&mut subscription, 2).await;
    assert_eq!(rest.iter().map(text).collect::<BTreeSet<_>>(), numbers(2..4).into_iter().collect());
    quiet(&mut subscription).await;
    settle(rest).await;
}

/// A handle that its owner drops by mistake gives its delivery back, and the credit with it.
pub async fn a_dropped_handle_gives_its_credit_back(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    publish_numbers(&*broker, 0..2).await;
    let mut subscription = subscribe(&*broker, jobs(POOL, Priority::Normal), 1).await;
    let delivery = next(&mut subscription).await;
    // It stops a debug build, so that the mistake is seen.
    let dropping = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || drop(delivery)));
    assert_eq!(dropping.is_err(), cfg!(debug_assertions));
    let again = next(&mut subscription).await;
    assert_eq!((text(&again), again.delivery_count), ("0".to_owned(), 1));
    again.ack.ack().await.unwrap();
    assert_eq!(read(&mut subscription).await, "1");
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
    settle(held).await;
}
