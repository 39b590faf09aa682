//! `stoker up` with simulated VMs as a process of its own: what pages and programs talk to.

use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::{setting, within};

/// A guest that panics soon, and before its agent would answer.
pub const PANICS: &str = "sim.panic-ms=30 sim.healthy-ms=60000";

/// The process, and how to reach it.
pub struct Front {
    /// Beginning of its addresses.
    pub base: String,
    /// Secrets of its tokens, in their order; none where everybody on this machine may come in.
    pub tokens: Vec<String>,
    _process: Child,
    _data: tempfile::TempDir,
}

impl Front {
    /// For everybody on this machine. `None`, with a line that says why, where it was not built.
    pub async fn start(test: &str) -> Option<Self> {
        Self::start_as(test, &[], None).await
    }

    /// For everybody on this machine, on a host that keeps VMs up for jobs to come.
    pub async fn start_warm(test: &str, warm: &str) -> Option<Self> {
        Self::begin(test, &[], None, &["--warm", warm]).await
    }

    /// For holders of tokens with these names and roles only, if any; with webhooks, if there is a
    /// file of them.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start_as(test: &str, team: &[(&str, &str)], hooks: Option<&str>) -> Option<Self> {
        Self::begin(test, team, hooks, &[]).await
    }

    async fn begin(test: &str, team: &[(&str, &str)], hooks: Option<&str>, flags: &[&str]) -> Option<Self> {
        let program = Path::new(&setting(test, "STOKER_TEST_BIN_DIR")?).join("stoker");
        let data = tempfile::tempdir().unwrap();
        let (mut entries, mut tokens) = (Vec::new(), Vec::new());
        for (name, role) in team {
            let (secret, entry) = token(&program, name, role).await;
            tokens.push(secret);
            entries.extend(entry);
        }
        let mut command = Command::new(&program);
        if !team.is_empty() {
            let file = data.path().join("tokens.toml");
            std::fs::write(&file, entries).unwrap();
            command.env("STOKER_TOKENS", file);
        }
        command.args(["up", "--driver", "simulated", "--no-vm", "--listen", "127.0.0.1:0", "--host", "h-01", "--data"]);
        command.arg(data.path()).args(flags);
        if let Some(hooks) = hooks {
            let file = data.path().join("hooks.toml");
            std::fs::write(&file, hooks).unwrap();
            command.arg("--hooks").arg(file);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let base = within("the dashboard's address", async {
            loop {
                let line = lines.next_line().await.unwrap().expect("stoker up ended");
                if let Some((_, rest)) = line.split_once("http://") {
                    break format!("http://{}", rest.split('/').next().unwrap());
                }
            }
        })
        .await;
        // What else it says is read, or it would stop at a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Some(Self { base, tokens, _process: process, _data: data })
    }

    /// Enqueues a job; its id.
    pub async fn enqueue(&self, kernel_args: &str, attempts: u32, label: &str) -> String {
        let retry = json!({"max_attempts": attempts, "base_ms": 200, "cap_ms": 60_000});
        self.enqueue_with(kernel_args, &retry, label).await
    }

    /// Enqueues a job that is tried again as asked; its id.
    ///
    /// # Panics
    /// When it is not taken.
    pub async fn enqueue_with(&self, kernel_args: &str, retry: &Value, label: &str) -> String {
        let job = json!({"image": "simulated", "kernel_args": kernel_args, "labels": {"team": label}, "retry": retry});
        let mut request = reqwest::Client::new().post(format!("{}/v1/jobs", self.base)).json(&job);
        if let Some(token) = self.tokens.first() {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 202, "{}", answer.text().await.unwrap());
        let answer: Value = answer.json().await.unwrap();
        answer["jobs"][0]["id"].as_str().unwrap().to_owned()
    }
}

/// A new token: its secret, and its entry in the file of tokens.
async fn token(program: &Path, name: &str, role: &str) -> (String, Vec<u8>) {
    let made = Command::new(program).args(["token", "new", "--name", name, "--role", role]).output().await.unwrap();
    let said = String::from_utf8(made.stderr).unwrap();
    let secret = said.split_whitespace().find(|word| word.starts_with("stk_")).unwrap();
    (secret.to_owned(), made.stdout)
}
