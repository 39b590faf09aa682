//! Asks simulated agents. Instead of polling it waits for the guest's next change, so that
//! thousands of waiting probes cost nothing and a paused clock jumps from change to change.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::{
    guest::{AgentState, Guest},
    script::Claim,
    world::SimWorld,
};
use crate::ports::probe::{Answer, ProbeLog, ProbeOutcome, ProbeTarget, Prober, WrongAnswer};

/// Asks simulated agents.
pub struct SimulatedProber {
    world: SimWorld,
}

impl SimulatedProber {
    /// A prober for the guests of this world.
    pub fn new(world: SimWorld) -> Self {
        Self { world }
    }
}

#[async_trait]
impl Prober for SimulatedProber {
    async fn until_ready(&self, target: &ProbeTarget, seen: &ProbeLog) -> Answer {
        let begun = Instant::now();
        loop {
            let anywhere = self.world.any_attached().notified();
            tokio::pin!(anywhere);
            // Registered before looking, or a change in between would be missed.
            anywhere.as_mut().enable();
            let Some((_, changed)) = self.world.at(target.agent) else {
                seen.note(nobody(), begun.elapsed());
                anywhere.await;
                continue;
            };
            let changed = changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let (outcome, next) = look(&self.world, target);
            seen.note(outcome.clone(), begun.elapsed());
            match (outcome, next) {
                (ProbeOutcome::Ready(answer), _) => return answer,
                (_, Some(at)) => tokio::select! {
                    biased;
                    () = changed => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                (_, None) => changed.await,
            }
        }
    }

    async fn ask_to_end(&self, _agent: std::net::SocketAddr, _path: &str) -> Result<(), String> {
        Err("simulated guests are asked by their button".to_owned())
    }

    async fn once(&self, target: &ProbeTarget) -> ProbeOutcome {
        look(&self.world, target).0
    }
}

fn nobody() -> ProbeOutcome {
    ProbeOutcome::Unreachable("No route to host (os error 113)".to_owned())
}

fn look(world: &SimWorld, target: &ProbeTarget) -> (ProbeOutcome, Option<Instant>) {
    let Some((Some(guest), _)) = world.at(target.agent) else {
        return (nobody(), None);
    };
    let (state, next) = guest.agent();
    let outcome = match state {
        AgentState::Unreachable => nobody(),
        AgentState::Refusing => ProbeOutcome::Refused,
        AgentState::Vanishing => ProbeOutcome::ConnectTimeout,
        AgentState::Hanging => ProbeOutcome::ReadTimeout,
        AgentState::Answering => judge(&guest, target),
    };
    (outcome, next)
}

fn answer(guest: &Guest) -> Answer {
    let vm_id = match &guest.script.claim {
        Claim::Own => Some(guest.vm.to_string()),
        Claim::Other(other) => Some(other.clone()),
        Claim::Nothing => None,
    };
    let body = guest.script.body.clone().unwrap_or_else(|| match &vm_id {
        Some(id) => format!("{{\"status\":\"healthy\",\"vmId\":\"{id}\"}}"),
        None => "{\"status\":\"healthy\"}".to_owned(),
    });
    Answer { status: guest.script.status, body, latency: Duration::ZERO, vm_id }
}

fn judge(guest: &Guest, target: &ProbeTarget) -> ProbeOutcome {
    let answer = answer(guest);
    let wanted = &target.readiness;
    let wrong = if answer.status != wanted.expected_status {
        Some(WrongAnswer::Status)
    } else if wanted.body_contains.as_ref().is_some_and(|text| !answer.body.contains(text)) {
        Some(WrongAnswer::Body)
    } else if wanted.check_identity {
        stranger(guest, &answer, target).map(WrongAnswer::Identity)
    } else {
        None
    };
    match wrong {
        Some(wrong) => ProbeOutcome::Wrong(answer, wrong),
        None => ProbeOutcome::Ready(answer),
    }
}

/// Who answered, if it was not the one asked: by the id it claims, else by its card's MAC.
fn stranger(guest: &Guest, answer: &Answer, target: &ProbeTarget) -> Option<String> {
    match &answer.vm_id {
        Some(id) => (*id != target.vm.to_string()).then(|| id.clone()),
        None => (guest.vm.mac() != target.mac).then(|| guest.vm.mac().to_string()),
    }
}
