//! Whatever died, its event can be written, says why, and is the same whoever tells it.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::fixtures::at;

const QUEUE: &str = "stoker.jobs.default.normal";

fn by_broker(reason: &str) -> Death {
    Death {
        by: GivenUpBy::Broker(reason.to_owned()),
        queue: QUEUE.to_owned(),
        exchange: "stoker.events".to_owned(),
        routing_key: "job.enqueued.default.normal".to_owned(),
        count: 1,
        at: Some(at(7)),
    }
}

fn parked(why: &str) -> Death {
    Death { by: GivenUpBy::Worker(why.to_owned()), ..by_broker("") }
}

fn tell(death: &Death, body: &[u8]) -> (Event, MessageDeadLettered) {
    let letter = Letter { death, message_id: Some("m-1"), content_type: None, body };
    let event = dead_lettered(letter, "/producers/test", at(9));
    let EventData::MessageDeadLettered(data) = event.data.clone() else { unreachable!() };
    (event, data)
}

fn job() -> Vec<u8> {
    let spec = json!({"image": "golden", "pool": "alpha"});
    json!({
        "specversion": "1.0", "id": "x", "source": "/producers/py", "type": "dev.stoker.job.enqueued.v1",
        "subject": "018f6f0e-0a52-7c0e-9d1c-7a4b3b0d5e11", "data": {"spec": spec, "by": "py"}
    })
    .to_string()
    .into_bytes()
}

#[test]
fn each_reason_of_the_broker_has_its_words() {
    use DeadLetterReason as R;
    let large = vec![b'x'; MAX_EVENT_BYTES + 1];
    let cases: [(&str, &[u8], R, &str); 7] = [
        (
            "delivery_limit",
            b"{}",
            R::DeliveryLimit,
            "it was delivered more often than queue stoker.jobs.default.normal allows",
        ),
        ("expired", b"{}", R::Expired, "it expired in queue stoker.jobs.default.normal"),
        ("rejected", b"{}", R::Rejected, "a consumer of queue stoker.jobs.default.normal rejected it"),
        ("rejected", &large, R::TooLarge, "rejected as too large: it has 65537 bytes"),
        ("maxlen", b"{}", R::QueueFull, "queue stoker.jobs.default.normal was full"),
        ("sunspots", b"{}", R::Unknown, "the broker gave it up: sunspots"),
        ("", b"{}", R::Unknown, "the broker gave it up"),
    ];
    for (reason, body, kind, words) in cases {
        let (_, data) = tell(&by_broker(reason), body);
        assert_eq!(data.reason, kind, "{reason}");
        assert!(data.detail.starts_with(words), "{reason}: {}", data.detail);
    }
}

#[test]
fn a_worker_says_itself_why() {
    let (_, data) = tell(&parked("not a\nCloudEvent"), b"not json");
    assert_eq!((data.reason, data.detail.as_str()), (DeadLetterReason::Unreadable, "not a CloudEvent"));
    assert_eq!((data.body.content.as_str(), data.body.truncated, data.size), ("not json", false, 8));
    let (_, large) = tell(&parked("message has 70000 bytes"), &vec![b'x'; 70_000]);
    assert_eq!(large.reason, DeadLetterReason::TooLarge);
}

#[test]
fn the_same_message_is_the_same_letter_and_each_death_an_event() {
    let (first, _) = tell(&parked("no"), b"a");
    let later = Death { at: Some(at(8)), ..parked("no") };
    let (again, _) = tell(&later, b"a");
    assert_eq!(first.subject, again.subject);
    assert_ne!(first.id(), again.id(), "it died twice");
    let letter = Letter { death: &parked("no"), message_id: Some("m-1"), content_type: None, body: b"a" };
    let (told_again, other_time) = (dead_lettered(letter, "/producers/other", at(99)), first.id());
    assert_eq!(told_again.id(), other_time, "told by another, later: the same death");
    for other in [tell(&parked("no"), b"b").0, tell(&Death { queue: "q".to_owned(), ..parked("no") }, b"a").0] {
        assert_ne!(first.subject, other.subject);
    }
    let other_id = Letter { message_id: Some("m-2"), ..letter };
    assert_ne!(first.subject, dead_lettered(other_id, "/producers/test", at(9)).subject);
}

#[test]
fn work_names_its_job_and_what_is_none_says_so() {
    let (_, data) = tell(&by_broker("expired"), &job());
    let work = data.work.unwrap();
    assert_eq!((work.job.to_string().as_str(), work.attempt), ("018f6f0e-0a52-7c0e-9d1c-7a4b3b0d5e11", 1));
    assert_eq!(work.kind, "job.enqueued");
    assert_eq!(tell(&by_broker("expired"), b"{}").1.work, None);
    let stopped = crate::event::sample("job.stop-requested").unwrap().encode().unwrap();
    assert!(super::work(&stopped, at(0)).unwrap_err().contains("is not work"));
    assert!(super::work(b"", at(0)).unwrap_err().contains("not a CloudEvent"));
}

#[test]
fn only_the_beginning_of_a_long_body_is_kept() {
    let long = "é".repeat(MAX_LETTER_BODY_BYTES);
    let (_, data) = tell(&by_broker("rejected"), &[b"x", long.as_bytes()].concat());
    assert_eq!((data.body.encoding, data.body.truncated), (BodyEncoding::Text, true));
    assert_eq!(data.body.content.len(), MAX_LETTER_BODY_BYTES - 1, "cut between characters");
    let raw = vec![0xff; MAX_LETTER_BODY_BYTES];
    let (_, data) = tell(&by_broker("rejected"), &raw);
    assert_eq!((data.body.encoding, data.body.truncated), (BodyEncoding::Base64, false));
    assert_eq!(data.body.bytes(), Some(raw));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// What could not become an event would be neither told nor acknowledged.
    #[test]
    fn every_message_becomes_an_event(
        byte in any::<u8>(), spread in any::<bool>(), size in 0_usize..100_000,
        text in ".{0,2000}", names in ".{0,400}",
    ) {
        let mut body = vec![byte; size];
        if spread {
            body.iter_mut().zip(0_u8..=255).for_each(|(b, n)| *b = n);
        }
        let death = Death { queue: names.clone(), exchange: names.clone(), routing_key: names.clone(), ..parked(&text) };
        let letter = Letter { death: &death, message_id: Some(&names), content_type: Some(&names), body: &body };
        let event = dead_lettered(letter, "/producers/test", at(0));
        let bytes = event.encode().unwrap();
        prop_assert_eq!(Event::decode(&bytes, at(1)).unwrap(), event);
    }
}

#[test]
fn a_body_is_too_large_beyond_the_limit_and_not_at_it() {
    let reason = |size| tell(&by_broker("rejected"), &vec![b'x'; size]).1.reason;
    assert_eq!(reason(MAX_EVENT_BYTES), DeadLetterReason::Rejected);
    assert_eq!(reason(MAX_EVENT_BYTES + 1), DeadLetterReason::TooLarge);
}

#[test]
fn names_are_kept_as_they_came_within_their_bound_and_without_control_characters() {
    let mut death = by_broker("expired");
    death.exchange = "stoker\u{1b}events".to_owned();
    death.routing_key = "k".repeat(MAX_LETTER_NAME_BYTES + 1);
    let (_, told) = tell(&death, b"{}");
    assert_eq!((told.queue.as_str(), told.exchange.as_str()), (QUEUE, "stoker events"));
    assert!(told.routing_key.len() <= MAX_LETTER_NAME_BYTES && told.routing_key.starts_with("kkkk"));
    assert_eq!(told.message_id.as_deref(), Some("m-1"));
}

#[test]
fn a_text_that_is_cut_within_a_character_is_text_and_what_never_was_one_is_not() {
    let kept = |body: Vec<u8>| tell(&by_broker("expired"), &body).1.body;
    // The limit falls into the last character.
    let cut = kept([vec![b'x'; MAX_LETTER_BODY_BYTES - 1], "éé".as_bytes().to_vec()].concat());
    assert_eq!((cut.encoding, cut.content.len()), (BodyEncoding::Text, MAX_LETTER_BODY_BYTES - 1));
    // It ends within a character, but nothing was cut.
    assert_eq!(kept(b"caf\xc3".to_vec()).encoding, BodyEncoding::Base64);
    // It was cut, but has never been text.
    assert_eq!(kept(vec![0xff; MAX_LETTER_BODY_BYTES + 9]).encoding, BodyEncoding::Base64);
}
