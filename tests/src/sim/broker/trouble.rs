//! What goes wrong at the broker and on the way to it.

use stoker_worker::ports::broker::{BrokerStatus, HistoryStatus};

use super::queue::Message;
use super::state::{Action, State};
use crate::say;

/// Messages named in one line.
const MAX_NAMED: usize = 3;

impl State {
    /// Of what is under way from a process, some still arrives.
    fn last_words(&mut self, link: u64) {
        let is_from = |action: &Action| match action {
            Action::Publish { link: from, .. } | Action::Settle { link: from, .. } => *from == link,
            Action::Confirm { .. } | Action::Notice { .. } => false,
        };
        let under_way: Vec<_> = self.later.iter().filter(|(_, action)| is_from(action)).map(|(key, _)| *key).collect();
        let arrive = self.rng.usize(..=under_way.len());
        for key in &under_way[..arrive] {
            if let Some(action) = self.later.remove(key) {
                self.act(action);
            }
        }
    }

    /// Nothing gets through between a process and the broker, which notices a little later.
    pub fn cut(&mut self, link: u64) {
        self.last_words(link);
        let detect = self.rng.u64(..=self.plan.detect_ms);
        let Some(cut) = self.links.get_mut(&link).filter(|link| link.up) else { return };
        cut.up = false;
        let generation = cut.generation;
        cut.generation += 1;
        cut.status.send_replace(BrokerStatus::Down("connection lost (simulated)".to_owned()));
        say!(self.trace, "link of {} is cut", cut.name);
        self.at(self.now_ms + detect, Action::Notice { link, generation });
    }

    /// The process is connected again, and sends what was not confirmed.
    pub fn join(&mut self, link: u64) {
        let status = self.status();
        let Some(joined) = self.links.get_mut(&link).filter(|link| !link.up) else { return };
        joined.up = true;
        joined.last_due_ms = self.now_ms;
        joined.status.send_replace(status);
        joined.window.retain(|_, pending| !pending.reply.is_closed());
        let (generation, again): (u64, Vec<u64>) = (joined.generation, joined.window.keys().copied().collect());
        say!(self.trace, "link of {} is back, {} publishes are sent again", joined.name, again.len());
        for id in again {
            self.send(link, Action::Publish { link, generation, id });
        }
    }

    /// The process is gone or says goodbye.
    pub fn forget(&mut self, link: u64) {
        let Some(gone) = self.links.remove(&link) else { return };
        gone.closing.cancel();
        say!(self.trace, "link of {} is closed", gone.name);
        self.give_back_of(link, gone.generation);
        self.readers.retain(|_, reader| reader.link != link);
    }

    /// As `forget`, but the broker does not hear of it at once.
    pub fn lose(&mut self, link: u64) {
        self.last_words(link);
        let detect = self.rng.u64(..=self.plan.detect_ms);
        let Some(gone) = self.links.remove(&link) else { return };
        gone.closing.cancel();
        self.readers.retain(|_, reader| reader.link != link);
        self.at(self.now_ms + detect, Action::Notice { link, generation: gone.generation });
    }

    /// Cuts every link, and gives back everything that is held.
    pub fn go_down(&mut self) {
        say!(self.trace, "broker goes down");
        let links: Vec<u64> = self.links.keys().copied().collect();
        for link in links {
            let generation = self.links.get(&link).map_or(0, |link| link.generation);
            self.cut(link);
            self.give_back_of(link, generation);
        }
        self.stalled.clear();
    }

    /// An alarm begins or ends.
    pub fn set_alarm(&mut self, alarm: bool) {
        if self.alarm == alarm {
            return;
        }
        say!(self.trace, "broker alarm: {alarm}");
        self.alarm = alarm;
        let status = self.status();
        for link in self.links.values().filter(|link| link.up) {
            link.status.send_replace(status.clone());
        }
        if !alarm {
            for action in std::mem::take(&mut self.stalled) {
                self.act(action);
            }
        }
    }

    fn status(&self) -> BrokerStatus {
        if self.alarm { BrokerStatus::Blocked("memory".to_owned()) } else { BrokerStatus::Connected }
    }

    /// The history is cut off, or bound again.
    pub fn bind_history(&mut self, is_bound: bool) {
        if self.history.is_bound == is_bound {
            return;
        }
        say!(self.trace, "history is bound: {is_bound}");
        self.history.is_bound = is_bound;
        let status = self.history_status();
        for link in self.links.values() {
            link.history.send_replace(status.clone());
        }
    }

    pub(super) fn history_status(&self) -> HistoryStatus {
        match self.history.is_bound {
            true => HistoryStatus::Available,
            false => HistoryStatus::Away("the stream has no leader (simulated)".to_owned()),
        }
    }

    /// The stream is deleted and made again, unless somebody still reads: what they had not read would be lost to
    /// them for good.
    pub fn recreate_history(&mut self) {
        let end = self.history.end();
        if self.readers.is_empty()
            || self.readers.values().any(|reader| reader.next < end || reader.to.capacity() < reader.to.max_capacity())
        {
            say!(self.trace, "history is being read, and stays");
            return;
        }
        say!(self.trace, "history is made again");
        self.history.recreate();
    }

    /// Somebody publishes what no worker can read, past every rule.
    pub fn inject(&mut self, name: &str, id: String, bytes: usize) {
        say!(self.trace, "{id} of {bytes} bytes is published to {name}");
        self.declare_work(name);
        let message = Message {
            id,
            key: "job.enqueued.default.normal".to_owned(),
            content_type: stoker_worker::ports::broker::CONTENT_EVENT,
            body: bytes::Bytes::from(vec![b'x'; bytes]),
            deliveries: 0,
            death: None,
            deferrals: 0,
            put_back: 0,
            due_ms: 0,
        };
        if let Some(queue) = self.queues.get_mut(name) {
            queue.offer(message);
        }
    }

    /// Drops what waits in a queue.
    pub fn purge(&mut self, name: &str) -> usize {
        let purged = self.queues.get_mut(name).map_or(0, |queue| std::mem::take(&mut queue.ready).len());
        say!(self.trace, "{name} is purged of {purged}");
        purged
    }

    /// What waits, is held, or is under way; `None` when nothing does.
    pub fn unrest(&self) -> Option<String> {
        let mut busy = Vec::new();
        for (name, queue) in &self.queues {
            if !queue.ready.is_empty() || !queue.held.is_empty() || !queue.dying.is_empty() {
                let held: Vec<_> = queue.held.values().map(|held| held.message.id.as_str()).take(MAX_NAMED).collect();
                busy.push(format!("{name}: {} waiting, {} held {held:?}", queue.ready.len(), queue.held.len()));
            }
        }
        let unanswered: usize = self.links.values().map(|link| link.window.len()).sum();
        if unanswered + self.later.len() > 0 {
            busy.push(format!("{unanswered} publishes unanswered, {} things under way", self.later.len()));
        }
        (!busy.is_empty()).then(|| format!("the broker is not at rest: {}", busy.join(", ")))
    }

    /// One in so many publishes of work is confirmed and forgotten from now on; 0 for none.
    pub fn lie(&mut self, one_in: u32) {
        self.lies = one_in;
    }
}
