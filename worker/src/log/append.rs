//! What callers append and what they get back.

use bytes::Bytes;
use uuid::Uuid;

use super::error::LogError;
use super::index::IndexChange;
use super::options::{MAX_CALL_BYTES, MAX_CALL_EVENTS, MAX_EVENT_BYTES};

/// What the caller knows about the stream it appends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Nothing: append whatever is there.
    Any,
    /// The stream's last version; 0 means that the stream must be new.
    Version(u64),
}

/// Events for the end of one stream.
#[derive(Debug, Clone)]
pub struct Append {
    /// The stream.
    pub stream: Uuid,
    /// Refuse unless the stream is where the caller thinks it is.
    pub expected: Expected,
    /// Payloads, in order. May be empty to change only the index.
    pub events: Vec<Bytes>,
    /// What happens to the stream's entry in the index of open streams.
    pub index: IndexChange,
}

/// Where the events of one [`Append`] are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The stream.
    pub stream: Uuid,
    /// Position of the last event; of the stream's last event if none was appended.
    pub last_position: u64,
    /// Version of the stream now.
    pub version: u64,
    /// How many events were appended; they have the consecutive positions up to `last_position`.
    pub events: u64,
}

/// Refuses what no commit can hold, before it takes a place in the queue.
pub(super) fn check_size(appends: &[Append]) -> Result<(), LogError> {
    let payloads = || appends.iter().flat_map(|append| &append.events);
    if let Some(event) = payloads().find(|event| event.len() > MAX_EVENT_BYTES) {
        return Err(LogError::EventTooLarge { bytes: event.len() });
    }
    let (events, bytes) = (payloads().count(), payloads().map(Bytes::len).sum());
    if events > MAX_CALL_EVENTS || appends.len() > MAX_CALL_EVENTS || bytes > MAX_CALL_BYTES {
        return Err(LogError::CallTooLarge { events: events.max(appends.len()), bytes });
    }
    Ok(())
}
