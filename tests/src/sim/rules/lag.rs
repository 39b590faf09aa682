//! What a host has on disk reaches the history soon, unless something that it needs for this very event is away.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use stoker_schemas::{Event, Time};

/// How long an event may take, while nothing is wrong that concerns all of them.
const SOON: Duration = Duration::from_secs(8);

/// When publishing was disturbed for each host, and for which jobs it was refused.
#[derive(Default)]
pub struct Lag {
    disturbed: BTreeMap<String, Vec<Time>>,
    refused: BTreeSet<String>,
}

impl Lag {
    /// Something that all events of this host need went away or came back.
    pub fn disturb(&mut self, host: &str, now: Time) {
        self.disturbed.entry(host.to_owned()).or_default().push(now);
    }

    /// A queue that this job's messages go to took one of them not.
    pub fn refused(&mut self, subject: &str) {
        if !self.was_refused(subject) {
            self.refused.insert(subject.to_owned());
        }
    }

    /// Whether one of its messages was ever refused.
    pub fn was_refused(&self, subject: &str) -> bool {
        self.refused.contains(subject)
    }

    /// Why an event that reached the history then is late, if it is. `skew_s` is how far the host's clock is ahead.
    pub fn late(&self, event: &Event, host: &str, skew_s: i64, arrived: Time) -> Option<String> {
        if self.was_refused(&event.subject) {
            return None;
        }
        let written = Time::from_unix_micros(event.time.unix_micros() - skew_s * 1_000_000);
        let before = |at: &&Time| **at <= arrived;
        let last = self.disturbed.get(host).and_then(|all| all.iter().rfind(before)).copied();
        let since = last.map_or(written, |last| last.max(written));
        let took = arrived.since(since);
        (took > SOON)
            .then(|| format!("{} of {host} reached the history {took:?} after nothing was in its way", event.id()))
    }
}
