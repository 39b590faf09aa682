//! Dead letters in rows: what died, how often and why, and what was done about it.
//!
//! A row is a join of its events, like everything else here: the latest death and the latest word about it
//! count. A letter is open again when it died after the death that the word was about.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stoker_schemas::event::{DeadLetterReason, LetterBody, LetterWork, MessageDeadLettered};
use stoker_schemas::id::LetterId;
use stoker_schemas::{Event, EventData, Time};

/// Letters kept of those that are open, and of those that are done with; the oldest go first. Their events stay in
/// the history.
pub const MAX_LETTERS: u64 = 10_000;

/// Where a dead letter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LetterState {
    /// It waits for a person.
    Open,
    /// It was sent on its way again.
    Redriven,
    /// It needs nothing any more, somebody said.
    Dismissed,
    /// The job that it was about went on without it.
    Overtaken,
}

impl LetterState {
    /// Its name, as in data.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Redriven => "redriven",
            Self::Dismissed => "dismissed",
            Self::Overtaken => "overtaken",
        }
    }
}

/// A word about a letter; ordered by the death that it was about, then by its time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
pub struct LetterWord {
    /// The latest death that the asker had seen.
    pub seen: Time,
    /// When it was said.
    pub at: Time,
    /// What was done: `redriven` or `dismissed`.
    pub state: LetterState,
    /// Who asked.
    pub by: String,
    /// Why, in their words.
    pub reason: String,
}

/// One dead letter, without its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct LetterSummary {
    /// Which.
    pub id: LetterId,
    /// Where it stands.
    pub state: LetterState,
    /// Kind of reason.
    pub reason: DeadLetterReason,
    /// The reason in words.
    pub detail: String,
    /// How often it died; each time is an event.
    pub deaths: u32,
    /// When it first died, as far as is known.
    pub first_died_at: Time,
    /// When it last died.
    pub died_at: Time,
    /// Queue that it waited in; empty where that is not known.
    pub queue: String,
    /// Exchange that it was published to; empty for the default one, or where that is not known.
    pub exchange: String,
    /// Routing key that it was published with.
    pub routing_key: String,
    /// How often it died there of that reason, by the broker's count.
    pub count: u64,
    /// The message's own id.
    pub message_id: Option<String>,
    /// Media type, as its publisher said.
    pub content_type: Option<String>,
    /// Length of the whole body, bytes.
    pub size: u64,
    /// SHA-256 of the whole body, in hexadecimal.
    pub sha256: String,
    /// Only the beginning of the body is kept.
    pub truncated: bool,
    /// The work that it asks for, where it can be read.
    pub work: Option<LetterWork>,
    /// The latest word about it.
    pub word: Option<LetterWord>,
}

/// A dead letter with its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct WholeLetter {
    /// What is known of it.
    #[serde(flatten)]
    pub summary: LetterSummary,
    /// Its body, or the beginning of it.
    pub body: LetterBody,
}

/// Numbers of dead letters, kept up to date with every change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LetterCounts {
    open: BTreeMap<DeadLetterReason, u64>,
    done: u64,
}

impl LetterCounts {
    /// Open letters by reason.
    pub fn by_reason(&self) -> &BTreeMap<DeadLetterReason, u64> {
        &self.open
    }

    /// Letters that are open, or those that are not.
    pub fn of(&self, open: bool) -> u64 {
        if open { self.open.values().sum() } else { self.done }
    }

    /// Counts a row out and another in.
    pub fn moved(&mut self, from: Option<&LetterSummary>, to: Option<&LetterSummary>) {
        if let Some(from) = from {
            if from.state == LetterState::Open {
                if let Some(n) = self.open.get_mut(&from.reason) {
                    *n = n.saturating_sub(1);
                }
                self.open.retain(|_, n| *n > 0);
            } else {
                self.done = self.done.saturating_sub(1);
            }
        }
        match to {
            Some(to) if to.state == LetterState::Open => *self.open.entry(to.reason).or_default() += 1,
            Some(_) => self.done += 1,
            None => {}
        }
    }
}

/// What is known of one letter: the sum of its events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LetterRow {
    deaths: u32,
    first: Option<Time>,
    last: Option<MessageDeadLettered>,
    word: Option<LetterWord>,
    /// Its job went on without it.
    overtaken: bool,
}

impl LetterRow {
    /// Adds one event; `fresh` unless it was told before.
    pub fn apply(&mut self, event: &Event, fresh: bool) {
        match &event.data {
            EventData::MessageDeadLettered(death) => {
                self.deaths += u32::from(fresh);
                self.first = Some(self.first.map_or(death.died_at, |first| first.min(death.died_at)));
                if self.last.as_ref().is_none_or(|last| last.died_at <= death.died_at) {
                    // The body stays with the event.
                    let body = LetterBody { content: String::new(), ..death.body.clone() };
                    self.last = Some(MessageDeadLettered { body, ..death.clone() });
                }
            }
            EventData::MessageRedriven(e) => self.said(event.time, e.seen, LetterState::Redriven, &e.by, &e.reason),
            EventData::MessageDismissed(e) => self.said(event.time, e.seen, LetterState::Dismissed, &e.by, &e.reason),
            _ => {}
        }
    }

    fn said(&mut self, at: Time, seen: Time, state: LetterState, by: &str, reason: &str) {
        let word = LetterWord { seen, at, state, by: by.to_owned(), reason: reason.to_owned() };
        self.word = self.word.take().max(Some(word));
    }

    /// The work that it asks for.
    pub fn work(&self) -> Option<&LetterWork> {
        self.last.as_ref()?.work.as_ref()
    }

    /// Notes whether its job went on without it.
    pub fn set_overtaken(&mut self, overtaken: bool) {
        self.overtaken = overtaken;
    }

    /// As it is shown; `None` while only words about it are known.
    pub fn summary(&self, id: LetterId) -> Option<LetterSummary> {
        let last = self.last.clone()?;
        let word = self.word.clone();
        let state = match word.as_ref().filter(|word| word.seen >= last.died_at) {
            Some(word) => word.state,
            None if self.overtaken => LetterState::Overtaken,
            None => LetterState::Open,
        };
        Some(LetterSummary {
            id,
            state,
            reason: last.reason,
            detail: last.detail,
            deaths: self.deaths.max(1),
            first_died_at: self.first.unwrap_or(last.died_at),
            died_at: last.died_at,
            queue: last.queue,
            exchange: last.exchange,
            routing_key: last.routing_key,
            count: last.count,
            message_id: last.message_id,
            content_type: last.content_type,
            size: last.size,
            sha256: last.body.sha256,
            truncated: last.body.truncated,
            work: last.work,
            word,
        })
    }
}

/// Some dead letters, those that died last first.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct LetterPage {
    /// How many are open in all, by reason.
    pub open: BTreeMap<DeadLetterReason, u64>,
    /// The letters.
    pub letters: Vec<LetterSummary>,
    /// Where the next page begins; none when this is the last one.
    pub next: Option<String>,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use stoker_schemas::event::sample;

    use super::*;

    fn told(kind: &str, died: u64, at: u64) -> Event {
        let mut event = sample(kind).unwrap();
        let moment = |n| Time::UNIX_EPOCH.plus(Duration::from_secs(n));
        event.time = moment(at);
        match &mut event.data {
            EventData::MessageDeadLettered(e) => e.died_at = moment(died),
            EventData::MessageRedriven(e) => e.seen = moment(died),
            EventData::MessageDismissed(e) => e.seen = moment(died),
            _ => {}
        }
        event
    }

    fn state(events: &[&Event]) -> (LetterState, u32) {
        let mut row = LetterRow::default();
        events.iter().for_each(|event| row.apply(event, true));
        let summary = row.summary(LetterId::derive("q", "", b"")).unwrap();
        (summary.state, summary.deaths)
    }

    #[test]
    fn a_letter_that_died_after_it_was_dismissed_is_open_again_in_any_order() {
        let died = told("message.dead-lettered", 1, 1);
        let dismissed = told("message.dismissed", 1, 5);
        let again = told("message.dead-lettered", 2, 2);
        let redriven = told("message.redriven", 2, 3);
        assert_eq!(state(&[&died]), (LetterState::Open, 1));
        for events in [[&died, &dismissed], [&dismissed, &died]] {
            assert_eq!(state(&events), (LetterState::Dismissed, 1));
        }
        for events in [[&died, &dismissed, &again], [&again, &dismissed, &died], [&dismissed, &again, &died]] {
            assert_eq!(state(&events), (LetterState::Open, 2), "by what was seen, not by whose clock is ahead");
        }
        for events in [[&again, &redriven, &died, &dismissed], [&dismissed, &died, &redriven, &again]] {
            assert_eq!(state(&events), (LetterState::Redriven, 2));
        }
    }

    #[test]
    fn counts_follow_every_change() {
        let mut row = LetterRow::default();
        row.apply(&told("message.dead-lettered", 1, 1), true);
        let open = row.summary(LetterId::derive("q", "", b"")).unwrap();
        row.set_overtaken(true);
        let done = row.summary(open.id).unwrap();
        let mut counts = LetterCounts::default();
        counts.moved(None, Some(&open));
        assert_eq!((counts.of(true), counts.of(false)), (1, 0));
        counts.moved(Some(&open), Some(&done));
        assert_eq!((counts.of(true), counts.of(false), counts.by_reason().len()), (0, 1, 0));
        counts.moved(Some(&done), None);
        assert_eq!(counts, LetterCounts::default());
    }
}
