//! A running Firecracker VM.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use serde::Deserialize;
use stoker_schemas::VmId;

use super::{DRIVER, api::Api, config::Action, jail::Jailer, metrics::Reader};
use crate::{
    ports::vm::{ConsoleFeed, Vm, VmError, VmExit, VmRecord},
    vm::{
        boot_error, exit, files,
        process::{Ended, VmmProcess},
    },
};

pub struct FirecrackerVm {
    pub record: VmRecord,
    pub process: VmmProcess,
    pub api_timeout: Duration,
    /// Where the VMM keeps its socket and its log: the attempt's folder, or its jail below that.
    pub home: PathBuf,
    /// Who cleans up behind it.
    pub jailer: Option<Arc<Jailer>>,
    /// Reads what it counts.
    pub metrics: Option<Reader>,
}

/// What its exit codes mean (`src/vmm/src/lib.rs`, `FcExitCode`).
fn name_code(code: i32) -> Option<&'static str> {
    match code {
        0 => Some("the guest rebooted or shut down"),
        1 => Some("generic error"),
        2 => Some("other error"),
        148 => Some("a system call outside its seccomp filter"),
        149 => Some("SIGBUS: memory or disk behind a mapping is gone"),
        150 => Some("SIGSEGV"),
        151 => Some("SIGXFSZ: a file grew beyond its limit"),
        152 => Some("bad configuration"),
        153 => Some("bad command line arguments"),
        154 => Some("SIGXCPU: CPU limit reached"),
        156 => Some("SIGHUP"),
        157 => Some("SIGILL"),
        _ => None,
    }
}

pub fn describe(ended: Ended, dir: &Path, home: &Path) -> VmExit {
    exit::describe(ended, name_code, &[home.join(files::VMM_LOG), dir.join(files::VMM_STDERR)])
}

/// Removes what an ended VMM leaves outside its folder.
pub async fn clean_up(jailer: Option<&Arc<Jailer>>, vm: VmId) -> Result<(), VmError> {
    let Some(jailer) = jailer.cloned() else { return Ok(()) };
    let cleaned = tokio::task::spawn_blocking(move || jailer.clean_up(vm)).await;
    let cleaned = cleaned.unwrap_or_else(|e| Err(std::io::Error::other(e)));
    cleaned.map_err(|e| boot_error::spawn(DRIVER, "removing a control group", &e))
}

impl FirecrackerVm {
    async fn ask_to_stop(&self, grace: Duration) {
        let asked = async {
            let api = Api::new(&self.home, self.api_timeout)?;
            // Killed, it would not tell what it counted last.
            api.put(&self.process, "/actions", &Action { action_type: "FlushMetrics" }).await?;
            api.put(&self.process, "/actions", &Action { action_type: "SendCtrlAltDel" }).await
        };
        let stopped = async {
            match asked.await {
                Ok(()) => {
                    self.process.wait().await;
                }
                // It will be killed: waiting would be for nothing.
                Err(error) => tracing::debug!(vm = %self.record.vm, %error, "guest could not be asked to stop"),
            }
        };
        let _ = tokio::time::timeout(grace, stopped).await;
    }
}

/// What `GET /` says, as far as it matters.
#[derive(Deserialize)]
struct Instance {
    state: String,
}

#[async_trait]
impl Vm for FirecrackerVm {
    fn record(&self) -> VmRecord {
        self.record.clone()
    }

    fn console(&self) -> Option<ConsoleFeed> {
        Some(ConsoleFeed::File(self.record.dir.join(files::CONSOLE)))
    }

    async fn status(&self) -> Option<String> {
        let api = Api::new(&self.home, self.api_timeout).ok()?;
        api.listening(&self.process).await.ok()?;
        api.get::<Instance>(&self.process, "/").await.ok().map(|instance| instance.state)
    }

    fn accelerator(&self) -> Option<String> {
        Some("KVM".to_owned())
    }

    async fn responds(&self) -> bool {
        self.status().await.is_some()
    }

    async fn started(&self) -> bool {
        // "Not started" waits for requests that nobody will send.
        matches!(self.status().await.as_deref(), Some("Running" | "Paused"))
    }

    async fn exited(&self) -> VmExit {
        describe(self.process.wait().await, &self.record.dir, &self.home)
    }

    async fn stop(&self, grace: Duration) -> Result<VmExit, VmError> {
        if self.process.ended().is_none() && !grace.is_zero() {
            self.ask_to_stop(grace).await;
        }
        self.process.kill().map_err(|e| boot_error::spawn(DRIVER, "killing the VMM", &e))?;
        let ended = self.process.wait().await;
        if let Some(metrics) = &self.metrics {
            metrics.finish().await;
        }
        files::remove(&self.home, files::API_SOCKET).map_err(|e| boot_error::spawn(DRIVER, "socket", &e))?;
        clean_up(self.jailer.as_ref(), self.record.vm).await?;
        Ok(describe(ended, &self.record.dir, &self.home))
    }
}
