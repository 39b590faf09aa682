//! Deliveries: handed out within each consumer's credit, settled, and given back when a connection is lost.

use std::time::Duration;

use async_trait::async_trait;
use stoker_schemas::topology::delay_tier_ms;
use stoker_worker::ports::broker::{About, Ack, BrokerError, Delivery, NotDeferred};

use super::Model;
use super::port::SimBroker;
use super::queue::{Held, Message};
use super::state::{Action, State, Verdict};
use crate::say;

/// A message that is put back so often is worked on by nobody and keeps everybody busy.
const MAX_PUT_BACK: u32 = 25;

impl State {
    /// Hands out what waits, in turns among the consumers of a queue.
    pub(super) fn feed_consumers(&mut self) {
        let ids: Vec<u64> = self.consumers.keys().copied().collect();
        if ids.is_empty() {
            return;
        }
        let first = self.rng.usize(..ids.len());
        let mut again = true;
        while again {
            again = false;
            for at in 0..ids.len() {
                again |= self.feed(ids[(first + at) % ids.len()]);
            }
        }
    }

    /// Hands one message to a consumer, if it may have one.
    fn feed(&mut self, id: u64) -> bool {
        let Some(consumer) = self.consumers.get(&id) else { return false };
        let Some(link) = self.links.get(&consumer.link).filter(|link| link.up) else { return false };
        let (number, generation, to) = (consumer.link, link.generation, consumer.to.clone());
        let handles = consumer.handles.clone();
        let Some(queue) = self.queues.get(&consumer.queue) else { return false };
        let mine = |held: &&Held| held.consumer == id && held.generation == generation;
        let holds = queue.held.values().filter(mine).count();
        if holds >= *consumer.credit.borrow() as usize || queue.ready.is_empty() {
            return false;
        }
        let (name, who) = (consumer.queue.clone(), link.name.clone());
        let Ok(place) = to.try_reserve() else { return false };
        let (tag, model) = (self.fresh_id(), self.me());
        let Some(queue) = self.queues.get_mut(&name) else { return false };
        let Some(message) = queue.ready.pop_front() else { return false };
        say!(self.trace, "broker > {who} {} from {name} #{tag} delivery {}", message.id, message.deliveries);
        let queue_name = name.clone();
        let lane = lane_of(&name);
        let ack = SimAck { model, link: number, generation, queue: name, tag, lane, message: message.clone() };
        place.send(Delivery {
            routing_key: message.key.clone(),
            delivery_count: message.deliveries,
            deferrals: message.deferrals,
            about: About { queue: queue_name, message_id: Some(message.id.clone()), ..About::default() },
            body: message.body.clone(),
            ack: handles.issue(Box::new(ack)),
        });
        queue.held.insert(tag, Held { message, consumer: id, link: number, generation });
        true
    }

    pub(super) fn settle(&mut self, name: &str, tag: u64, verdict: Verdict) {
        let Some(queue) = self.queues.get_mut(name) else { return };
        let Some(held) = queue.held.remove(&tag) else { return };
        say!(self.trace, "broker {} #{tag} settled: {verdict:?}", held.message.id);
        match verdict {
            Verdict::Done => {
                // While another message stands for the job, nothing need follow from this one.
                if !self.queues.values().any(|queue| queue.has_other_of(&held.message)) {
                    self.acknowledged.push((self.history.archive.len(), held.message));
                }
            }
            Verdict::Requeue => {
                let put_back = held.message.put_back + 1;
                let message = Message { put_back, ..held.message };
                if put_back == MAX_PUT_BACK {
                    self.loops.push(message.id.clone());
                }
                if let Some(dead) = queue.give_back(message) {
                    self.bury(name, dead);
                }
            }
            Verdict::Dead => self.bury(name, held.message),
        }
    }

    /// To the dead letters; while those are full it stays where it is.
    fn bury(&mut self, name: &str, message: Message) {
        say!(self.trace, "broker {} dead-lettered from {name}", message.id);
        if let Err(message) = self.dead_letter(message)
            && let Some(queue) = self.queues.get_mut(name)
        {
            queue.dying.push_back(message);
        }
    }

    /// What waited for room among the dead letters goes there when there is some.
    pub(super) fn bury_the_dying(&mut self) {
        let names: Vec<String> =
            self.queues.iter().filter(|(_, q)| !q.dying.is_empty()).map(|(n, _)| n.clone()).collect();
        for name in names {
            while let Some(message) = self.queues.get_mut(&name).and_then(|queue| queue.dying.pop_front()) {
                if let Err(message) = self.dead_letter(message) {
                    self.queues.entry(name.clone()).and_modify(|queue| queue.dying.push_front(message));
                    break;
                }
            }
        }
    }

    /// What a lost connection held goes back.
    pub(super) fn give_back_of(&mut self, link: u64, generation: u64) {
        let names: Vec<String> = self.queues.keys().cloned().collect();
        for name in names {
            let Some(queue) = self.queues.get_mut(&name) else { continue };
            let lost = queue.take_held(|held| held.link == link && held.generation <= generation);
            for message in lost {
                say!(self.trace, "broker {} goes back to {name}", message.id);
                let dead = self.queues.get_mut(&name).and_then(|queue| queue.give_back(message));
                if let Some(dead) = dead {
                    self.bury(&name, dead);
                }
            }
        }
        if !self.links.contains_key(&link) {
            self.consumers.retain(|_, consumer| consumer.link != link);
        }
    }
}

/// Settles a delivery of the model.
struct SimAck {
    model: Model,
    link: u64,
    generation: u64,
    queue: String,
    tag: u64,
    /// Pool and lane, if it is a job.
    lane: Option<(String, String)>,
    message: Message,
}

impl SimAck {
    fn is_current(&self) -> bool {
        let state = self.model.lock();
        state.links.get(&self.link).is_some_and(|l| l.up && l.generation == self.generation)
    }

    /// The copy that a delay queue keeps.
    fn copy(&self, delay: Duration) -> Option<Message> {
        let (pool, lane) = self.lane.as_ref()?;
        let tier = delay_tier_ms(delay);
        let due_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX).clamp(1, tier);
        Some(Message {
            key: format!("job.deferred.{pool}.{lane}.{tier}"),
            deliveries: 0,
            put_back: 0,
            deferrals: self.message.deferrals + 1,
            due_ms,
            ..self.message.clone()
        })
    }

    fn settle(&self, verdict: Verdict) -> Result<(), BrokerError> {
        let mut state = self.model.lock();
        let is_current = state.links.get(&self.link).is_some_and(|l| l.up && l.generation == self.generation);
        if !is_current {
            return Err(BrokerError::Stale);
        }
        // Sent is all that a consumer knows: it may never arrive.
        let (link, generation, queue, tag) = (self.link, self.generation, self.queue.clone(), self.tag);
        state.send(link, Action::Settle { link, generation, queue, tag, verdict });
        Ok(())
    }
}

#[async_trait]
impl Ack for SimAck {
    async fn ack(self: Box<Self>) -> Result<(), BrokerError> {
        self.settle(Verdict::Done)
    }

    async fn requeue(self: Box<Self>) -> Result<(), BrokerError> {
        self.settle(Verdict::Requeue)
    }

    async fn defer(self: Box<Self>, delay: Duration) -> Result<(), NotDeferred> {
        let Some(copy) = self.copy(delay) else {
            let error = BrokerError::Refused("only jobs are kept for a while".to_owned());
            return Err(NotDeferred { ack: self, error });
        };
        if !self.is_current() {
            return Err(NotDeferred { ack: self, error: BrokerError::Stale });
        }
        let kept = SimBroker::over(self.model.clone(), self.link).submit(|_| copy, false).await;
        match kept {
            // A settlement that does not arrive leaves it twice.
            Ok(()) => {
                let _ = self.settle(Verdict::Done);
                Ok(())
            }
            Err(error) => Err(NotDeferred { ack: self, error }),
        }
    }

    async fn dead_letter(self: Box<Self>) -> Result<(), BrokerError> {
        self.settle(Verdict::Dead)
    }
}

/// Pool and lane of a queue of jobs.
fn lane_of(queue: &str) -> Option<(String, String)> {
    let (pool, lane) = queue.strip_prefix("stoker.jobs.")?.rsplit_once('.')?;
    Some((pool.to_owned(), lane.to_owned()))
}
