//! Deliveries: handed out within each consumer's credit, settled, and given back when a connection is lost.

use std::time::Duration;

use async_trait::async_trait;
use stoker_schemas::letter::{Death, GivenUpBy};
use stoker_schemas::topology::delay_tier_ms;
use stoker_worker::ports::broker::{About, Ack, BrokerError, Delivery, NotDeferred};

use super::Model;
use super::publish::submit;
use super::queue::{Held, Message};
use super::state::{Action, Exchange, State, Verdict};
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
        let ack = SimAck { model, link: number, generation, queue: name, tag };
        place.send(Delivery {
            routing_key: message.key.clone(),
            delivery_count: message.deliveries,
            deferrals: message.deferrals,
            about: About {
                queue: queue_name,
                message_id: Some(message.id.clone()),
                death: message.death.clone(),
                ..About::default()
            },
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
                    self.bury(name, dead, "delivery_limit");
                }
            }
            Verdict::Dead => self.bury(name, held.message, "rejected"),
        }
    }

    /// To the dead letters; while those are full it stays where it is.
    fn bury(&mut self, name: &str, message: Message, why: &str) {
        let death = Death {
            by: GivenUpBy::Broker(why.to_owned()),
            queue: name.to_owned(),
            exchange: "stoker.events".to_owned(),
            routing_key: message.key.clone(),
            count: 1,
            at: None,
        };
        let message = Message { death: Some(death), ..message };
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
                    self.bury(&name, dead, "delivery_limit");
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
}

impl SimAck {
    /// The message as it is put back for a while.
    fn copy(&self, delay: Duration) -> Result<Message, BrokerError> {
        let state = self.model.lock();
        let held = state.queues.get(&self.queue).and_then(|queue| queue.held.get(&self.tag));
        let message = held.map(|held| held.message.clone()).ok_or(BrokerError::Stale)?;
        let lane = self.queue.strip_prefix("stoker.jobs.");
        let lane = lane.ok_or_else(|| BrokerError::Refused("only jobs can be put back for a while".to_owned()))?;
        Ok(Message {
            key: format!("job.deferred.{lane}.{}", delay_tier_ms(delay)),
            deferrals: message.deferrals + 1,
            deliveries: 0,
            due_ms: u64::try_from(delay.as_millis()).unwrap_or(u64::MAX).max(1),
            ..message
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
        let copied = match self.copy(delay) {
            Ok(copy) => submit(&self.model, self.link, copy, Exchange::Deferred).await,
            Err(error) => Err(error),
        };
        match copied {
            Ok(()) => {
                // Where its connection is gone it comes twice, which its worker recognises.
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
