//! Simulated guests: a scripted life ([`script`] has the table) inside this process, for tests
//! and for trying Stoker without a hypervisor. Thousands at once; deterministic under tokio's
//! paused clock.

mod guest;
mod network;
mod prober;
pub mod script;
#[cfg(test)]
mod tests;
mod world;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use stoker_schemas::{VmId, image::Driver};
use tokio::sync::mpsc;

use self::{guest::Guest, script::Script};
pub use self::{
    network::SimulatedNetwork,
    prober::SimulatedProber,
    world::{SimChange, SimStats, SimWorld},
};
use crate::ports::vm::{ConsoleFeed, Hypervisor, Vm, VmError, VmExit, VmPlan, VmRecord};

/// Its name in errors.
const DRIVER: &str = "simulated";
/// Console chunks waiting for a reader; a life writes about five.
const CONSOLE_CHUNKS: usize = 16;
/// Stands in for a pid: beyond what Linux gives out (`PID_MAX_LIMIT`), so that a record never
/// means a real process.
const PID: u32 = 1 << 23;

/// The driver.
pub struct Simulated {
    world: SimWorld,
}

impl Simulated {
    /// A driver whose guests live in this world.
    pub fn new(world: SimWorld) -> Self {
        Self { world }
    }

    fn handle(&self, guest: Arc<Guest>, dir: PathBuf) -> Arc<dyn Vm> {
        Arc::new(SimVm { world: self.world.clone(), guest, dir, console_taken: AtomicBool::new(false) })
    }
}

#[async_trait]
impl Hypervisor for Simulated {
    fn driver(&self) -> Driver {
        Driver::Simulated
    }

    fn describe(&self) -> String {
        "simulated guests".to_owned()
    }

    async fn boot(&self, plan: VmPlan) -> Result<Arc<dyn Vm>, VmError> {
        let script =
            Script::parse(&plan.kernel_args, plan.vm).map_err(|what| VmError::Unsupported { driver: DRIVER, what })?;
        let refused = |message: &str| VmError::Refused {
            driver: DRIVER,
            request: "boot".to_owned(),
            message: message.to_owned(),
        };
        if !script.boot.is_zero() {
            tokio::time::sleep(script.boot).await;
        }
        if script.refuse {
            self.world.note_refusal();
            return Err(refused("asked to by sim.boot=refused"));
        }
        let guest = self.world.boot(plan.vm, script).ok_or_else(|| refused("this VM runs already"))?;
        Ok(self.handle(guest, plan.dir))
    }

    async fn adopt(&self, record: VmRecord) -> Result<Option<Arc<dyn Vm>>, VmError> {
        // 0: a record made of the id alone, where the attempt had no directory to write one to.
        let same = |guest: &Arc<Guest>| record.start_ticks == 0 || guest.serial == record.start_ticks;
        let guest = self.world.guest(record.vm).filter(|guest| same(guest) && guest.end().is_none());
        Ok(guest.map(|guest| self.handle(guest, record.dir)))
    }

    async fn clean_up(&self, _: VmId) -> Result<(), VmError> {
        let takes = self.world.removal();
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        Ok(())
    }
}

struct SimVm {
    world: SimWorld,
    guest: Arc<Guest>,
    dir: PathBuf,
    console_taken: AtomicBool,
}

#[async_trait]
impl Vm for SimVm {
    fn record(&self) -> VmRecord {
        let (vm, driver, dir) = (self.guest.vm, Driver::Simulated, self.dir.clone());
        VmRecord { vm, driver, pid: PID, start_ticks: self.guest.serial, dir }
    }

    fn console(&self) -> Option<ConsoleFeed> {
        if self.console_taken.swap(true, Ordering::Relaxed) {
            return None;
        }
        Some(ConsoleFeed::Channel(feed(&self.guest)))
    }

    async fn exited(&self) -> VmExit {
        let exit = self.guest.wait().await;
        self.world.bury(&self.guest);
        exit
    }

    async fn stop(&self, grace: Duration) -> Result<VmExit, VmError> {
        let needed = self.guest.script.stop;
        let wait = needed.map_or(grace, |needed| needed.min(grace));
        if self.guest.end().is_none() && !wait.is_zero() {
            let _ = tokio::time::timeout(wait, self.guest.wait()).await;
        }
        if self.guest.end().is_none() {
            self.world.note_stop(self.guest.vm);
        }
        let obeyed = !grace.is_zero() && needed.is_some_and(|needed| needed <= grace);
        let exit = self.guest.finish(if obeyed { stopped() } else { killed() });
        self.world.bury(&self.guest);
        Ok(exit)
    }
}

fn stopped() -> VmExit {
    VmExit { code: Some(0), signal: None, reason: "exit code 0: the guest stopped as asked".to_owned() }
}

fn killed() -> VmExit {
    VmExit { code: None, signal: Some(9), reason: "killed by signal 9 (SIGKILL)".to_owned() }
}

/// The console from the beginning. What is due is there at once; only a guest that will write
/// more later needs a task.
fn feed(guest: &Arc<Guest>) -> mpsc::Receiver<Bytes> {
    let (writer, reader) = mpsc::channel(CONSOLE_CHUNKS);
    let lines = guest.script.console();
    let now = guest.clock.now().saturating_sub(guest.booted);
    let due = lines.partition_point(|(at, _)| *at <= now);
    let ready: String = lines[..due].iter().map(|(_, line)| line.as_str()).collect();
    if !ready.is_empty() {
        let _ = writer.try_send(Bytes::from(ready));
    }
    let later: Vec<_> = lines[due..].to_vec();
    if !later.is_empty() {
        let guest = Arc::clone(guest);
        tokio::spawn(async move {
            for (at, line) in later {
                // Timer first: what a guest writes with its last breath is written.
                tokio::select! {
                    biased;
                    () = tokio::time::sleep_until(guest.clock.instant(guest.booted + at)) => {}
                    _ = guest.wait() => return,
                }
                if writer.send(Bytes::from(line)).await.is_err() {
                    return;
                }
            }
        });
    }
    reader
}
