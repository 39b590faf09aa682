//! What the plan makes happen: faults begin and end, users ask.

use stoker_schemas::JobId;
use stoker_worker::log::Fate;

use super::{DEFAULT_POOL, Run};
use crate::say;
use crate::sim::broker::route::lane_queue;
use crate::sim::plan::{Ask, Trouble};
use crate::sim::user::{What, Wish};

/// What ends later by itself.
pub(super) enum Relief {
    Link(usize),
    Broker,
    Alarm,
    History,
    Truth,
    Queues,
    Pool(String),
}

impl Run<'_> {
    fn later(&mut self, after_ms: u64, relief: Relief) {
        let at = (self.now_ms + after_ms).min(self.plan.active_ms);
        let number = self.relief.len() as u64 + self.now_ms;
        self.relief.insert((at, number), relief);
    }

    /// From now on something is different for a host, for the control plane (the number behind the hosts'), or for all.
    pub(super) fn disturb(&mut self, who: Option<usize>) {
        let Some(who) = who else { return };
        let now = self.wall();
        for host in self.hosts.iter().enumerate().filter(|(number, _)| who == *number || who == usize::MAX) {
            self.truth.rules.disturb_host(&host.1.name, now);
        }
        if who >= self.hosts.len() {
            self.truth.rules.disturb(now);
        }
        self.broker.lock().disturbed_ms = self.now_ms;
    }

    pub(super) fn relieve(&mut self, relief: Relief) {
        self.disturb(match relief {
            Relief::Link(who) => Some(who),
            Relief::Broker | Relief::Alarm | Relief::History | Relief::Truth => Some(usize::MAX),
            Relief::Queues | Relief::Pool(_) => None,
        });
        match relief {
            Relief::Link(who) => {
                if !self.broker_down
                    && let Some(link) = self.link(who)
                {
                    self.broker.lock().join(link);
                }
            }
            Relief::Broker => {
                self.broker_down = false;
                for link in (0..=self.hosts.len()).filter_map(|who| self.link(who)).collect::<Vec<_>>() {
                    self.broker.lock().join(link);
                }
            }
            Relief::Alarm => self.broker.lock().set_alarm(false),
            Relief::History => self.broker.lock().bind_history(true),
            Relief::Truth => self.broker.lock().lie(0),
            Relief::Queues => self.broker.lock().refuse(None),
            Relief::Pool(pool) => self.control.ask(Wish::Pool(pool, false)),
        }
    }

    pub(super) fn cause(&mut self, trouble: &Trouble) {
        say!(self.trace, "{trouble:?}");
        self.disturb(match *trouble {
            Trouble::Kill { host, .. } | Trouble::Restart { host } | Trouble::Disk { host, .. } => Some(host),
            Trouble::Cut { who, .. } => Some(who),
            Trouble::KillControl { .. } => Some(self.hosts.len()),
            Trouble::Broker { .. } | Trouble::Alarm { .. } | Trouble::History { .. } => Some(usize::MAX),
            _ => None,
        });
        match *trouble {
            Trouble::Kill { host, looks, down_ms, vms_too } => {
                if vms_too {
                    self.hosts[host].kill_vms();
                }
                if self.hosts[host].is_running() {
                    self.failures.extend(self.truth.update(&mut self.hosts, &self.broker).err());
                }
                self.truth.rules.worker_ended(&self.hosts[host]);
                if self.plan.in_process {
                    self.control.kill(0, &self.broker);
                }
                self.hosts[host].kill(looks, &self.broker);
                self.hosts[host].start_at_ms = (self.now_ms + down_ms).min(self.plan.active_ms);
            }
            Trouble::Restart { host } => self.hosts[host].ask_to_end(),
            Trouble::KillControl { looks, down_ms } => {
                self.control.kill(looks, &self.broker);
                self.control.start_at_ms = (self.now_ms + down_ms).min(self.plan.active_ms);
            }
            Trouble::Cut { who, for_ms } => {
                if let Some(link) = self.link(who) {
                    self.broker.lock().cut(link);
                    self.later(for_ms, Relief::Link(who));
                }
            }
            Trouble::Broker { for_ms } => {
                self.broker_down = true;
                self.broker.lock().go_down();
                self.later(for_ms, Relief::Broker);
            }
            Trouble::Alarm { for_ms } => {
                self.broker.lock().set_alarm(true);
                self.later(for_ms, Relief::Alarm);
            }
            Trouble::History { for_ms } => {
                self.broker.lock().bind_history(false);
                self.later(for_ms, Relief::History);
            }
            Trouble::Disk { host, written } => {
                self.hosts[host].disk.fail_next(if written { Fate::SyncFails } else { Fate::Refused });
            }
            Trouble::Purge { ref pool } => {
                for lane in ["high", "normal"] {
                    self.broker.lock().purge(&lane_queue(pool, lane));
                }
            }
            Trouble::Lie { one_in, for_ms } => {
                self.broker.lock().lie(one_in);
                self.later(for_ms, Relief::Truth);
            }
            Trouble::Refuse { delays, for_ms } => {
                self.broker.lock().refuse(Some(delays));
                self.later(for_ms, Relief::Queues);
            }
            Trouble::Recreate => self.broker.lock().recreate_history(),
            Trouble::Vms { host } => self.hosts[host].kill_vms(),
        }
    }

    pub(super) fn ask(&mut self, ask: &Ask) {
        match ask {
            Ask::Enqueue { count, kind } => {
                for _ in 0..*count {
                    let id = JobId(uuid::Uuid::from_u128(self.rng.u128(..)));
                    self.control.ask(Wish::Enqueue(id, kind.clone()));
                }
            }
            Ask::Same { times, kind } => {
                let id = JobId(uuid::Uuid::from_u128(self.rng.u128(..)));
                (0..*times).for_each(|_| self.control.ask(Wish::Enqueue(id, kind.clone())));
            }
            Ask::Garbage { count, bytes } => {
                for number in 0..*count {
                    let id = format!("garbage-{}-{number}", self.now_ms);
                    self.broker.lock().inject("stoker.jobs.default.normal", id, *bytes);
                }
            }
            Ask::Cancel(pick) => self.wish(*pick, What::Cancel),
            Ask::Stop(pick) => self.wish(*pick, What::Stop),
            Ask::Retry(pick) => self.wish(*pick, What::Retry),
            Ask::Snooze(pick) => self.wish(*pick, What::Snooze),
            Ask::Pause(for_ms) => {
                self.control.ask(Wish::Pool(DEFAULT_POOL.to_owned(), true));
                self.later(*for_ms, Relief::Pool(DEFAULT_POOL.to_owned()));
            }
        }
    }

    fn wish(&self, pick: u64, what: What) {
        if let Some(id) = self.control.book.pick(pick) {
            self.control.ask(Wish::Of(id, what));
        }
    }
}
