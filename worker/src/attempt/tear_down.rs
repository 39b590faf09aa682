//! Removes everything of a try, in the order in which it stops being needed. "Gone" is said only
//! when it is: what fails is tried again, ever slower, and the host's capacity stays taken.

use std::time::Duration;

use stoker_schemas::event::GoneWhy;

use super::bring_up::Held;
use super::{Report, Runner};

/// Waits between tries at removing something that will not go.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

impl Runner {
    /// Removes all, then says so.
    pub(super) async fn remove(&mut self, held: Option<Held>, why: GoneWhy, detail: &str) {
        let grace = if why == GoneWhy::Stopped { self.rig.stop_grace } else { Duration::ZERO };
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
        self.rig.network.detach(self.plan.vm, self.plan.address).await.map_err(|e| e.to_string())
    }
}
