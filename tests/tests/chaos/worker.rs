//! The real `stoker-worker` with simulated VMs, as a service: one that ends is started again.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    process::Command,
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::PATIENCE;

/// Before a worker that ended is started again: less than a service manager waits, so that tests are short.
const RESTART_AFTER: Duration = Duration::from_millis(300);

/// What is to become of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Running,
    Ended,
}

pub struct Worker {
    pub data: PathBuf,
    log: PathBuf,
    /// How often it was started, and the process that runs now.
    process: watch::Receiver<(usize, Option<u32>)>,
    wanted: watch::Sender<Wanted>,
    service: JoinHandle<()>,
}

impl Worker {
    /// With its data there; what it says is appended to a file beside it.
    pub fn start(program: &Path, url: &str, host: &str, data: PathBuf, log: PathBuf) -> Self {
        let (process, seen) = watch::channel((0, None));
        let (wanted, asked) = watch::channel(Wanted::Running);
        let config = data.with_extension("toml");
        std::fs::write(&config, "slots = 60000\nvcpus = 60000\nmemory_mib = 15360000\nmax_booting = 64\n").unwrap();
        let mut command = Command::new(program);
        command.args(["run", "--driver", "simulated", "--host", host]).arg("--config").arg(config);
        command.arg("--data").arg(&data).env("STOKER_BROKER", url);
        let service = tokio::spawn(serve(command, log.clone(), process, asked));
        Self { data, log, process: seen, wanted, service }
    }

    /// Sends the process that runs now a signal.
    pub async fn signal(&self, signal: &str) {
        let pid = self.pid().await.to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().await.unwrap();
        assert!(sent.success(), "kill {signal} {pid}");
    }

    /// The process that runs now, or is about to.
    pub async fn pid(&self) -> u32 {
        let mut process = self.process.clone();
        let running = timeout(PATIENCE, process.wait_for(|(_, pid)| pid.is_some()));
        running.await.expect("the worker is not started").unwrap().1.unwrap()
    }

    /// What it has said so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How often it was started.
    pub fn starts(&self) -> usize {
        self.process.borrow().0
    }

    /// Whether it ends by itself in that time.
    pub async fn ends_within(&self, patience: Duration) -> bool {
        let before = self.starts();
        let mut process = self.process.clone();
        timeout(patience, process.wait_for(|(starts, pid)| *starts > before || pid.is_none())).await.is_ok()
    }

    /// From now on it opens no file of a higher number than that.
    pub async fn limit_files(&self, limit: u64) {
        let pid = self.pid().await;
        let mut command = Command::new("prlimit");
        command.arg(format!("--pid={pid}")).arg(format!("--nofile={limit}:"));
        assert!(command.status().await.unwrap().success(), "prlimit");
    }

    /// SIGTERM: it ends in order.
    pub async fn end(self) {
        self.wanted.send_replace(Wanted::Ended);
        timeout(PATIENCE, self.service).await.expect("the worker does not end").unwrap();
    }
}

/// Starts it, and starts it again when it ends by itself.
async fn serve(
    mut command: Command,
    log: PathBuf,
    process: watch::Sender<(usize, Option<u32>)>,
    mut wanted: watch::Receiver<Wanted>,
) {
    loop {
        let output = File::options().append(true).create(true).open(&log).unwrap();
        let error = output.try_clone().unwrap();
        let command = command.stdin(Stdio::null()).stdout(output).stderr(error).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        process.send_modify(|(starts, pid)| (*starts, *pid) = (*starts + 1, child.id()));
        let ended = async { drop(wanted.wait_for(|wanted| *wanted == Wanted::Ended).await) };
        let by_itself = tokio::select! {
            status = child.wait() => Some(status.unwrap()),
            () = ended => None,
        };
        let Some(status) = by_itself else {
            let pid = child.id().unwrap_or_default().to_string();
            let _ = Command::new("kill").args(["-TERM", &pid]).status().await;
            let status = child.wait().await.unwrap();
            assert!(status.success(), "the worker ended with {status}");
            return;
        };
        eprintln!("a worker ended with {status}");
        process.send_modify(|(_, pid)| *pid = None);
        sleep(RESTART_AFTER).await;
    }
}
