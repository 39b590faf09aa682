//! A try that begins before its job: the VM boots, is proven, and waits. A job that comes makes the
//! task a try like any other, one that is up already and is proven once more.
//!
//! Nobody but the supervisor ends it: one that failed says so and waits for its order, so that a
//! job handed over in the same moment is not lost with it.

use std::time::Duration;

use stoker_schemas::event::StageMark;
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::bring_up::Held;
use super::{Plan, Report, Runner, Waited, ordered};
use crate::ports::probe::{ProbeLog, ProbeOutcome, ProbeTarget, Prober};

/// How often one that waits is asked whether it still is there.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A look takes no longer.
const LOOK_DEADLINE: Duration = Duration::from_secs(3);
/// Looks in a row without the answer asked for, after which it is replaced. A busy host makes one slow.
const LOOKS_MISSED: u32 = 2;

/// How its time without a job ended.
enum Idle {
    /// A job takes it.
    Taken(Box<Plan>),
    /// It is to go.
    Dismissed,
    /// It is of no use any more.
    Lost,
}

impl Runner {
    pub(super) async fn run_warm(mut self, mut handover: mpsc::Receiver<Plan>) {
        let mut held = self.bring_up().await;
        let waited = match &mut held {
            Some(held) => self.wait(held).await,
            None => Waited::Failed,
        };
        let mut marks = Vec::new();
        let idle = match (waited, &mut held) {
            (Waited::Ready(proof), Some(held)) => {
                self.learn(held, true);
                marks.clone_from(&proof.marks);
                self.report(Report::Ready(proof)).await;
                self.idle(held, &mut handover).await
            }
            (Waited::Ordered, _) => Idle::Dismissed,
            (waited, held) => {
                if let (Waited::Failed, Some(held)) = (waited, held) {
                    self.learn(held, false);
                }
                Idle::Lost
            }
        };
        let taken = match idle {
            Idle::Taken(plan) => Some(plan),
            Idle::Dismissed => handover.try_recv().ok().map(Box::new),
            Idle::Lost => {
                self.report_failure(held.as_ref()).await;
                self.last_order(&mut handover).await
            }
        };
        match (taken, &mut held) {
            (Some(plan), Some(taken)) => {
                self.take_on(*plan, marks);
                let waited = self.wait(taken).await;
                self.go_on(held, Some(waited)).await;
            }
            // Only one that was ready is ever handed over, and that one is held.
            (Some(_), None) | (None, _) => {
                let why = ordered(&mut self.orders).await;
                self.remove(held, why, "").await;
            }
        }
    }

    /// Waits for a job, and looks now and then whether the VM still is what it was.
    async fn idle(&mut self, held: &mut Held, handover: &mut mpsc::Receiver<Plan>) -> Idle {
        let target = self.target(held);
        let (prober, probe) = (self.rig.prober.clone(), self.seen.probe.clone());
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        look.reset();
        let mut missed = 0;
        loop {
            tokio::select! {
                biased;
                Some(plan) = handover.recv() => return Idle::Taken(Box::new(plan)),
                _ = ordered(&mut self.orders) => return Idle::Dismissed,
                exit = held.vm.exited() => {
                    self.seen.exited(exit);
                    return Idle::Lost;
                }
                Some(event) = held.console.events.recv() => self.seen.console(event),
                // A job that comes meanwhile does not wait for the look to end: it is dropped here.
                healthy = looked(&mut look, &*prober, &target, &probe) => {
                    missed = if healthy { 0 } else { missed + 1 };
                    if missed >= LOOKS_MISSED {
                        self.seen.forget_answer();
                        return Idle::Lost;
                    }
                }
            }
        }
    }

    /// It has failed and said so. A job that had been given it by then finds out itself.
    async fn last_order(&mut self, handover: &mut mpsc::Receiver<Plan>) -> Option<Box<Plan>> {
        tokio::select! {
            biased;
            Some(plan) = handover.recv() => Some(Box::new(plan)),
            _ = ordered(&mut self.orders) => handover.try_recv().ok().map(Box::new),
        }
    }

    /// Becomes the try of a job. What was seen of the VM before is told again, as of now: for the
    /// job nothing happened earlier.
    fn take_on(&mut self, plan: Plan, marks: Vec<StageMark>) {
        let up_for = self.rig.clock.now().since(self.plan.started_at);
        self.plan = plan;
        self.seen.begin_anew(&self.plan, marks, up_for);
    }
}

/// Looks once, when it is time to.
async fn looked(look: &mut Interval, prober: &dyn Prober, target: &ProbeTarget, probe: &ProbeLog) -> bool {
    look.tick().await;
    let asked = tokio::time::timeout(LOOK_DEADLINE, prober.once(target)).await;
    let outcome = asked.unwrap_or(ProbeOutcome::ReadTimeout);
    let healthy = matches!(outcome, ProbeOutcome::Ready(_));
    if !healthy {
        probe.note(outcome, Duration::ZERO);
    }
    healthy
}
