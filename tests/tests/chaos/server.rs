//! `stoker serve`, a process of its own.

use std::{path::Path, process::Stdio};

use stoker_tests::within;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

/// Its rows and settings are in a folder of the test's.
pub struct Server {
    pub base: String,
    process: Child,
}

impl Server {
    pub async fn start(program: &Path, broker: &str, data: &Path) -> Self {
        let mut command = Command::new(program);
        command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(data).env("STOKER_BROKER", broker);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = within("the server's address", lines.next_line()).await.unwrap().expect("stoker serve ended");
        // Nobody reads on from here, which must be nothing to a server.
        let base = line.split_once("http://").map(|(_, rest)| format!("http://{}", rest.trim_end_matches('/')));
        Self { base: base.unwrap(), process }
    }

    /// SIGTERM: it ends in order.
    pub async fn end(mut self) {
        let pid = self.process.id().unwrap_or_default().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status().await;
        let status = within("stoker serve ends", self.process.wait()).await.unwrap();
        assert!(status.success(), "stoker serve ended with {status}");
    }
}
