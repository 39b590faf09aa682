//! Between "the guest runs" and the verdict: listens to console, DHCP, VMM and probe at once.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use stoker_schemas::diagnosis::diagnose;
use stoker_schemas::event::{AttemptReady, Identity, Stage};
use stoker_schemas::limits::{MAX_TEXT_BYTES, clip};
use stoker_schemas::spec::Network;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};

use super::bring_up::Held;
use super::{Report, Runner, Waited, Whose, ordered};
use crate::console::ConsoleEvent;
use crate::ports::net::Nic;
use crate::ports::probe::{Answer, ProbeTarget};

/// Stages are told in groups no older than this: fast boots cost one event, slow ones stay live.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// How long a VMM may take to report its state. The verdict does not wait longer for one that hangs.
const STATUS_WITHIN: Duration = Duration::from_secs(1);
/// Without a lease the probe starts after this all the same: the DHCP message may have been missed,
/// and what the probe sees (no route, refused) is evidence. Earlier tries would only fill the
/// neighbour table with unanswered entries.
const PROBE_ANYWAY_AFTER: Duration = Duration::from_secs(4);

/// A guest that came further within this part of its time is still coming up.
const STILL_COMING: (u32, Duration, Duration) = (10, Duration::from_millis(100), Duration::from_secs(10));

/// A deadline that moves while a guest still comes up, by half of its time at most.
struct Patience {
    deadline: Instant,
    most: Duration,
    step: Duration,
    extended: Duration,
    /// How far the guest had come, and when that was first seen.
    progress: (u64, Instant),
}

impl Patience {
    fn new(deadline: Instant, time: Duration) -> Self {
        let (part, least, most) = STILL_COMING;
        let step = (time / part).clamp(least, most);
        Self { deadline, most: time / 2, step, extended: Duration::ZERO, progress: (0, Instant::now()) }
    }

    fn note(&mut self, progress: u64) {
        if progress > self.progress.0 {
            self.progress = (progress, Instant::now());
        }
    }

    /// Time is up: whether there is some more.
    fn is_extended(&mut self, progress: u64) -> bool {
        self.note(progress);
        let more = self.step.min(self.most.saturating_sub(self.extended));
        if more.is_zero() || self.progress.1.elapsed() >= self.step {
            return false;
        }
        self.extended += more;
        self.deadline += more;
        true
    }
}

type Probing<'a> = Pin<Box<dyn Future<Output = Answer> + Send + 'a>>;

impl Runner {
    /// Waits for the verdict.
    pub(super) async fn wait(&mut self, held: &mut Held) -> Waited {
        let spec = &self.plan.spec.readiness;
        let spent = self.rig.clock.now().since(self.plan.started_at);
        // What an accelerator that did not run the guest took is not the guest's.
        let spent = spent.saturating_sub(held.vm.lost());
        let deadline = Instant::now() + Duration::from_millis(spec.deadline_ms).saturating_sub(spent);
        let target = self.target(held);
        let prober = self.rig.prober.clone();
        let mut probing: Option<Probing<'_>> = None;
        let mut probe_from = Instant::now();
        if held.attachment.sees_dhcp && self.plan.spec.network == Network::Dhcp && self.seen.lease().is_none() {
            probe_from += PROBE_ANYWAY_AFTER;
        }
        let mut tell = interval_at(Instant::now() + TELL_EVERY, TELL_EVERY);
        tell.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut patience = Patience::new(deadline, Duration::from_millis(spec.deadline_ms));
        let mut console_open = true;
        let mut signals_open = true;
        loop {
            let probe = std::sync::Arc::clone(&self.seen.probe);
            if probing.is_none() && self.seen.answer.is_none() && Instant::now() >= probe_from {
                let (prober, target) = (prober.clone(), target.clone());
                probing = Some(Box::pin(async move { prober.until_ready(&target, &probe).await }));
            }
            tokio::select! {
                biased;
                _ = ordered(&mut self.orders) => return Waited::Ordered,
                answer = answered(&mut probing) => {
                    probing = None;
                    self.seen.healthy(answer);
                }
                signal = held.attachment.signals.recv(), if signals_open => match signal {
                    Some(signal) => if self.seen.net(signal) { probe_from = Instant::now(); },
                    None => signals_open = false,
                },
                event = held.console.events.recv(), if console_open => match event {
                    Some(event) => {
                        // It may be the agent that started: ask at once, and often again.
                        if matches!(event, ConsoleEvent::UnitStarted(_)) {
                            probing = None;
                        }
                        self.seen.console(event);
                    }
                    None => console_open = false,
                },
                exit = held.vm.exited() => {
                    self.seen.exited(exit);
                    self.drain_console(held).await;
                    return Waited::Failed;
                }
                () = sleep_until(patience.deadline) => {
                    let seen = self.seen.progress(held.console.bytes());
                    if !patience.is_extended(seen) {
                        return Waited::Failed;
                    }
                    self.seen.extended(patience.extended);
                }
                () = sleep_until(probe_from), if probing.is_none() && self.seen.answer.is_none() => {}
                _ = tell.tick() => {
                    patience.note(self.seen.progress(held.console.bytes()));
                    self.tell_progress().await;
                }
            }
            if let Some(answer) = &self.seen.answer
                && self.seen.missing_units().is_empty()
            {
                let proof = self.proof(answer.clone(), held);
                return Waited::Ready(Box::new(proof));
            }
            if self.seen.is_hopeless() {
                self.drain_console(held).await;
                return Waited::Failed;
            }
        }
    }

    pub(super) fn target(&self, held: &Held) -> ProbeTarget {
        ProbeTarget {
            vm: self.plan.vm,
            mac: self.plan.vm.mac(),
            agent: held.attachment.agent,
            readiness: self.plan.spec.readiness.clone(),
        }
    }

    async fn tell_progress(&mut self) {
        // Nobody waits for it yet; its job is told all of it.
        if self.plan.whose == Whose::Nobody {
            return;
        }
        let marks = self.seen.take_marks();
        if !marks.is_empty() {
            self.report(Report::Progress(marks)).await;
        }
    }

    /// The guest's last words often name the cause.
    async fn drain_console(&mut self, held: &mut Held) {
        held.console.finish().await;
        while let Ok(event) = held.console.events.try_recv() {
            self.seen.console(event);
        }
    }

    fn proof(&mut self, answer: Answer, held: &Held) -> AttemptReady {
        let identity = match (&answer.vm_id, &held.attachment.nic) {
            _ if !self.plan.spec.readiness.check_identity => Identity::Unchecked,
            (Some(_), _) => Identity::VmId,
            (None, Nic::User { .. }) => Identity::ForwardedPort,
            (None, _) => Identity::Mac,
        };
        AttemptReady {
            agent: held.attachment.agent,
            status: answer.status,
            body: clip(&answer.body, MAX_TEXT_BYTES),
            identity,
            marks: self.seen.take_marks(),
        }
    }

    /// Collects the evidence, names the cause, says so.
    pub(super) async fn report_failure(&mut self, held: Option<&Held>) {
        let evidence = match held {
            Some(_) => Some(self.rig.network.evidence(self.plan.vm, self.plan.address).await),
            None => None,
        };
        let console_bytes = held.map_or(0, |h| h.console.bytes());
        let sees_dhcp = held.is_some_and(|h| h.attachment.sees_dhcp);
        if let Some(held) = held {
            // A VMM that has ended cannot be asked.
            let status = match self.seen.vmm_ended() {
                true => None,
                false => timeout(STATUS_WITHIN, held.vm.status()).await.ok().flatten(),
            };
            self.seen.vmm(held.vm.accelerator(), status);
        }
        // On a user network it is QEMU that takes connections, guest or not.
        let is_user = held.is_some_and(|held| matches!(held.attachment.nic, Nic::User { .. }));
        if let Some(after) = self.seen.probe.summary().connected_after.filter(|_| !is_user) {
            self.seen.mark(Stage::AgentConnected, format!("{} ms after the first try", after.as_millis()));
        }
        let diagnosis = diagnose(&self.seen.signals(evidence.as_ref(), console_bytes, sees_dhcp));
        let marks = self.seen.take_marks();
        self.report(Report::Failed { diagnosis: Box::new(diagnosis), marks }).await;
    }
}

/// The probe's answer; never, while none runs.
async fn answered(probing: &mut Option<Probing<'_>>) -> Answer {
    match probing {
        Some(probe) => probe.await,
        None => std::future::pending().await,
    }
}
