//! Starts a QEMU process and waits for its word that it is set up.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use super::{
    Accel, DRIVER,
    command::{self, HostFacts, Memory},
    qmp::{Qmp, QmpError},
};
use crate::{
    ports::vm::{VmError, VmPlan},
    vm::{
        boot_error,
        files::{self, ShortDir},
        process::{self, Spawner, Starting, VmmProcess},
        socket,
    },
};

/// What it takes to start one.
#[derive(Clone)]
pub struct Launcher {
    pub binary: PathBuf,
    pub spawner: Arc<dyn Spawner>,
    pub host: HostFacts,
    /// Deadline from the start to the first answer, and of each exchange.
    pub qmp_timeout: Duration,
}

impl Launcher {
    /// The same with this accelerator.
    pub fn with(&self, accel: Accel) -> Self {
        Self { host: HostFacts { accel, ..self.host }, ..self.clone() }
    }

    /// Starts QEMU for this plan, in the plan's folder.
    pub async fn start(&self, plan: &VmPlan, memory: Memory<'_>, stdin: impl Into<Stdio>) -> Result<Starting, VmError> {
        let failed = |error| boot_error::spawn(DRIVER, &self.binary.display().to_string(), &error);
        let arguments = command::arguments(plan, self.host, memory)?;
        files::remove(&plan.dir, files::QMP_SOCKET).map_err(failed)?;
        let log = files::append(&plan.dir, files::VMM_STDERR).map_err(failed)?;
        let mut command = Command::new(&self.binary);
        command.current_dir(&plan.dir).args(arguments).stdout(log.try_clone().map_err(failed)?).stderr(log);
        process::start_reading(&self.spawner, command, stdin).await.map_err(failed)
    }

    /// Connects to QEMU as soon as it answers: then it is set up.
    pub async fn connect(&self, dir: &Path, process: &VmmProcess) -> Result<Qmp, VmError> {
        let within = self.qmp_timeout;
        let dir = ShortDir::open(dir).map_err(|e| boot_error::spawn(DRIVER, "attempt directory", &e))?;
        let connected = socket::connect(dir.file(files::QMP_SOCKET), process.clone(), within).await;
        let stream = connected.map_err(|e| boot_error::silent(DRIVER, files::QMP_SOCKET, process, within, &e))?;
        let greeted = async {
            stream.set_nonblocking(true)?;
            let mut qmp = Qmp::open(tokio::net::UnixStream::from_std(stream)?, within).await?;
            qmp.status().await?;
            Ok(qmp)
        };
        match greeted.await {
            Ok(qmp) => Ok(qmp),
            Err(error) => Err(failed(error, "query-status", process).await),
        }
    }
}

/// What a failed exchange means.
pub async fn failed(error: QmpError, request: &str, process: &VmmProcess) -> VmError {
    let request = request.to_owned();
    match error {
        QmpError::Timeout(within) => VmError::Unresponsive { driver: DRIVER, request, within },
        // A guest that has already ended is not a failure to boot, but there is nothing to hand on.
        error if boot_error::died(process).await => VmError::Died { driver: DRIVER, reason: error.to_string() },
        error => VmError::Refused { driver: DRIVER, request, message: error.to_string() },
    }
}
