//! One simulated guest. Its state at any moment is computed from its script and its start, so it
//! needs no task and no timer of its own.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use stoker_schemas::VmId;
use tokio::{sync::Notify, time::Instant};

use super::{
    script::{Agent, Dhcp, EndKind, Script},
    world::WorldClock,
};
use crate::ports::vm::VmExit;

/// What the guest's agent does at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentState {
    /// No route to it.
    Unreachable,
    /// Nothing listens.
    Refusing,
    /// Connections time out.
    Vanishing,
    /// Takes connections, says nothing.
    Hanging,
    /// Answers.
    Answering,
}

/// A guest that was booted.
#[derive(Debug)]
pub struct Guest {
    pub vm: VmId,
    pub script: Script,
    /// By the world's clock.
    pub booted: Duration,
    pub clock: Arc<WorldClock>,
    /// Stands for the process: another boot has another.
    pub serial: u64,
    end: Mutex<Option<VmExit>>,
    ended: Notify,
}

impl Guest {
    pub fn new(vm: VmId, script: Script, serial: u64, clock: Arc<WorldClock>) -> Self {
        Self { vm, script, booted: clock.now(), clock, serial, end: Mutex::new(None), ended: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Option<VmExit>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn scripted_end(&self) -> Option<(Duration, VmExit)> {
        let (after, kind) = self.script.end?;
        let (code, signal, reason) = match kind {
            EndKind::Panic => (Some(0), None, "exit code 0: the guest panicked"),
            EndKind::Crash => (None, Some(11), "killed by signal 11 (SIGSEGV)"),
            EndKind::Exit => (Some(0), None, "exit code 0: the guest powered off"),
        };
        Some((self.booted + after, VmExit { code, signal, reason: reason.to_owned() }))
    }

    /// How it ended, if it has by now.
    pub fn end(&self) -> Option<VmExit> {
        let mut end = self.lock();
        if end.is_none()
            && let Some((at, exit)) = self.scripted_end()
            && at <= self.clock.now()
        {
            *end = Some(exit);
        }
        end.clone()
    }

    /// Ends it now, unless it has ended; tells how it ended.
    pub fn finish(&self, exit: VmExit) -> VmExit {
        let exit = match self.end() {
            Some(earlier) => earlier,
            None => self.lock().get_or_insert(exit).clone(),
        };
        self.ended.notify_waiters();
        exit
    }

    /// Waits for its end.
    pub async fn wait(&self) -> VmExit {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // Registered before looking, or an end in between would be missed.
            ended.as_mut().enable();
            if let Some(exit) = self.end() {
                return exit;
            }
            match self.scripted_end() {
                Some((at, _)) => tokio::select! {
                    biased;
                    () = ended => {}
                    () = tokio::time::sleep_until(self.clock.instant(at)) => {}
                },
                None => ended.await,
            }
        }
    }

    /// What the agent does now, and when that changes by itself.
    pub fn agent(&self) -> (AgentState, Option<Instant>) {
        if self.end().is_some() {
            return (AgentState::Unreachable, None);
        }
        let now = self.clock.now();
        let leased = match self.script.dhcp {
            Dhcp::Lease(after) => self.booted + after,
            _ => return (AgentState::Unreachable, self.next_after(now)),
        };
        let up = self.script.answers_from().is_some_and(|after| self.booted + after <= now);
        let down = self.script.down.is_some_and(|after| self.booted + after <= now);
        let state = match (leased <= now, up && !down, self.script.agent) {
            (false, ..) => AgentState::Unreachable,
            (true, _, Agent::Vanishes) => AgentState::Vanishing,
            (true, false, _) => AgentState::Refusing,
            (true, true, Agent::Hangs) => AgentState::Hanging,
            (true, true, Agent::Answers) => AgentState::Answering,
        };
        (state, self.next_after(now))
    }

    fn next_after(&self, now: Duration) -> Option<Instant> {
        let lease = match self.script.dhcp {
            Dhcp::Lease(after) => Some(after),
            _ => None,
        };
        let changes = [lease, self.script.answers_from(), self.script.down, self.script.end.map(|(at, _)| at)];
        changes
            .into_iter()
            .flatten()
            .map(|after| self.booted + after)
            .filter(|at| *at > now)
            .min()
            .map(|at| self.clock.instant(at))
    }
}
