//! QEMU's machine protocol, as much of it as Stoker speaks: greeting, capabilities, commands, and
//! waiting for an event. Events in between are skipped.

use std::{io, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};

/// A line of QMP, bytes; the largest answer used here is a few hundred.
const MAX_LINE_BYTES: u64 = 64 * 1024;
/// Events skipped while waiting for one answer: a guest can cause them, so not without end.
const MAX_EVENTS: usize = 1_000;
/// What is kept of an error text, bytes.
const MAX_TEXT_BYTES: usize = 600;

/// What can go wrong on the socket.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The connection failed.
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    /// QEMU closed the connection.
    #[error("QEMU closed the connection")]
    Closed,
    /// Not what QMP promises.
    #[error("not understood: {0}")]
    Malformed(String),
    /// QEMU said no.
    #[error("{class}: {text}")]
    Refused {
        /// QMP's class of error.
        class: String,
        /// QEMU's words.
        text: String,
    },
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    #[serde(rename = "return")]
    returned: Option<Value>,
    error: Option<Failure>,
    event: Option<String>,
}

#[derive(Deserialize)]
struct Failure {
    class: String,
    desc: String,
}

/// A connection in command mode.
pub struct Qmp {
    stream: BufReader<UnixStream>,
    timeout: Duration,
    /// The guest was heard to go on.
    resumed: bool,
}

impl Qmp {
    /// Greets and leaves negotiation mode. `timeout` holds for each exchange.
    pub async fn open(stream: UnixStream, timeout: Duration) -> Result<Self, QmpError> {
        let mut qmp = Self { stream: BufReader::new(stream), timeout, resumed: false };
        let greeting = tokio::time::timeout(timeout, qmp.read()).await.map_err(|_| QmpError::Timeout(timeout))??;
        if greeting.greeting.is_none() {
            return Err(QmpError::Malformed("no greeting".to_owned()));
        }
        qmp.execute("qmp_capabilities").await?;
        Ok(qmp)
    }

    /// Runs one command without arguments.
    pub async fn execute(&mut self, command: &str) -> Result<Value, QmpError> {
        self.exchange(json!({ "execute": command })).await
    }

    /// Runs one command.
    pub async fn execute_with(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.exchange(json!({ "execute": command, "arguments": arguments })).await
    }

    /// Waits until a guest that was loaded runs.
    pub async fn running(&mut self) -> Result<(), QmpError> {
        let timeout = self.timeout;
        // An answer may be older than an event that came before it.
        if self.status().await? == "running" || self.resumed {
            return Ok(());
        }
        let awaited = async {
            for _ in 0..MAX_EVENTS {
                self.read().await?;
                if self.resumed {
                    return Ok(());
                }
            }
            Err(QmpError::Malformed("events without end".to_owned()))
        };
        tokio::time::timeout(timeout, awaited).await.map_err(|_| QmpError::Timeout(timeout))?
    }

    /// The guest's run state in QEMU's words (`running`, `io-error`, `internal-error`, …).
    pub async fn status(&mut self) -> Result<String, QmpError> {
        let answer = self.execute("query-status").await?;
        let status = answer.get("status").and_then(Value::as_str).map(str::to_owned);
        status.ok_or_else(|| QmpError::Malformed("query-status without a status".to_owned()))
    }

    async fn exchange(&mut self, command: Value) -> Result<Value, QmpError> {
        let timeout = self.timeout;
        tokio::time::timeout(timeout, self.ask(command)).await.map_err(|_| QmpError::Timeout(timeout))?
    }

    async fn ask(&mut self, command: Value) -> Result<Value, QmpError> {
        let line = format!("{command}\n");
        self.stream.get_mut().write_all(line.as_bytes()).await?;
        for _ in 0..MAX_EVENTS {
            let line = self.read().await?;
            if let Some(Failure { class, desc }) = line.error {
                return Err(QmpError::Refused { class, text: stoker_schemas::limits::clip(&desc, MAX_TEXT_BYTES) });
            }
            if let Some(value) = line.returned {
                return Ok(value);
            }
            if line.event.is_none() {
                return Err(QmpError::Malformed("neither answer nor event".to_owned()));
            }
        }
        Err(QmpError::Malformed("events without end".to_owned()))
    }

    async fn read(&mut self) -> Result<Line, QmpError> {
        let mut text = Vec::new();
        let read = (&mut self.stream).take(MAX_LINE_BYTES).read_until(b'\n', &mut text).await?;
        if read == 0 {
            return Err(QmpError::Closed);
        }
        if text.last() != Some(&b'\n') {
            return Err(QmpError::Malformed(format!("a line cut off or beyond {MAX_LINE_BYTES} bytes")));
        }
        let line: Line = serde_json::from_slice(&text).map_err(|e| QmpError::Malformed(e.to_string()))?;
        self.resumed |= line.event.as_deref() == Some("RESUME");
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";
    const DEADLINE: Duration = Duration::from_secs(5);

    /// Plays QEMU: sends the greeting, then one line per command received.
    async fn open(answers: &'static [&'static str]) -> Result<Qmp, QmpError> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let mut theirs = BufReader::new(theirs);
            theirs.get_mut().write_all(GREETING.as_bytes()).await.unwrap();
            for answer in answers {
                let mut command = String::new();
                theirs.read_line(&mut command).await.unwrap();
                theirs.get_mut().write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Qmp::open(ours, DEADLINE).await
    }

    #[tokio::test]
    async fn events_before_an_answer_are_skipped() {
        const ANSWERS: &[&str] = &[
            "{\"return\": {}}\r\n",
            "{\"event\": \"RESUME\", \"timestamp\": {}}\r\n{\"return\": {\"status\": \"io-error\", \"running\": false}}\r\n",
        ];
        let mut qmp = open(ANSWERS).await.unwrap();
        assert_eq!(qmp.status().await.unwrap(), "io-error");
    }

    #[tokio::test]
    async fn an_event_counts_before_an_older_answer() {
        const ANSWERS: &[&str] =
            &["{\"return\": {}}\n", "{\"event\": \"RESUME\"}\n{\"return\": {\"status\": \"inmigrate\"}}\n"];
        open(ANSWERS).await.unwrap().running().await.unwrap();
    }

    #[tokio::test]
    async fn a_guest_that_runs_only_after_the_answer_is_waited_for() {
        const ANSWERS: &[&str] = &[
            "{\"return\": {}}\n",
            "{\"return\": {\"status\": \"inmigrate\"}}\n{\"event\": \"NIC\"}\n{\"event\": \"RESUME\"}\n",
        ];
        open(ANSWERS).await.unwrap().running().await.unwrap();
        const ENDED: &[&str] = &["{\"return\": {}}\n", "{\"return\": {\"status\": \"inmigrate\"}}\n"];
        assert!(matches!(open(ENDED).await.unwrap().running().await, Err(QmpError::Closed)));
    }

    #[tokio::test]
    async fn refusals_and_closed_connections_are_told_apart() {
        const ANSWERS: &[&str] =
            &["{\"return\": {}}\n", "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n"];
        let mut qmp = open(ANSWERS).await.unwrap();
        assert!(matches!(qmp.execute("quit").await, Err(QmpError::Refused { class, .. }) if class == "GenericError"));
        assert!(matches!(qmp.execute("quit").await, Err(QmpError::Closed | QmpError::Io(_))));
    }

    #[tokio::test]
    async fn nonsense_is_an_error_and_not_a_hang() {
        assert!(matches!(open(&["hello\n"]).await, Err(QmpError::Malformed(_))));
        assert!(matches!(open(&["{}\n"]).await, Err(QmpError::Malformed(_))));
    }
}
