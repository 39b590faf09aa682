//! The broker between two moments: its queues, its history, and the connections to it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, Weak};

use stoker_schemas::letter::{Death, GivenUpBy};
use stoker_worker::ports::broker::{
    BrokerError, BrokerStatus, CONTENT_EVENT, Delivery, HistoryStatus, Outgoing, Parked,
};
use stoker_worker::ports::handle::Handles;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::Model;
use super::queue::{Message, Overflow, Queue};
use super::route::{Way, due_way, host_queue, way};
use super::stream::{History, Reader};
use crate::say;
use crate::sim::trace::Trace;

/// The queue of dead letters.
pub const DEAD: &str = "stoker.dead";
/// Never dead-letters by count.
const NO_LIMIT: u32 = u32::MAX;
/// Wait before a message that left its delay queue is offered again to a queue that was full.
const DUE_RETRY_MS: u64 = 500;

/// What a seed draws of the broker.
#[derive(Debug, Clone)]
pub struct BrokerPlan {
    /// One way over the network, ms: between these.
    pub latency_ms: (u64, u64),
    /// Jobs a lane holds.
    pub jobs_max: usize,
    /// Messages a delay queue holds.
    pub delay_max: usize,
    /// Messages the dead queue holds.
    pub dead_max: usize,
    /// Commands a host's queue holds.
    pub host_max: usize,
    /// Deliveries before a message is dead-lettered.
    pub delivery_limit: u32,
    /// How long a consumer may hold a message while nothing else is wrong, ms.
    pub held_ms: u64,
    /// How long the broker takes to notice that a connection is gone, ms: at most.
    pub detect_ms: u64,
    /// Hosts whose command queues exist.
    pub hosts: Vec<String>,
}

/// An answer to a publisher.
pub type Answer = Result<(), BrokerError>;

/// What a message is published to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exchange {
    /// Of all events.
    Events,
    /// Of what is put back for a while: the history gets nothing of it.
    Deferred,
    /// Of dead letters.
    Dead,
}

/// A publish that was not answered yet.
pub struct Pending {
    /// What.
    pub message: Message,
    /// Where to.
    pub to: Exchange,
    /// Who waits.
    pub reply: oneshot::Sender<Answer>,
}

/// One process' connection.
pub struct Link {
    /// Whose.
    pub name: String,
    /// Whether anything gets through.
    pub up: bool,
    /// Counts its connections.
    pub generation: u64,
    /// Unanswered publishes, in order.
    pub window: BTreeMap<u64, Pending>,
    /// When the last thing that was sent arrives: nothing overtakes.
    pub last_due_ms: u64,
    /// Ends with the process: what it held then goes back by itself.
    pub closing: CancellationToken,
    /// Tells the process.
    pub status: watch::Sender<BrokerStatus>,
    /// Tells it about the history.
    pub history: watch::Sender<HistoryStatus>,
}

/// Somebody who receives from a queue.
pub struct Consumer {
    /// Over which link.
    pub link: u64,
    /// From which queue.
    pub queue: String,
    /// To whom.
    pub to: mpsc::Sender<Delivery>,
    /// How many may be held at once.
    pub credit: watch::Receiver<u32>,
    /// Counts what is handed out.
    pub handles: Handles,
}

/// How a delivery was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Forget it.
    Done,
    /// Back to the queue.
    Requeue,
    /// To the dead letters.
    Dead,
}

/// What is on its way, or waits for its time; always with the connection that it is on.
#[allow(missing_docs, reason = "the variants say it")]
pub enum Action {
    /// A publish arrives.
    Publish { link: u64, generation: u64, id: u64 },
    /// A settlement arrives.
    Settle { link: u64, generation: u64, queue: String, tag: u64, verdict: Verdict },
    /// A confirm arrives at the publisher.
    Confirm { link: u64, generation: u64, id: u64, answer: Answer },
    /// The broker notices that a connection is gone.
    Notice { link: u64, generation: u64 },
}

/// Everything.
pub struct State {
    /// Virtual time, ms.
    pub now_ms: u64,
    pub(super) me: Weak<Mutex<Self>>,
    pub(super) rng: fastrand::Rng,
    pub(super) trace: Trace,
    pub(super) plan: BrokerPlan,
    pub(super) queues: BTreeMap<String, Queue>,
    /// Its history.
    pub history: History,
    pub(super) readers: BTreeMap<u64, Reader>,
    pub(super) links: BTreeMap<u64, Link>,
    pub(super) consumers: BTreeMap<u64, Consumer>,
    pub(super) later: BTreeMap<(u64, u64), Action>,
    pub(super) next_id: u64,
    /// Publishes that wait for an alarm to end.
    pub(super) stalled: VecDeque<Action>,
    /// Memory or disk is short: nothing is taken.
    pub(super) alarm: bool,
    /// One in so many publishes is confirmed and forgotten; 0 for none.
    pub(super) lies: u32,
    /// What was acknowledged, and after how many entries of the history.
    pub acknowledged: Vec<(usize, Message)>,
    /// Messages that a consumer puts back again and again.
    pub loops: Vec<String>,
    /// The delay queues (or else the lanes) take nothing.
    pub(super) refuses_delays: Option<bool>,
    /// Jobs of which some message was refused.
    pub refused: BTreeSet<String>,
    /// Messages that a consumer held for too long.
    pub held_long: Vec<String>,
    /// When something last went wrong or right again, ms of virtual time.
    pub disturbed_ms: u64,
    /// Ids of messages lost to a lie.
    pub(super) lied: Vec<String>,
}

impl State {
    pub(super) fn new(plan: BrokerPlan, seed: u64, trace: Trace) -> Self {
        let mut queues = BTreeMap::new();
        queues.insert(DEAD.to_owned(), Queue::new(plan.dead_max, Overflow::Reject, NO_LIMIT));
        for host in &plan.hosts {
            queues.insert(host_queue(host), Queue::new(plan.host_max, Overflow::DropOldest, NO_LIMIT));
        }
        Self {
            now_ms: 0,
            me: Weak::new(),
            rng: fastrand::Rng::with_seed(seed),
            trace,
            plan,
            queues,
            history: History::default(),
            readers: BTreeMap::new(),
            links: BTreeMap::new(),
            consumers: BTreeMap::new(),
            later: BTreeMap::new(),
            next_id: 1,
            stalled: VecDeque::new(),
            alarm: false,
            lies: 0,
            acknowledged: Vec::new(),
            loops: Vec::new(),
            refuses_delays: None,
            refused: BTreeSet::new(),
            held_long: Vec::new(),
            disturbed_ms: 0,
            lied: Vec::new(),
        }
    }

    /// The broker that this is the state of; it is never used after that is gone.
    pub(super) fn me(&self) -> Model {
        Model(self.me.upgrade().expect("the state lives inside its broker"))
    }

    pub(super) fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn latency(&mut self) -> u64 {
        let (from, to) = self.plan.latency_ms;
        self.rng.u64(from..=to)
    }

    pub(super) fn at(&mut self, due_ms: u64, action: Action) {
        let id = self.fresh_id();
        self.later.insert((due_ms, id), action);
    }

    /// Puts something on a link, behind what is on it already.
    pub(super) fn send(&mut self, link: u64, action: Action) {
        let due = self.now_ms + self.latency();
        let Some(from) = self.links.get_mut(&link) else { return };
        from.last_due_ms = from.last_due_ms.max(due);
        let due = from.last_due_ms;
        self.at(due, action);
    }

    /// When something is due next.
    pub fn next_due(&self) -> Option<u64> {
        let action = self.later.keys().next().map(|(due, _)| *due);
        let delayed = self.queues.values().filter_map(|q| q.ready.front()).map(|m| m.due_ms).filter(|due| *due > 0);
        action.into_iter().chain(delayed).min()
    }

    /// Lets everything happen that is due by now.
    pub fn advance(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        while let Some(entry) = self.later.first_entry()
            && entry.key().0 <= now_ms
        {
            let action = entry.remove();
            self.act(action);
        }
        self.expire_delays();
        self.bury_the_dying();
        self.feed_consumers();
        self.feed_readers();
    }

    fn is_current(&self, link: u64, generation: u64) -> bool {
        self.links.get(&link).is_some_and(|l| l.up && l.generation == generation)
    }

    pub(super) fn act(&mut self, action: Action) {
        match action {
            Action::Publish { link, generation, id } if self.is_current(link, generation) => {
                if self.alarm {
                    self.stalled.push_back(Action::Publish { link, generation, id });
                    return;
                }
                let Some((message, to)) =
                    self.links.get(&link).and_then(|l| l.window.get(&id)).map(|p| (p.message.clone(), p.to))
                else {
                    return;
                };
                let answer = match to {
                    Exchange::Events => self.take(link, message),
                    Exchange::Deferred => self.take_deferred(message),
                    Exchange::Dead => self.take_parked(message),
                };
                let due = self.now_ms + self.latency();
                self.at(due, Action::Confirm { link, generation, id, answer });
            }
            Action::Settle { link, generation, queue, tag, verdict } if self.is_current(link, generation) => {
                self.settle(&queue, tag, verdict);
            }
            Action::Confirm { link, generation, id, answer } if self.is_current(link, generation) => {
                if let Some(pending) = self.links.get_mut(&link).and_then(|l| l.window.remove(&id)) {
                    let _ = pending.reply.send(answer);
                }
            }
            Action::Notice { link, generation } => self.give_back_of(link, generation),
            // It was on a connection that is gone.
            Action::Publish { .. } | Action::Settle { .. } | Action::Confirm { .. } => {}
        }
    }

    /// Takes a message as RabbitMQ does: into every queue its key leads to, refused when one of them is full.
    fn take(&mut self, link: u64, message: Message) -> Answer {
        let from = self.links.get(&link).map(|l| l.name.clone()).unwrap_or_default();
        let way = way(&message.key);
        if way == Way::Nowhere {
            say!(self.trace, "broker < {from} {} unroutable", message.id);
            return Err(BrokerError::Unroutable(message.key));
        }
        let told = self.history.is_bound;
        let is_work = matches!(way, Way::Work(_));
        if is_work && told && self.lies > 0 && self.rng.u32(..self.lies) == 0 {
            say!(self.trace, "broker < {from} {} confirmed and forgotten", message.id);
            if told {
                self.history.push(&message, self.now_ms);
            }
            self.lied.push(message.id.clone());
            return Ok(());
        }
        if told {
            self.history.push(&message, self.now_ms);
        }
        let due_ms = if message.due_ms > 0 { self.now_ms + message.due_ms } else { 0 };
        let message = Message { due_ms, ..message };
        let targets = match way {
            Way::Work(queue) => vec![queue],
            Way::AllHosts => self.plan.hosts.iter().map(|host| host_queue(host)).collect(),
            Way::Host(queue) => vec![queue],
            Way::HistoryOnly | Way::Nowhere => Vec::new(),
        };
        let mut reached = told;
        for name in targets {
            reached |= is_work || self.queues.contains_key(&name);
            if is_work {
                self.declare_work(&name);
            }
            if !self.offer(&name, message.clone()) {
                self.note_refusal(&message);
                say!(self.trace, "broker < {from} {} refused, {name} is full", message.id);
                return Err(BrokerError::Refused("a queue it goes to is full or unavailable".to_owned()));
            }
        }
        say!(self.trace, "broker < {from} {} {}", message.id, if reached { "taken" } else { "unroutable" });
        if reached { Ok(()) } else { Err(BrokerError::Unroutable(message.key)) }
    }

    pub(super) fn declare_work(&mut self, name: &str) {
        let (max, limit) = match name.starts_with("stoker.delay.") {
            true => (self.plan.delay_max, NO_LIMIT),
            false => (self.plan.jobs_max, self.plan.delivery_limit),
        };
        self.queues.entry(name.to_owned()).or_insert_with(|| Queue::new(max, Overflow::Reject, limit));
    }

    /// Adds a message to a queue, unless that is full or has lost most of its replicas. One that does not exist is
    /// none of its matter.
    fn offer(&mut self, name: &str, message: Message) -> bool {
        let is_delay = name.starts_with("stoker.delay.");
        let is_lane = name.starts_with("stoker.jobs.");
        if self.refuses_delays.is_some_and(|delays| if delays { is_delay } else { is_lane }) {
            return false;
        }
        self.queues.get_mut(name).is_none_or(|queue| queue.offer(message))
    }

    fn note_refusal(&mut self, message: &Message) {
        if let Some(subject) = message.id.split('/').next() {
            self.refused.insert(subject.to_owned());
        }
    }

    fn take_deferred(&mut self, message: Message) -> Answer {
        let Way::Work(name) = way(&message.key) else { return Err(BrokerError::Unroutable(message.key)) };
        self.declare_work(&name);
        let id = message.id.clone();
        let message = Message { due_ms: self.now_ms + message.due_ms, ..message };
        let taken = self.offer(&name, message.clone());
        if !taken {
            self.note_refusal(&message);
        }
        say!(self.trace, "broker < {id} put back for a while: {taken}");
        if taken { Ok(()) } else { Err(BrokerError::Refused(format!("{name} is full"))) }
    }

    fn take_parked(&mut self, message: Message) -> Answer {
        say!(self.trace, "broker < {} parked", message.id);
        match self.dead_letter(message) {
            Ok(()) => Ok(()),
            Err(_) => Err(BrokerError::Refused("the dead queue is full".to_owned())),
        }
    }

    #[allow(clippy::result_large_err, reason = "the message goes back to where it was")]
    pub(super) fn dead_letter(&mut self, message: Message) -> Result<(), Message> {
        let Some(dead) = self.queues.get_mut(DEAD) else { return Err(message) };
        let message = Message { due_ms: 0, deliveries: 0, ..message };
        if !dead.has_room() {
            return Err(message);
        }
        dead.offer(message);
        Ok(())
    }

    /// Only the oldest of a delay queue can leave it, as in RabbitMQ.
    fn expire_delays(&mut self) {
        let names: Vec<String> = self.queues.keys().filter(|name| name.starts_with("stoker.delay.")).cloned().collect();
        for name in names {
            while let Some(message) = self.pop_due(&name) {
                let Some(target) = due_way(&message.key) else { continue };
                self.declare_work(&target);
                let due = Message { due_ms: 0, ..message.clone() };
                let taken = self.offer(&target, due);
                if !taken {
                    // At least once: it stays until there is room.
                    let again = Message { due_ms: self.now_ms + DUE_RETRY_MS, ..message };
                    self.queues.entry(name.clone()).and_modify(|queue| queue.ready.push_front(again));
                    break;
                }
                say!(self.trace, "broker {} is due, to {target}", message.id);
            }
        }
    }

    fn pop_due(&mut self, name: &str) -> Option<Message> {
        let queue = self.queues.get_mut(name)?;
        queue.ready.pop_front_if(|message| message.due_ms <= self.now_ms)
    }
}

/// A message of the model, made of one that is published.
pub fn message_of(outgoing: Outgoing) -> Message {
    let delay = outgoing.delay.map(|delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
    Message {
        id: outgoing.message_id,
        key: outgoing.routing_key,
        content_type: outgoing.content_type,
        body: outgoing.body,
        deliveries: 0,
        death: None,
        deferrals: 0,
        put_back: 0,
        // From when it arrives on.
        due_ms: delay.map_or(0, |delay| delay.max(1)),
    }
}

/// A message that a worker puts among the dead letters.
pub fn parked_message(parked: Parked, number: u64) -> Message {
    let Parked { routing_key, reason, at, about, body } = parked;
    let death = Death {
        by: GivenUpBy::Worker(reason),
        queue: about.queue,
        exchange: String::new(),
        routing_key: routing_key.clone(),
        count: 1,
        at: Some(at),
    };
    Message {
        id: about.message_id.unwrap_or_else(|| format!("parked-{number}")),
        key: routing_key,
        content_type: CONTENT_EVENT,
        body,
        deliveries: 0,
        death: Some(death),
        deferrals: 0,
        put_back: 0,
        due_ms: 0,
    }
}
