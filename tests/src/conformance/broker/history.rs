//! Reading what was ever published.

use stoker_worker::ports::broker::{CONTENT_BATCH, CONTENT_EVENT, HistoryEntry, HistoryReader, Mark, Offset, Outgoing};
use tokio::time::timeout;

use super::{Ability, DEADLINE, HOST, Setup, applies, numbers, publish_numbers, raw, text_of, told};

async fn next_entry(reader: &mut HistoryReader) -> HistoryEntry {
    timeout(DEADLINE, reader.recv()).await.expect("no history entry came").expect("history ended")
}

async fn bodies(reader: &mut HistoryReader, count: usize) -> Vec<String> {
    let mut read = Vec::with_capacity(count);
    while read.len() < count {
        read.push(text_of(&next_entry(reader).await.body));
    }
    read
}

/// From the start, from a position, and on as it comes.
pub async fn history_has_everything_in_order(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    publish_numbers(&*broker, 0..10).await;
    for body in numbers(10..20) {
        broker.publish(told(&body)).await.unwrap();
    }
    let mut reader = broker.history(Offset::First).await.unwrap();
    let mut offsets = Vec::new();
    for expected in numbers(0..20) {
        let entry = next_entry(&mut reader).await;
        assert_eq!(text_of(&entry.body), expected);
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
    if !applies(setup, "history_says_what_is_a_batch", Ability::Batches) {
        return;
    }
    let broker = setup.open(HOST).await;
    broker.publish(told("one")).await.unwrap();
    let batch = Outgoing { content_type: CONTENT_BATCH, ..raw("history.batch", "[]") };
    broker.publish(batch).await.unwrap();
    let mut reader = broker.history(Offset::First).await.unwrap();
    for (content_type, key) in [(CONTENT_EVENT, "vm.gone"), (CONTENT_BATCH, "history.batch")] {
        let entry = next_entry(&mut reader).await;
        assert_eq!((entry.content_type.as_str(), entry.routing_key.as_str()), (content_type, key));
    }
}

/// A reader that was away cannot know whether the history is the same: what it read last says so.
pub async fn another_history_is_read_from_its_beginning(setup: &dyn Setup) {
    let broker = setup.open(HOST).await;
    publish_numbers(&*broker, 0..6).await;
    let mut reader = broker.history(Offset::First).await.unwrap();
    next_entry(&mut reader).await;
    let second = next_entry(&mut reader).await.mark();
    let mut same = broker.history(Offset::After(second)).await.unwrap();
    assert_eq!(bodies(&mut same, 4).await, numbers(2..6));
    let another = Mark { hash: !second.hash, ..second };
    let mut other = broker.history(Offset::After(another)).await.unwrap();
    assert_eq!(bodies(&mut other, 6).await, numbers(0..6));
}
