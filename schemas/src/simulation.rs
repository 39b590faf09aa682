//! Three hosts, a queue and a control plane, with crashes, repeated messages, lost deliveries and
//! people who cancel, stop and retry at any moment. Then quiet: whatever happened before, every
//! job comes to an end, with one VM when it is ready and none otherwise.
//!
//! The simulation of the real worker and control plane (`tests/src/sim`) shows more: queues that fill, clocks that
//! differ, disks that fail. This one adds thousands of histories of the rules alone in a second, each cut down by
//! proptest to the steps that matter, in the crate whose rules they are.

use proptest::prelude::*;

use crate::command::{Command, Rejection};
use crate::diagnosis::Cause;
use crate::event::{GoneWhy, HOST_SOURCE, JOB_LEVEL};
use crate::fixtures::*;
use crate::next::{Next, next};
use crate::state::{Phase, duplicates};
use crate::{Epoch, Event, EventData, JobState};

/// Rounds of quiet in which a job must have ended: attempts are bounded by the retry policy.
const PATIENCE: usize = 400;

#[derive(Clone)]
struct Message {
    event: Event,
    attempt: u32,
    delivery: u32,
}

struct Host {
    name: String,
    history: History,
    holds: Vec<Message>,
    /// The VM died while nobody looked.
    vm_died: bool,
}

struct World {
    hosts: Vec<Host>,
    queue: Vec<Message>,
    control: History,
    story: Vec<Event>,
}

impl World {
    fn new() -> Self {
        let host = |name: &str| {
            let history = History::on(name);
            Host { name: name.to_owned(), history, holds: Vec::new(), vm_died: false }
        };
        let hosts = ["h-1", "h-2", "h-3"].map(host).into();
        let mut world = Self { hosts, queue: Vec::new(), control: History::on("control"), story: Vec::new() };
        world.ask(enqueue());
        world
    }

    /// What the control plane has seen, told to whom it concerns.
    fn publish(&mut self, events: Vec<Event>) {
        for event in events {
            self.control.state.apply(&event);
            self.story.push(event.clone());
            let work = match &event.data {
                EventData::JobEnqueued(_) => Some(1),
                EventData::JobRetryScheduled(e) => Some(e.attempt),
                EventData::CancelRequested(_)
                | EventData::StopRequested(_)
                | EventData::SnoozeRequested(_)
                | EventData::AttemptSuperseded(_) => {
                    self.hosts.iter_mut().for_each(|h| h.history.state.apply(&event));
                    None
                }
                _ => None,
            };
            if let Some(attempt) = work {
                self.queue.push(Message { event, attempt, delivery: 0 });
            }
        }
    }

    /// Somebody asks the control plane; what the rules refuse does not happen.
    fn ask(&mut self, command: Command) {
        self.control.seconds =
            self.control.seconds.max(self.hosts.iter().map(|h| h.history.seconds).max().unwrap_or(0));
        let before = self.control.events.len();
        if self.control.tell(command).is_ok() {
            let events = self.control.events.split_off(before);
            self.publish(events);
        }
    }

    fn tell(&mut self, host: usize, command: Command) -> Result<(), Rejection> {
        let seconds = self.control.seconds;
        let history = &mut self.hosts[host].history;
        history.seconds = history.seconds.max(seconds);
        let events = history.tell(command)?;
        self.control.seconds = history.seconds;
        self.publish(events);
        Ok(())
    }

    fn running(&self, host: usize) -> Option<(Epoch, bool)> {
        let attempts = &self.hosts[host].history.state.attempts;
        attempts.iter().find(|(_, a)| a.has_vm()).map(|(epoch, a)| (*epoch, a.is_up()))
    }

    fn deliver(&mut self, host: usize, choice: usize) {
        if self.queue.is_empty() {
            return;
        }
        let message = self.queue.remove(choice % self.queue.len());
        let kept = self.hosts[host].history.state.clone();
        // The rules see the delivered event; the host's own log need not.
        self.hosts[host].history.state.apply(&message.event);
        let epoch = self.hosts[host].history.state.epoch_for(message.attempt, message.delivery);
        let begun = self.tell(host, begin_on(&self.hosts[host].name.clone(), epoch));
        if begun == Err(Rejection::CancelPending) {
            self.tell(host, Command::SettleCancel { attempt: message.attempt }).expect("settled as the rules say");
        }
        let overtaken = self.running(host).is_some_and(|(e, _)| self.hosts[host].history.state.is_overtaken(e));
        let events = std::mem::take(&mut self.hosts[host].history.events);
        self.hosts[host].history.state = events.iter().fold(kept, |mut state, event| {
            state.apply(event);
            state
        });
        match begun {
            Ok(()) => {
                self.hosts[host].vm_died = false;
                self.hosts[host].holds.push(message);
            }
            Err(Rejection::AttemptRunning(_)) => self.reattach(host, message, overtaken),
            Err(_) => {}
        }
    }

    /// The job is on this host already: the message is what its end will acknowledge.
    fn reattach(&mut self, host: usize, message: Message, overtaken: bool) {
        match self.running(host) {
            Some((epoch, up)) if message.attempt > epoch.attempt && (overtaken || !up) => self.queue.push(message),
            Some((epoch, up)) if message.attempt == epoch.attempt && !up => self.hosts[host].holds.push(message),
            _ => {}
        }
    }

    /// The host does what `next` says; `boots` tells how a boot ends.
    fn work(&mut self, host: usize, boots: bool) {
        let Some((epoch, up)) = self.running(host) else { return };
        let holds = !self.hosts[host].holds.is_empty();
        let told = match next(&self.hosts[host].history.state, epoch) {
            Next::Boot if self.hosts[host].vm_died && !holds => self.tell(host, lost(epoch)),
            Next::Boot if boots && !self.hosts[host].vm_died => self.tell(host, ready(epoch)),
            Next::Boot => self.tell(host, fail(epoch, Cause::AgentNotListening)),
            Next::Remove(GoneWhy::Failed) if !holds => self.tell(host, lost(epoch)),
            Next::Remove(why) => self.tell(host, gone(epoch, why)),
            Next::Watch if self.hosts[host].vm_died => self.tell(host, gone(epoch, GoneWhy::Exited)),
            Next::Watch | Next::Settled => return,
        };
        told.expect("what next asks for is allowed");
        let ended = self.running(host).is_none_or(|(_, is_up)| is_up && !up);
        if ended {
            self.hosts[host].holds.clear();
        }
    }

    /// The worker ends without a word; its message goes back, its VM may live on.
    fn crash(&mut self, host: usize, vm_dies: bool) {
        let host = &mut self.hosts[host];
        host.vm_died |= vm_dies;
        for message in host.holds.drain(..) {
            self.queue.push(Message { delivery: message.delivery + 1, ..message });
        }
    }

    fn step(&mut self, action: u8, choice: u8) {
        let host = usize::from(choice) % 3;
        let choice = usize::from(choice);
        match action % 20 {
            0..=4 => self.deliver(host, choice / 3),
            5..=10 => self.work(host, choice % 2 == 0),
            11 | 12 => self.crash(host, choice % 2 == 0),
            13 if !self.queue.is_empty() => {
                let twin = self.queue[choice % self.queue.len()].clone();
                self.queue.push(twin);
            }
            14 => self.ask(cancel()),
            15 => self.ask(retry()),
            16 => self.ask(Command::Stop(request("bob"))),
            18 => self.ask(snooze(3_600)),
            17 => self.hosts[host].vm_died |= choice.is_multiple_of(4),
            _ => {}
        }
    }

    /// Nothing new from outside; everybody does what is to be done until nothing is.
    fn settle(&mut self, boots: bool) {
        for _ in 0..PATIENCE {
            for duplicate in duplicates(&self.control.state) {
                self.ask(duplicate.into());
            }
            (0..3).for_each(|host| self.work(host, boots));
            let idle = (0..3).find(|host| self.running(*host).is_none()).unwrap_or(0);
            self.deliver(idle, 0);
            if self.queue.is_empty() && self.is_still() {
                return;
            }
        }
        let waiting: Vec<_> = self.queue.iter().map(|m| (m.attempt, m.delivery)).collect();
        panic!(
            "no end: {}, waiting {waiting:?}, {:?}{}",
            self.control.state.phase(),
            duplicates(&self.control.state),
            self.story()
        );
    }

    fn is_still(&self) -> bool {
        let busy = |host: &Host| {
            let state = &host.history.state;
            state.attempts.keys().any(|epoch| !matches!(next(state, *epoch), Next::Watch | Next::Settled))
                || host.vm_died && state.attempts.values().any(|a| a.has_vm())
        };
        !self.hosts.iter().any(busy) && duplicates(&self.control.state).is_empty()
    }

    /// What everybody told, for the reader of a failure.
    fn story(&self) -> String {
        self.story.iter().map(|e| format!("\n  {} {} by {}", e.epoch, e.data.kind(), e.source)).collect()
    }

    fn vms(&self) -> usize {
        self.hosts.iter().map(|h| h.history.state.attempts.values().filter(|a| a.has_vm()).count()).sum()
    }
}

fn check(actions: &[(u8, u8)], boots: bool) -> Result<(), TestCaseError> {
    let mut world = World::new();
    for (action, choice) in actions {
        world.step(*action, *choice);
        for host in &world.hosts {
            prop_assert!(host.history.state.attempts.values().filter(|a| a.has_vm()).count() <= 1);
        }
    }
    world.settle(boots);
    let phase = world.control.state.phase();
    let told = world.story();
    match phase {
        Phase::Ready => prop_assert_eq!(world.vms(), 1, "{}", told),
        Phase::Dead | Phase::Cancelled | Phase::Stopped => prop_assert_eq!(world.vms(), 0, "{}: {}", phase, told),
        open => prop_assert!(false, "a confirmed job rests as {}: {}", open, told),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(2_000), ..ProptestConfig::default() })]

    #[test]
    fn every_confirmed_job_comes_to_an_end(
        actions in prop::collection::vec(any::<(u8, u8)>(), 0..80), boots: bool,
    ) {
        check(&actions, boots)?;
    }
}

#[test]
fn an_undisturbed_job_is_ready_and_a_hopeless_one_dead() {
    let mut good = World::new();
    good.settle(true);
    assert_eq!((good.control.state.phase(), good.vms()), (Phase::Ready, 1));
    let mut bad = World::new();
    bad.settle(false);
    assert_eq!((bad.control.state.phase(), bad.vms()), (Phase::Dead, 0));
    assert_eq!(bad.control.state.dead[&2].value.attempt, 2);
}

#[test]
fn source_names_are_hosts() {
    // The simulation's hosts must be told apart as real ones are.
    let event = Event::about_job(
        job(),
        JOB_LEVEL,
        &format!("{HOST_SOURCE}h-1"),
        at(0),
        EventData::VmGone(crate::event::VmGone { why: GoneWhy::Exited, detail: String::new() }),
    );
    assert_eq!(event.host(), Some(host("h-1")));
    assert!(JobState::replay(job(), [&event]).is_some());
}
