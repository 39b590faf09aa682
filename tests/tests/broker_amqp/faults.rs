//! What only a network broker can do wrong.

use std::time::{Duration, Instant};

use stoker_schemas::{letter::GivenUpBy, spec::Priority};
use stoker_tests::conformance::broker::{
    DEADLINE, HOST, POOL, QUIET, command_to, deferred, job, jobs, next, quiet, read, retrying, run_case, settle,
    subscribe, take, text, text_of, told,
};
use stoker_worker::{
    broker::amqp::{AmqpBroker, AmqpConfig},
    counts::CHANNELS_STARVED,
    ports::broker::{Broker, BrokerError, BrokerStatus, NotDeferred, Offset, Source},
};
use tokio::time::timeout;

use crate::{
    proxy::Proxy,
    rabbit::{Rabbit, on_rabbit},
};

async fn through(place: &Rabbit, proxy: &Proxy) -> AmqpBroker {
    AmqpBroker::connect(AmqpConfig { url: proxy.url.clone(), ..place.config(HOST) }).await.unwrap()
}

async fn publish(broker: &AmqpBroker, body: &str) {
    broker.publish(job(POOL, Priority::Normal, body)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_makes_acks_stale_and_redelivers() {
    on_rabbit("a_cut_makes_acks_stale_and_redelivers", async |place| {
        let proxy = Proxy::start(&place.url).await;
        let broker = through(place, &proxy).await;
        let mut subscription = subscribe(&broker, jobs(POOL, Priority::Normal), 5).await;
        publish(&broker, "held").await;
        let held = next(&mut subscription).await;
        assert_eq!(held.delivery_count, 0);
        proxy.cut();
        let again = next(&mut subscription).await;
        assert_eq!((text(&again), again.delivery_count), ("held".to_owned(), 1));
        assert!(matches!(held.ack.ack().await, Err(BrokerError::Stale)));
        again.ack.ack().await.unwrap();
        quiet(&mut subscription).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_goes_on_where_it_was_cut() {
    on_rabbit("history_goes_on_where_it_was_cut", async |place| {
        let proxy = Proxy::start(&place.url).await;
        let broker = through(place, &proxy).await;
        let mut reader = broker.history(Offset::First).await.unwrap();
        for n in 0_u64..100 {
            publish(&broker, &n.to_string()).await;
            if n % 20 == 10 {
                proxy.cut();
            }
        }
        let mut last = None;
        let mut seen = Vec::new();
        // A publish that was unconfirmed at a cut may be there twice; its number comes again.
        while seen.last() != Some(&99) {
            let entry = timeout(DEADLINE, reader.recv()).await.unwrap().unwrap();
            assert!(last < Some(entry.offset), "{last:?} then {}", entry.offset);
            assert_eq!(entry.offset, last.map_or(0, |o| o + 1), "no entry is skipped");
            last = Some(entry.offset);
            seen.push(text_of(&entry.body).parse::<u64>().unwrap());
        }
        seen.dedup();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_broker_is_noticed_and_left() {
    on_rabbit("a_frozen_broker_is_noticed_and_left", async |place| {
        let proxy = Proxy::start(&place.url).await;
        let broker = through(place, &proxy).await;
        let mut status = broker.status();
        proxy.freeze();
        let answer = broker.publish(job(POOL, Priority::Normal, "lost?")).await;
        assert!(matches!(answer, Err(BrokerError::Timeout(_))), "{answer:?}");
        let down = status.wait_for(|s| matches!(s, BrokerStatus::Down(_)));
        timeout(Duration::from_secs(40), down).await.expect("frozen connection was not noticed").unwrap();
        proxy.thaw();
        let up = status.wait_for(|s| *s == BrokerStatus::Connected);
        timeout(Duration::from_secs(40), up).await.expect("did not come back").unwrap();
        publish(&broker, "back").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_ends_in_the_dead_queue() {
    on_rabbit("poison_ends_in_the_dead_queue", async |place| {
        let config = AmqpConfig { delivery_limit: 3, ..place.config(HOST) };
        let broker = AmqpBroker::connect(config).await.unwrap();
        let mut subscription = subscribe(&broker, jobs(POOL, Priority::Normal), 1).await;
        publish(&broker, "poison").await;
        for count in 0..=3 {
            let delivery = next(&mut subscription).await;
            assert_eq!(delivery.delivery_count, count);
            delivery.ack.requeue().await.unwrap();
        }
        quiet(&mut subscription).await;
        let mut dead = subscribe(&broker, Source::Dead, 1).await;
        let delivery = next(&mut dead).await;
        assert_eq!(text(&delivery), "poison");
        assert_eq!(delivery.routing_key, format!("job.enqueued.{POOL}.normal"));
        let queue = place.names.jobs_queue(&POOL.parse().unwrap(), Priority::Normal);
        let death = delivery.about.death.unwrap();
        assert_eq!((death.by, death.queue), (GivenUpBy::Broker("delivery_limit".to_owned()), queue));
        assert_eq!((death.exchange, death.count), (place.names.events_exchange(), 1));
        assert!(death.at.is_some() && delivery.about.message_id.is_some());
        delivery.ack.ack().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses() {
    on_rabbit("a_full_queue_refuses", async |place| {
        let config = AmqpConfig { jobs_max_length: 5, ..place.config(HOST) };
        let broker = AmqpBroker::connect(config).await.unwrap();
        let refused = async {
            // The limit is soft by a message or two.
            loop {
                if let Err(error) = broker.publish(job(POOL, Priority::Normal, "x")).await {
                    return error;
                }
            }
        };
        let error = timeout(DEADLINE, refused).await.expect("the queue never became full");
        assert!(matches!(error, BrokerError::Refused(_)), "{error:?}");
        publish_to_other_pool(&broker).await;
    })
    .await;
}

/// What is refused stays with its owner, who may try again or give it back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_deferral_leaves_the_delivery_with_its_owner() {
    on_rabbit("a_refused_deferral_leaves_the_delivery_with_its_owner", async |place| {
        let config = AmqpConfig { jobs_max_length: 5, ..place.config(HOST) };
        let broker = AmqpBroker::connect(config).await.unwrap();
        let mut subscription = subscribe(&broker, jobs(POOL, Priority::Normal), 1).await;
        publish(&broker, "waits").await;
        let delivery = next(&mut subscription).await;
        let delay = Duration::from_secs(250);
        let filled = async { while broker.publish(retrying(POOL, Priority::Normal, delay, "x")).await.is_ok() {} };
        timeout(DEADLINE, filled).await.expect("the delay queue never became full");
        let NotDeferred { ack, error } = delivery.ack.defer(delay).await.unwrap_err();
        assert!(matches!(error, BrokerError::Refused(_)), "{error:?}");
        // Another delay has another queue.
        ack.defer(Duration::from_millis(100)).await.unwrap();
        let again = next(&mut subscription).await;
        assert_eq!((text(&again).as_str(), again.deferrals), ("waits", 1));
        again.ack.ack().await.unwrap();
    })
    .await;
}

/// A delivery whose connection is gone comes again by itself: a copy would be one too many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_delivery_is_not_copied() {
    on_rabbit("a_stale_delivery_is_not_copied", async |place| {
        let proxy = Proxy::start(&place.url).await;
        let broker = through(place, &proxy).await;
        let mut subscription = subscribe(&broker, jobs(POOL, Priority::Normal), 5).await;
        publish(&broker, "held").await;
        let held = next(&mut subscription).await;
        proxy.cut();
        let again = next(&mut subscription).await;
        let refused = held.ack.defer(Duration::from_millis(100)).await.unwrap_err();
        assert!(matches!(refused.error, BrokerError::Stale), "{refused:?}");
        assert!(matches!(refused.ack.requeue().await, Err(BrokerError::Stale)));
        again.ack.ack().await.unwrap();
        quiet(&mut subscription).await;
    })
    .await;
}

/// A worker of an earlier release put the job back with an event that was the message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deferrals_of_earlier_releases_still_arrive() {
    on_rabbit("deferrals_of_earlier_releases_still_arrive", async |place| {
        let broker = AmqpBroker::connect(place.config(HOST)).await.unwrap();
        let mut subscription = subscribe(&broker, jobs(POOL, Priority::Normal), 1).await;
        broker.publish(deferred(POOL, Priority::Normal, Duration::from_millis(100), "old")).await.unwrap();
        let old = next(&mut subscription).await;
        assert_eq!(text(&old), "old");
        old.ack.ack().await.unwrap();
    })
    .await;
}

async fn publish_to_other_pool(broker: &AmqpBroker) {
    let other = job(stoker_tests::conformance::broker::OTHER_POOL, Priority::Normal, "fits");
    broker.publish(other).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_to_a_host_that_never_was_is_unroutable() {
    on_rabbit("a_command_to_a_host_that_never_was_is_unroutable", async |place| {
        let broker = AmqpBroker::connect(place.config(HOST)).await.unwrap();
        let answer = broker.publish(command_to("nobody", "hello?")).await;
        assert!(matches!(answer, Err(BrokerError::Unroutable(_))), "{answer:?}");
        // The refused look-up cost a channel, not the connection.
        publish(&broker, "fine").await;
        assert_eq!(*broker.status().borrow(), BrokerStatus::Connected);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_subscription_gives_back_what_nobody_took() {
    on_rabbit("a_dropped_subscription_gives_back_what_nobody_took", async |place| {
        let broker = AmqpBroker::connect(place.config(HOST)).await.unwrap();
        for body in ["0", "1", "2"] {
            publish(&broker, body).await;
        }
        let mut subscription = subscribe(&broker, jobs(POOL, Priority::Normal), 3).await;
        let held = next(&mut subscription).await;
        drop(subscription);
        let mut second = subscribe(&broker, jobs(POOL, Priority::Normal), 3).await;
        held.ack.ack().await.unwrap();
        let again = take(&mut second, 2).await;
        let mut rest: Vec<_> = again.iter().map(text).collect();
        rest.sort();
        assert_eq!(rest, ["1", "2"]);
        settle(again).await;
        quiet(&mut second).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_settings_do_not_stop_a_worker() {
    on_rabbit("other_settings_do_not_stop_a_worker", async |place| {
        let old = AmqpBroker::connect(place.config(HOST)).await.unwrap();
        let changed =
            AmqpConfig { delivery_limit: 7, history_max_age: "1D".into(), jobs_max_length: 9, ..place.config(HOST) };
        let new = AmqpBroker::connect(changed).await.unwrap();
        publish(&new, "works").await;
        let mut subscription = subscribe(&old, jobs(POOL, Priority::Normal), 1).await;
        assert_eq!(read(&mut subscription).await, "works");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_queue_is_declared_again() {
    on_rabbit("a_deleted_queue_is_declared_again", async |place| {
        let broker = AmqpBroker::connect(place.config(HOST)).await.unwrap();
        let mut subscription = subscribe(&broker, jobs(POOL, Priority::Normal), 1).await;
        publish(&broker, "before").await;
        next(&mut subscription).await.ack.ack().await.unwrap();
        place.delete(&place.names.jobs_queue(&POOL.parse().unwrap(), Priority::Normal)).await;
        // The consumer is cancelled by the broker, declares the queue and starts again.
        let arrived = async {
            loop {
                publish(&broker, "after").await;
                if let Ok(Some(delivery)) = timeout(QUIET, subscription.deliveries.recv()).await {
                    let said = text(&delivery);
                    delivery.ack.ack().await.unwrap();
                    return said;
                }
            }
        };
        assert_eq!(timeout(DEADLINE, arrived).await.expect("never consumed again"), "after");
    })
    .await;
}

/// Nobody consumes it, so nobody is told; and what is published for it is confirmed, because readers get it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_delay_queue_is_declared_again() {
    on_rabbit("a_deleted_delay_queue_is_declared_again", async |place| {
        let broker = AmqpBroker::connect(AmqpConfig { patience: QUIET, ..place.config(HOST) }).await.unwrap();
        let mut subscription = subscribe(&broker, jobs(POOL, Priority::Normal), 1).await;
        place.delete(&place.names.delay_queue(100)).await;
        let arrived = async {
            loop {
                let delay = Duration::from_millis(100);
                broker.publish(deferred(POOL, Priority::Normal, delay, "later")).await.unwrap();
                if let Ok(Some(delivery)) = timeout(QUIET, subscription.deliveries.recv()).await {
                    let said = text(&delivery);
                    delivery.ack.ack().await.unwrap();
                    return said;
                }
            }
        };
        assert_eq!(timeout(DEADLINE, arrived).await.expect("never declared again"), "later");
    })
    .await;
}

/// The broker never heard of the consumer, or forgot it: nobody says so, and no message comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_gets_nothing_while_messages_wait_is_renewed() {
    on_rabbit("a_consumer_that_gets_nothing_while_messages_wait_is_renewed", async |place| {
        let proxy = Proxy::start(&place.url).await;
        let config = AmqpConfig { url: proxy.url.clone(), patience: QUIET, ..place.config(HOST) };
        let broker = AmqpBroker::connect(config).await.unwrap();
        let renewed = CHANNELS_STARVED.total();
        proxy.feign_consumers(1);
        let mut subscription = subscribe(&broker, jobs(POOL, Priority::Normal), 5).await;
        publish(&broker, "waits").await;
        assert_eq!(read(&mut subscription).await, "waits");
        assert_eq!((proxy.left_to_feign(), CHANNELS_STARVED.total() > renewed), (0, true));
        quiet(&mut subscription).await;
    })
    .await;
}

/// Nothing tells a reader that a stream was deleted and made anew, and its position is not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_made_anew_is_read_from_its_beginning() {
    on_rabbit("a_history_made_anew_is_read_from_its_beginning", async |place| {
        let broker = AmqpBroker::connect(place.config(HOST)).await.unwrap();
        let mut reader = broker.history(Offset::First).await.unwrap();
        for n in 0..5 {
            publish(&broker, &n.to_string()).await;
            timeout(DEADLINE, reader.recv()).await.unwrap().unwrap();
        }
        place.delete(&place.names.history_stream()).await;
        // Work does not need it; the first event that comes back has it declared again.
        publish(&broker, "work").await;
        let told = async {
            while let Err(error) = broker.publish(told("after")).await {
                assert!(matches!(error, BrokerError::Unroutable(_)), "{error:?}");
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, told).await.expect("the history was not declared again");
        let entry = timeout(DEADLINE, reader.recv()).await.expect("the reader waits in silence").unwrap();
        assert_eq!((text_of(&entry.body).as_str(), entry.offset), ("after", 0));
    })
    .await;
}

/// A reader that starts later meets a history with as many entries as it has read, and more, but other ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_history_is_noticed_after_a_restart() {
    on_rabbit("another_history_is_noticed_after_a_restart", async |place| {
        let mut mark = None;
        for history in ["old", "new"] {
            let broker = AmqpBroker::connect(place.config(HOST)).await.unwrap();
            for n in 0..5 {
                broker.publish(told(&format!("{history} {n}"))).await.unwrap();
            }
            let mut reader = broker.history(mark.map_or(Offset::First, Offset::After)).await.unwrap();
            for n in 0..3 {
                let entry = timeout(DEADLINE, reader.recv()).await.expect("it waits in silence").unwrap();
                assert_eq!(text_of(&entry.body), format!("{history} {n}"));
                mark = Some(entry.mark());
            }
            // The same history goes on where it was read to.
            let mut reader = broker.history(mark.map_or(Offset::First, Offset::After)).await.unwrap();
            let entry = timeout(DEADLINE, reader.recv()).await.expect("it waits in silence").unwrap();
            assert_eq!(text_of(&entry.body), format!("{history} 3"));
            broker.close().await;
            place.delete(&place.names.history_stream()).await;
        }
    })
    .await;
}

#[tokio::test]
async fn no_broker_is_an_answer_without_a_password() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = AmqpConfig {
        connect_deadline: Duration::from_millis(500),
        ..AmqpConfig::new(format!("amqp://user:s3cret@{unused}/%2f"))
    };
    let started = Instant::now();
    let error = AmqpBroker::connect(config).await.err().expect("nobody listens there");
    assert!(started.elapsed() < DEADLINE);
    assert!(matches!(error, BrokerError::Down(_)), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("s3cret"));
}

/// The list as a function, as another suite would run it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_case_without_a_broker_is_skipped() {
    run_case(None, |_| unreachable!("no setup, no case")).await;
}
