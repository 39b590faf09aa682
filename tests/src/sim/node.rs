//! One process on virtual time: a runtime of its own whose clock is paused and moves only when the
//! simulation lets it. Ending the process is dropping the runtime: every task ends at the await
//! where it stands.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// Tasks polled between two looks at the clock. Small, so that a process can be ended nearly anywhere.
const TASKS_PER_LOOK: u32 = 4;

/// A running process.
pub struct Process(Runtime);

impl Process {
    /// Starts one. Nothing runs in it before the first step.
    ///
    /// # Panics
    /// When the system has no more file descriptors.
    pub fn start() -> Self {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .event_interval(TASKS_PER_LOOK)
            .build()
            .expect("a runtime for a simulated process");
        Self(runtime)
    }

    /// Adds a task.
    pub fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.0.spawn(task)
    }

    /// Does something with the process' clock as the current one.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        let _inside = self.0.enter();
        work()
    }

    /// Runs everything that is to be run within this time.
    pub fn step(&self, time: Duration) {
        self.0.block_on(async move { tokio::time::sleep(time).await });
    }

    /// Runs a little without time passing. A process that is dropped then ends in the middle of what it does.
    pub fn look(&self, looks: u32) {
        self.0.block_on(async {
            for _ in 0..looks {
                tokio::task::yield_now().await;
            }
        });
    }
}
