//! Dead letters: a message that no worker could work on, as the event that tells of it.
//!
//! What the broker says of its death is put in words here, the body is bounded, and its identity is
//! derived, so that whoever tells of the same death tells the same event.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::event::{
    BodyEncoding, DeadLetterReason, Event, EventData, JOB_LEVEL, LetterBody, LetterWork, MessageDeadLettered,
};
use crate::id::{JobId, LetterId};
use crate::limits::{MAX_EVENT_BYTES, MAX_LETTER_BODY_BYTES, MAX_LETTER_NAME_BYTES, MAX_TEXT_BYTES, clip};
use crate::spec::JobSpec;
use crate::time::Time;

/// JSON of a kept body, bytes: what an event leaves beside its other fields.
const MAX_ENCODED_BYTES: usize = 56 * 1024;

/// A dead message, as the broker hands it over.
#[derive(Debug, Clone, Copy)]
pub struct Letter<'a> {
    /// How it died.
    pub death: &'a Death,
    /// The message's own id.
    pub message_id: Option<&'a str>,
    /// Media type, as its publisher said.
    pub content_type: Option<&'a str>,
    /// The payload.
    pub body: &'a [u8],
}

/// How a message died.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    /// Who gave it up, and in what words.
    pub by: GivenUpBy,
    /// Queue that it waited in; empty where that is not known.
    pub queue: String,
    /// Exchange that it was published to.
    pub exchange: String,
    /// Routing key that it was published with.
    pub routing_key: String,
    /// How often, by the broker's count.
    pub count: u64,
    /// When; `None` where nobody noted it.
    pub at: Option<Time>,
}

/// Who gave a message up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GivenUpBy {
    /// A worker, in its own words.
    Worker(String),
    /// The broker, by the reason that it writes into the message (`x-death`).
    Broker(String),
    /// It came without a word: published straight into the queue of dead letters.
    Publisher,
}

/// Work, as a message asks for it.
#[derive(Debug, Clone)]
pub struct Work {
    /// The event that the message is.
    pub event: Event,
    /// The job.
    pub job: JobId,
    /// Number of the attempt.
    pub attempt: u32,
    /// What to boot.
    pub spec: JobSpec,
    /// When the job was first enqueued.
    pub enqueued_at: Time,
}

/// Reads a body as work. What it is instead, where it is none.
///
/// # Errors
/// Says in words why a worker cannot work on it.
pub fn work(body: &[u8], received: Time) -> Result<Work, String> {
    let event = Event::decode(body, received).map_err(|e| e.to_string())?;
    let job = event.job().ok_or_else(|| format!("{} is not about a job", event.data.kind()))?;
    let (attempt, spec, enqueued_at) = match &event.data {
        EventData::JobEnqueued(e) => (1, e.spec.clone(), event.time),
        EventData::JobRetryScheduled(e) => (e.attempt, e.spec.clone(), e.enqueued_at),
        EventData::JobDeferred(e) => (e.attempt, e.spec.clone(), e.enqueued_at),
        other => return Err(format!("{} is not work: a job queue takes job.enqueued", other.kind())),
    };
    Ok(Work { event, job, attempt, spec, enqueued_at })
}

/// The event that tells of a dead message. `now` stands in for a death that nobody noted the time of.
pub fn dead_lettered(letter: Letter<'_>, source: &str, now: Time) -> Event {
    let Letter { death, message_id, content_type, body } = letter;
    let (reason, detail) = words(death, body.len());
    let work = work(body, now).ok().map(|work| LetterWork {
        job: work.job,
        attempt: work.attempt,
        kind: work.event.data.kind().to_owned(),
    });
    let data = MessageDeadLettered {
        reason,
        detail: clip(&plain(&detail), MAX_TEXT_BYTES),
        died_at: death.at.unwrap_or(now),
        queue: name(&death.queue),
        exchange: name(&death.exchange),
        routing_key: name(&death.routing_key),
        count: death.count.max(1),
        message_id: message_id.map(name),
        content_type: content_type.map(name),
        size: body.len() as u64,
        body: kept(body),
        work,
    };
    let id = LetterId::derive(&death.queue, message_id.unwrap_or_default(), body);
    Event {
        source: source.to_owned(),
        subject: id.to_string(),
        time: now,
        epoch: JOB_LEVEL,
        traceparent: None,
        data: EventData::MessageDeadLettered(data),
    }
}

/// The kind of reason, and the reason in words.
fn words(death: &Death, size: usize) -> (DeadLetterReason, String) {
    let Death { by, queue, .. } = death;
    let too_large = size > MAX_EVENT_BYTES;
    let limits = || format!("it has {size} bytes, and an event has at most {MAX_EVENT_BYTES}");
    match by {
        GivenUpBy::Worker(why) if too_large => (DeadLetterReason::TooLarge, why.clone()),
        GivenUpBy::Worker(why) => (DeadLetterReason::Unreadable, why.clone()),
        GivenUpBy::Publisher => {
            (DeadLetterReason::Unknown, "it was published straight into the queue of dead letters".to_owned())
        }
        GivenUpBy::Broker(reason) => match reason.as_str() {
            "delivery_limit" => {
                let detail = format!("it was delivered more often than queue {queue} allows, and never acknowledged");
                (DeadLetterReason::DeliveryLimit, detail)
            }
            "expired" => (DeadLetterReason::Expired, format!("it expired in queue {queue} before a worker took it")),
            "rejected" if too_large => (DeadLetterReason::TooLarge, format!("rejected as too large: {}", limits())),
            "rejected" => (DeadLetterReason::Rejected, format!("a consumer of queue {queue} rejected it")),
            "maxlen" => (DeadLetterReason::QueueFull, format!("queue {queue} was full and let it go")),
            other => (DeadLetterReason::Unknown, format!("the broker gave it up: {other}")),
        },
    }
}

/// The body as far as an event holds it.
fn kept(body: &[u8]) -> LetterBody {
    let sha256 = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
    let truncated = body.len() > MAX_LETTER_BODY_BYTES;
    let beginning = &body[..body.len().min(MAX_LETTER_BODY_BYTES)];
    let text = match std::str::from_utf8(beginning) {
        Ok(text) => Some(text),
        // Only cut within a character.
        Err(e) if truncated && e.error_len().is_none() => std::str::from_utf8(&beginning[..e.valid_up_to()]).ok(),
        Err(_) => None,
    };
    // Control characters take six bytes each.
    let fits = |text: &&str| serde_json::to_string(text).is_ok_and(|json| json.len() <= MAX_ENCODED_BYTES);
    let (encoding, content) = match text.filter(fits) {
        Some(text) => (BodyEncoding::Text, text.to_owned()),
        None => (BodyEncoding::Base64, STANDARD.encode(beginning)),
    };
    LetterBody { encoding, content, truncated, sha256 }
}

/// A name from outside: no control characters, no end without end.
fn name(text: &str) -> String {
    clip(&plain(text), MAX_LETTER_NAME_BYTES)
}

fn plain(text: &str) -> String {
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests;
