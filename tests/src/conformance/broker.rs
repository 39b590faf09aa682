//! What every broker must do, as cases that any implementation of `Broker` can be put through.
//!
//! An adapter's test file says how to open its broker ([`Setup`]) and gets one test per case:
//!
//! ```text
//! stoker_tests::broker_conformance!(my_setup); // async fn(&str) -> Option<Box<dyn Setup>>
//! ```

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a failed expectation is a failed test")]

mod credit;
mod delivery;
mod events;
mod history;
mod routing;

use std::{
    panic::{AssertUnwindSafe, resume_unwind},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{FutureExt, future::BoxFuture};
use stoker_schemas::spec::Priority;
use stoker_worker::ports::broker::{Broker, Delivery, Source, Subscription};
use tokio::time::timeout;

pub use self::{credit::*, delivery::*, events::*, history::*, routing::*};
use crate::skipped;

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
    /// What it can by design. A case about nothing else says SKIPPED where it cannot.
    fn can(&self, _ability: Ability) -> bool {
        true
    }
    /// Writes down, as a worker does before it acknowledges, that a delivery's job waits no more.
    /// Only a broker whose queues are the worker's own log has to be told.
    async fn written_down(&self, _delivery: &Delivery) {}
    /// Removes what the case left behind.
    async fn clean(&self);
}

/// What not every kind of broker can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ability {
    /// Several hosts at once.
    SeveralHosts,
    /// Routing by key alone, whatever the body says.
    RoutingByKey,
    /// Arrays of events.
    Batches,
    /// Dead letters wait in a queue for a reader; else they are in the history at once.
    DeadQueue,
    /// Delivery counts outlive the process.
    CountsKept,
}

/// False, and said so, where a case is about something that this broker cannot do.
fn applies(setup: &dyn Setup, case: &str, ability: Ability) -> bool {
    let can = setup.can(ability);
    if !can {
        skipped(case, &format!("not of this broker, by design: {ability:?}"));
    }
    can
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
    a_dropped_handle_gives_its_credit_back
    a_lowered_credit_waits_for_acknowledgements
    a_delay_is_kept
    a_delayed_message_keeps_its_lane_and_pool
    a_deferred_message_comes_again_after_its_delay
    lanes_and_pools_are_separate
    history_has_everything_in_order
    history_survives_reopening
    history_says_what_is_a_batch
    another_history_is_read_from_its_beginning
    a_parked_message_is_a_dead_letter_with_its_reason
    a_rejected_message_is_a_dead_letter
    a_dead_job_fills_no_queue
    commands_reach_their_host
    many_pipelined_publishes_all_arrive
    a_fresh_pool_keeps_its_jobs
    work_without_a_queue_is_refused
    depth_counts_what_waits
    a_closed_broker_says_so
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

/// What the next delivery says, which is acknowledged.
pub async fn read(subscription: &mut Subscription) -> String {
    let delivery = next(subscription).await;
    let said = text(&delivery);
    delivery.ack.ack().await.unwrap();
    said
}

/// Acknowledges them all.
pub async fn settle(held: Vec<Delivery>) {
    for delivery in held {
        delivery.ack.ack().await.unwrap();
    }
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

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

async fn publish_numbers(broker: &dyn Broker, range: std::ops::Range<usize>) {
    for body in numbers(range) {
        broker.publish(job(POOL, Priority::Normal, body)).await.unwrap();
    }
}
