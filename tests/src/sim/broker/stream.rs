//! The history: everything that was published while it was bound, for readers at their own pace.

use stoker_worker::ports::broker::{HistoryEntry, Offset};
use tokio::sync::mpsc;

use super::queue::Message;
use super::state::State;

/// The stream.
#[derive(Debug)]
pub struct History {
    /// Everything that was ever in it, for the simulation itself.
    pub archive: Vec<HistoryEntry>,
    /// Where in it the stream begins that readers see.
    begin: usize,
    /// Whether the events' exchange leads to it.
    pub is_bound: bool,
    /// Counts how often it was made.
    pub generation: u64,
}

impl Default for History {
    fn default() -> Self {
        Self { archive: Vec::new(), begin: 0, is_bound: true, generation: 0 }
    }
}

impl History {
    /// Adds a message.
    pub fn push(&mut self, message: &Message) {
        self.archive.push(HistoryEntry {
            offset: self.end(),
            content_type: message.content_type.to_owned(),
            routing_key: message.key.clone(),
            body: message.body.clone(),
        });
    }

    /// Deletes the stream and makes it again, empty.
    pub fn recreate(&mut self) {
        (self.begin, self.generation) = (self.archive.len(), self.generation + 1);
    }

    /// Entries that readers see.
    pub fn end(&self) -> u64 {
        (self.archive.len() - self.begin) as u64
    }

    fn get(&self, offset: u64) -> Option<&HistoryEntry> {
        self.archive.get(self.begin + usize::try_from(offset).ok()?)
    }

    /// Where a reader begins. One that has read what is not here has read another history.
    pub fn begin(&self, from: Offset) -> u64 {
        let known = match from {
            Offset::First => true,
            Offset::At(offset) => offset == 0 || self.get(offset - 1).is_some(),
            Offset::After(mark) => self.get(mark.offset).is_some_and(|entry| entry.mark() == mark),
        };
        if known { from.next() } else { 0 }
    }
}

/// Somebody who reads it.
pub struct Reader {
    /// Over which link.
    pub link: u64,
    /// The next offset.
    pub next: u64,
    /// Of which history.
    pub generation: u64,
    /// To whom.
    pub to: mpsc::Sender<HistoryEntry>,
}

impl State {
    pub(super) fn feed_readers(&mut self) {
        let Self { readers, links, history, .. } = self;
        readers.retain(|_, reader| !reader.to.is_closed() && links.contains_key(&reader.link));
        for reader in readers.values_mut() {
            if !links.get(&reader.link).is_some_and(|link| link.up) {
                continue;
            }
            if reader.generation != history.generation {
                (reader.generation, reader.next) = (history.generation, 0);
            }
            while let Some(entry) = history.get(reader.next) {
                if reader.to.try_send(entry.clone()).is_err() {
                    break;
                }
                reader.next += 1;
            }
        }
    }
}
