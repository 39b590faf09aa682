//! A running QEMU VM.

use std::{path::Path, time::Duration};

use async_trait::async_trait;
use tokio::net::UnixStream;

use super::{
    DRIVER,
    qmp::{Qmp, QmpError},
    template,
};
use crate::{
    ports::vm::{ConsoleFeed, Vm, VmError, VmExit, VmRecord},
    vm::{
        boot_error, exit,
        files::{self, ShortDir},
        process::{Ended, VmmProcess},
    },
};

pub struct QemuVm {
    pub record: VmRecord,
    pub process: VmmProcess,
    pub qmp_timeout: Duration,
    /// What runs it, for people.
    pub accelerator: Option<String>,
    /// What an accelerator that did not run it took of its time.
    pub lost: Duration,
}

fn name_code(code: i32) -> Option<&'static str> {
    match code {
        // `-no-reboot` turns a reboot, and so `panic=-1`, into a clean exit.
        0 => Some("the guest powered off, rebooted or panicked; the console tells which"),
        1 => Some("QEMU refused its configuration or lost a resource"),
        _ => None,
    }
}

pub fn describe(ended: Ended, dir: &Path) -> VmExit {
    exit::describe(ended, name_code, &[dir.join(files::VMM_STDERR)])
}

impl QemuVm {
    async fn qmp(&self) -> Result<Qmp, QmpError> {
        let dir = ShortDir::open(&self.record.dir)?;
        // QEMU accepts one client at a time; whoever comes second waits, hence the deadline.
        let connecting = UnixStream::connect(dir.file(files::QMP_SOCKET));
        let stream = tokio::time::timeout(self.qmp_timeout, connecting)
            .await
            .map_err(|_| QmpError::Timeout(self.qmp_timeout))??;
        Qmp::open(stream, self.qmp_timeout).await
    }

    async fn ask_to_stop(&self, grace: Duration) {
        let stopped = async {
            let asked = async { self.qmp().await?.execute("system_powerdown").await };
            match asked.await {
                Ok(_) => {
                    self.process.wait().await;
                }
                // It will be killed: waiting would be for nothing.
                Err(error) => tracing::debug!(vm = %self.record.vm, %error, "guest could not be asked to stop"),
            }
        };
        let _ = tokio::time::timeout(grace, stopped).await;
    }
}

#[async_trait]
impl Vm for QemuVm {
    fn record(&self) -> VmRecord {
        self.record.clone()
    }

    fn console(&self) -> Option<ConsoleFeed> {
        Some(ConsoleFeed::File(self.record.dir.join(files::CONSOLE)))
    }

    fn restored(&self) -> bool {
        self.record.dir.join(files::SERIAL_OUT).exists()
    }

    async fn started(&self) -> bool {
        template::was_told(&self.record.dir)
    }

    async fn exited(&self) -> VmExit {
        describe(self.process.wait().await, &self.record.dir)
    }

    fn accelerator(&self) -> Option<String> {
        self.accelerator.clone()
    }

    fn lost(&self) -> Duration {
        self.lost
    }

    async fn status(&self) -> Option<String> {
        if self.process.ended().is_some() {
            return None;
        }
        match self.qmp().await {
            Ok(mut qmp) => qmp.status().await.ok(),
            Err(error) => Some(format!("QMP: {error}")),
        }
    }

    async fn responds(&self) -> bool {
        let asked = async { self.qmp().await?.status().await };
        asked.await.is_ok()
    }

    async fn stop(&self, grace: Duration) -> Result<VmExit, VmError> {
        if self.process.ended().is_none() && !grace.is_zero() {
            self.ask_to_stop(grace).await;
        }
        self.process.kill().map_err(|e| boot_error::spawn(DRIVER, "killing the VMM", &e))?;
        let ended = self.process.wait().await;
        files::remove(&self.record.dir, files::QMP_SOCKET).map_err(|e| boot_error::spawn(DRIVER, "socket", &e))?;
        Ok(describe(ended, &self.record.dir))
    }
}
