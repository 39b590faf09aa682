//! A queue of the model: what waits, what is held by consumers, and what it does when it is full.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use stoker_schemas::letter::Death;

/// A message as the broker keeps it.
#[derive(Debug, Clone)]
pub struct Message {
    /// The publisher's id of it.
    pub id: String,
    /// Where it was published to.
    pub key: String,
    /// Media type.
    pub content_type: &'static str,
    /// Payload.
    pub body: Bytes,
    /// Earlier deliveries.
    pub deliveries: u32,
    /// Who gave it up, among the dead letters.
    pub death: Option<Death>,
    /// How often it was put back for a while.
    pub deferrals: u32,
    /// How often a consumer has put it back.
    pub put_back: u32,
    /// When it leaves a delay queue, ms of virtual time.
    pub due_ms: u64,
}

/// A message that a consumer holds.
#[derive(Debug)]
pub struct Held {
    /// The message.
    pub message: Message,
    /// By which consumer.
    pub consumer: u64,
    /// Over which link.
    pub link: u64,
    /// Over which connection of its link.
    pub generation: u64,
}

/// What a full queue does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// Refuses what comes.
    Reject,
    /// Drops its oldest message.
    DropOldest,
}

/// One queue.
#[derive(Debug)]
pub struct Queue {
    /// Waiting, the next one first.
    pub ready: VecDeque<Message>,
    /// On their way to the dead letters, which are full: no consumer gets them any more.
    pub dying: VecDeque<Message>,
    /// Held, by delivery tag.
    pub held: BTreeMap<u64, Held>,
    /// Most messages waiting.
    pub max_length: usize,
    /// What it does then.
    pub overflow: Overflow,
    /// Deliveries of one message before it is dead-lettered.
    pub delivery_limit: u32,
}

impl Queue {
    /// An empty queue.
    pub fn new(max_length: usize, overflow: Overflow, delivery_limit: u32) -> Self {
        Self {
            ready: VecDeque::new(),
            dying: VecDeque::new(),
            held: BTreeMap::new(),
            max_length,
            overflow,
            delivery_limit,
        }
    }

    /// Whether it takes another message.
    pub fn has_room(&self) -> bool {
        self.overflow == Overflow::DropOldest || self.ready.len() < self.max_length
    }

    /// Adds a message to the end; false when it is full.
    pub fn offer(&mut self, message: Message) -> bool {
        if !self.has_room() {
            return false;
        }
        self.ready.push_back(message);
        while self.ready.len() > self.max_length {
            self.ready.pop_front();
        }
        true
    }

    /// Gives a message back to the front; one that was delivered too often is returned instead.
    pub fn give_back(&mut self, mut message: Message) -> Option<Message> {
        message.deliveries += 1;
        if message.deliveries > self.delivery_limit {
            return Some(message);
        }
        self.ready.push_front(message);
        None
    }

    /// Whether it has another message about the same job.
    pub fn has_other_of(&self, message: &Message) -> bool {
        let subject = |message: &Message| message.id.split('/').next().map(str::to_owned);
        let all = self.ready.iter().chain(self.held.values().map(|held| &held.message));
        let wanted = subject(message);
        all.filter(|other| other.key.starts_with("job.")).any(|other| subject(other) == wanted)
    }

    /// Takes out what these connections held, the latest first.
    pub fn take_held(&mut self, lost: impl Fn(&Held) -> bool) -> Vec<Message> {
        let tags: Vec<u64> = self.held.iter().filter(|(_, held)| lost(held)).map(|(tag, _)| *tag).collect();
        tags.into_iter().rev().filter_map(|tag| self.held.remove(&tag)).map(|held| held.message).collect()
    }
}
