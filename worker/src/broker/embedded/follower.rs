//! Follows the log and routes every new event, whoever wrote it.

use std::sync::Arc;

use serde::Deserialize;
use stoker_schemas::event::{Event, TYPE_PREFIX};

use super::{Inner, PAGE};

/// Kinds that somebody waits for; all others are history only and are not even decoded.
const ROUTED: [&str; 8] = [
    "job.enqueued",
    "job.retry-scheduled",
    "job.cancel-requested",
    "job.stop-requested",
    "job.snooze-requested",
    "attempt.superseded",
    "host.drain-requested",
    "pool.configured",
];

#[derive(Deserialize)]
struct TypeOnly<'a> {
    #[serde(borrow)]
    r#type: std::borrow::Cow<'a, str>,
}

/// An event's kind, without reading the rest.
pub(crate) fn kind_of(payload: &[u8]) -> Option<String> {
    let peek: TypeOnly<'_> = serde_json::from_slice(payload).ok()?;
    let (kind, _version) = peek.r#type.strip_prefix(TYPE_PREFIX)?.rsplit_once(".v")?;
    Some(kind.to_owned())
}

/// An event that puts a job into a queue.
pub(super) fn is_work(payload: &[u8]) -> bool {
    kind_of(payload).is_some_and(|kind| ROUTED[..2].contains(&kind.as_str()))
}

/// Routes everything after `head`, for ever.
pub(super) fn start(inner: Arc<Inner>, head: u64) {
    tokio::spawn(async move {
        let mut next = head + 1;
        let mut durable = inner.log.head();
        loop {
            tokio::select! {
                biased;
                () = inner.closed.cancelled() => return,
                changed = durable.wait_for(|head| *head >= next) => if changed.is_err() { return },
            }
            match inner.log.scan_past(next, PAGE) {
                Ok(scanned) => {
                    next = scanned.next;
                    for record in scanned.records {
                        route(&inner, &record.payload, record.position);
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the embedded broker cannot read the log and ends");
                    let _ = inner.status.send(crate::ports::broker::BrokerStatus::Down(error.to_string()));
                    return;
                }
            }
        }
    });
}

fn route(inner: &Inner, payload: &[u8], position: u64) {
    if !kind_of(payload).is_some_and(|kind| ROUTED.contains(&kind.as_str())) {
        return;
    }
    match Event::decode(payload, inner.clock.now()) {
        Ok(event) => inner.route(&event, position),
        Err(error) => tracing::error!(position, %error, "event in the log cannot be read, not routed"),
    }
}

#[cfg(test)]
mod tests {
    use stoker_schemas::event::samples;
    use stoker_schemas::topology::is_history_only;

    use super::*;

    /// Somebody waits for what is not history only; a kind that is forgotten here reaches nobody.
    #[test]
    fn whatever_is_not_history_only_is_routed() {
        for event in samples() {
            let kind = event.data.kind();
            assert_eq!(ROUTED.contains(&kind), !is_history_only(&event), "{kind}");
        }
    }
}
