//! While the history is away, events come back and jobs are kept, over one channel: a broker that
//! confirms a job between the return of an event and its confirm must not have them mixed up.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use futures_util::future::{join, join_all};
use lapin::{Channel, Connection, ConnectionProperties, options::ExchangeUnbindOptions, types::FieldTable};
use stoker_schemas::{spec::Priority, topology::HISTORY_BINDING};
use stoker_tests::conformance::broker::{DEADLINE, HOST, POOL, job, text_of, told};
use stoker_worker::{
    broker::amqp::AmqpBroker,
    ports::broker::{Broker, BrokerError, Offset},
};
use tokio::{
    sync::Notify,
    time::{Instant, timeout, timeout_at},
};

use crate::rabbit::{Rabbit, on_rabbit};

/// Times that the way into the history is taken away; the broker puts it back within a second or so.
const ROUNDS: usize = 5;
/// Publishers of each kind, one message after another.
const PUBLISHERS: usize = 8;

/// What became of what was published.
#[derive(Default)]
struct Ledger {
    over: AtomicBool,
    kept: Mutex<BTreeSet<String>>,
    returned: AtomicUsize,
    wrong: Mutex<Vec<String>>,
    changed: Notify,
}

async fn publish_jobs(broker: &AmqpBroker, ledger: &Ledger) {
    while !ledger.over.load(SeqCst) {
        if let Err(error) = broker.publish(job(POOL, Priority::Normal, "work")).await {
            ledger.wrong.lock().unwrap().push(format!("{error:?}"));
        }
    }
}

async fn publish_events(broker: &AmqpBroker, ledger: &Ledger, publisher: usize) {
    let mut n = 0;
    while !ledger.over.load(SeqCst) {
        let body = format!("{publisher}.{n}");
        n += 1;
        match broker.publish(told(&body)).await {
            Ok(()) => drop(ledger.kept.lock().unwrap().insert(body)),
            Err(BrokerError::Unroutable(_)) => drop(ledger.returned.fetch_add(1, SeqCst)),
            Err(error) => ledger.wrong.lock().unwrap().push(format!("{body}: {error:?}")),
        }
        ledger.changed.notify_one();
    }
}

async fn unbind(channel: &Channel, place: &Rabbit) {
    let (history, events) = (place.names.history_exchange(), place.names.events_exchange());
    let (options, none) = (ExchangeUnbindOptions::default(), FieldTable::default());
    channel.exchange_unbind(history.into(), events.into(), HISTORY_BINDING.into(), options, none).await.unwrap();
}

/// Takes the way away, waits until events came back and others were kept again; and once more.
async fn interfere(channel: &Channel, place: &Rabbit, ledger: &Ledger) {
    let deadline = Instant::now() + DEADLINE * 2;
    let until = async |reached: &dyn Fn() -> bool| {
        while !reached() {
            timeout_at(deadline, ledger.changed.notified()).await.expect("the history did not come and go");
        }
    };
    for _ in 0..ROUNDS {
        let before = ledger.returned.load(SeqCst);
        unbind(channel, place).await;
        until(&|| ledger.returned.load(SeqCst) > before).await;
        let kept = ledger.kept.lock().unwrap().len();
        until(&|| ledger.kept.lock().unwrap().len() > kept + PUBLISHERS).await;
    }
    ledger.over.store(true, SeqCst);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_back_is_not_taken_for_what_was_kept() {
    on_rabbit("what_came_back_is_not_taken_for_what_was_kept", async |place| {
        let broker = AmqpBroker::connect(place.config(HOST)).await.unwrap();
        let connection = Connection::connect(&place.url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let ledger = Ledger::default();
        let jobs = join_all((0..PUBLISHERS).map(|_| publish_jobs(&broker, &ledger)));
        let events = join_all((0..PUBLISHERS).map(|n| publish_events(&broker, &ledger, n)));
        join(interfere(&channel, place, &ledger), join(jobs, events)).await;

        let wrong = std::mem::take(&mut *ledger.wrong.lock().unwrap());
        assert!(wrong.is_empty(), "{} answers: {:?}", wrong.len(), wrong.first());
        let mut missing = std::mem::take(&mut *ledger.kept.lock().unwrap());
        let mut reader = broker.history(Offset::First).await.unwrap();
        while !missing.is_empty() {
            let entry = timeout(DEADLINE, reader.recv()).await;
            let entry = entry.unwrap_or_else(|_| panic!("called kept and are nowhere: {missing:?}")).unwrap();
            if entry.routing_key.starts_with("job.") {
                continue;
            }
            let body = text_of(&entry.body);
            assert!(missing.remove(&body), "{body} came back, and is in the history");
        }
        connection.close(200, "bye".into()).await.unwrap();
    })
    .await;
}
