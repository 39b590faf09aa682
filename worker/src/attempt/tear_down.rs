//! Removes everything of a try, in the order in which it stops being needed. "Gone" is said only
//! when it is: what fails is tried again, ever slower, and the host's capacity stays taken.

use std::time::Duration;

use stoker_schemas::event::GoneWhy;
use stoker_schemas::seeded::{self, Bug};

use super::bring_up::Held;
use super::{Report, Runner};
use tokio::time::Instant;

/// The agent's part of the grace; a guest that it cannot end is asked by its power button then.
const AGENTS_PART: f32 = 0.7;
/// Waits between tries at removing something that will not go.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

impl Runner {
    /// Removes all, then says so.
    pub(super) async fn remove(&mut self, held: Option<Held>, why: GoneWhy, detail: &str) {
        let grace = if why == GoneWhy::Stopped { self.rig.stop_grace } else { Duration::ZERO };
        let grace = match &held {
            Some(held) if !grace.is_zero() => self.ask_the_agent(held, grace).await,
            _ => grace,
        };
        let mut vm = held.as_ref().map(|held| held.vm.clone());
        let mut console = held.map(|held| held.console);
        let mut wait = FIRST_WAIT;
        loop {
            match self.remove_once(&mut vm, grace).await {
                Ok(()) => break,
                Err(error) => tracing::error!(vm = %self.plan.vm, %error, "removal failed, trying again in {wait:?}"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
        if let Some(console) = &mut console {
            console.finish().await;
        }
        let mut wait = FIRST_WAIT;
        while let Some(dirs) = &self.rig.dirs
            && let Err(error) = dirs.remove_vm(self.plan.vm)
        {
            tracing::error!(vm = %self.plan.vm, %error, "folder could not be removed, trying again in {wait:?}");
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
        self.report(Report::Removed { why, detail: detail.to_owned() }).await;
    }

    /// Where its image has a way to: the agent ends its guest in order. What is left of the grace is for
    /// the hypervisor's own way of asking.
    async fn ask_the_agent(&self, held: &Held, grace: Duration) -> Duration {
        let Some(path) = self.image().ok().and_then(|image| image.manifest.shutdown.clone()) else { return grace };
        let began = Instant::now();
        let asked = async {
            match self.rig.prober.ask_to_end(held.attachment.agent, &path).await {
                Ok(()) => drop(held.vm.exited().await),
                Err(why) => tracing::debug!(vm = %self.plan.vm, why, "the agent was not to be asked to end its guest"),
            }
        };
        let _ = tokio::time::timeout(grace.mul_f32(AGENTS_PART), asked).await;
        grace.saturating_sub(began.elapsed())
    }

    async fn remove_once(
        &self,
        vm: &mut Option<std::sync::Arc<dyn crate::ports::vm::Vm>>,
        grace: Duration,
    ) -> Result<(), String> {
        // After a failed boot or an interrupted one there may be a VMM that we hold no handle of.
        if vm.is_none() {
            *vm = self.find_vm().await.map_err(|e| e.to_string())?;
        }
        if let Some(vm) = vm {
            vm.stop(grace).await.map_err(|e| e.to_string())?;
        }
        // Also where there is no VMM: one that ended by itself, or before anybody noted it, left the same.
        self.rig.hypervisor.clean_up(self.plan.vm).await.map_err(|e| e.to_string())?;
        if seeded::is_on(Bug::CardKept) {
            return Ok(());
        }
        self.rig.network.detach(self.plan.vm, self.plan.address).await.map_err(|e| e.to_string())
    }
}
