//! Firecracker's HTTP API on its unix socket: one connection, requests in order, typed errors.

use std::{path::Path, time::Duration};

use reqwest::{Client, RequestBuilder, StatusCode};
use serde::{Serialize, de::DeserializeOwned};

use super::DRIVER;
use crate::{
    ports::vm::VmError,
    vm::{
        boot_error,
        files::{self, ShortDir},
        process::VmmProcess,
        socket,
    },
};

/// What is read of an answer, bytes: error messages are a few hundred.
const MAX_ANSWER_BYTES: usize = 16 * 1024;
/// What is kept of an error message, bytes.
pub(crate) const MAX_MESSAGE_BYTES: usize = 600;

/// A client for one VMM.
pub struct Api {
    client: Client,
    /// Keeps the short path to the socket valid.
    dir: ShortDir,
    timeout: Duration,
}

impl Api {
    /// A client for the VMM of this attempt; connects with the first request.
    pub fn new(dir: &Path, timeout: Duration) -> Result<Self, VmError> {
        let dir = ShortDir::open(dir).map_err(|e| boot_error::spawn(DRIVER, "attempt directory", &e))?;
        let client = Client::builder()
            .unix_socket(dir.file(files::API_SOCKET))
            // A proxy of the environment is not for this socket.
            .no_proxy()
            .build()
            .map_err(|e| boot_error::spawn(DRIVER, "HTTP client", &std::io::Error::other(e)))?;
        Ok(Self { client, dir, timeout })
    }

    /// Waits until the VMM listens.
    pub async fn listening(&self, process: &VmmProcess) -> Result<(), VmError> {
        let socket = self.dir.file(files::API_SOCKET);
        match socket::connect(socket, process.clone(), self.timeout).await {
            Ok(_) => Ok(()),
            Err(error) => Err(boot_error::silent(DRIVER, files::API_SOCKET, process, self.timeout, &error)),
        }
    }

    /// Sends one request and waits for its answer.
    pub async fn put<B: Serialize + Sync>(&self, process: &VmmProcess, path: &str, body: &B) -> Result<(), VmError> {
        let request = self.client.put(format!("http://localhost{path}")).json(body);
        let answer = tokio::time::timeout(self.timeout, Self::send(request)).await;
        self.judge(process, format!("PUT {path}"), answer).await.map(drop)
    }

    /// Asks for something; its answer.
    pub async fn get<A: DeserializeOwned>(&self, process: &VmmProcess, path: &str) -> Result<A, VmError> {
        let request = self.client.get(format!("http://localhost{path}"));
        let answer = tokio::time::timeout(self.timeout, Self::send(request)).await;
        let body = self.judge(process, format!("GET {path}"), answer).await?;
        serde_json::from_slice(&body).map_err(|error| {
            let message = format!("an answer of another form than expected: {error}");
            VmError::Refused { driver: DRIVER, request: format!("GET {path}"), message }
        })
    }

    async fn send(request: RequestBuilder) -> reqwest::Result<(StatusCode, Vec<u8>)> {
        let mut answer = request.send().await?;
        let mut text = Vec::new();
        // No body is read on success: there is none, and looking would cost a turn.
        if answer.status() != StatusCode::NO_CONTENT {
            while let Some(chunk) = answer.chunk().await? {
                let room = MAX_ANSWER_BYTES - text.len();
                text.extend_from_slice(&chunk[..chunk.len().min(room)]);
                if text.len() == MAX_ANSWER_BYTES {
                    break;
                }
            }
        }
        Ok((answer.status(), text))
    }

    async fn judge(
        &self,
        process: &VmmProcess,
        request: String,
        answer: Result<reqwest::Result<(StatusCode, Vec<u8>)>, tokio::time::error::Elapsed>,
    ) -> Result<Vec<u8>, VmError> {
        match answer {
            Ok(Ok((status, body))) if status.is_success() => Ok(body),
            Ok(Ok((status, body))) => {
                Err(VmError::Refused { driver: DRIVER, request, message: error_message(status, &body) })
            }
            // The connection broke: most likely because the VMM died.
            Ok(Err(error)) if boot_error::died(process).await => {
                Err(VmError::Died { driver: DRIVER, reason: format!("during {request}: {error}") })
            }
            Ok(Err(error)) => Err(VmError::Refused { driver: DRIVER, request, message: cause_of(&error) }),
            Err(_) if process.ended().is_some() => {
                Err(VmError::Died { driver: DRIVER, reason: format!("during {request}") })
            }
            Err(_) => Err(VmError::Unresponsive { driver: DRIVER, request, within: self.timeout }),
        }
    }
}

fn cause_of(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    stoker_schemas::limits::clip(&text, MAX_MESSAGE_BYTES)
}

/// The message of an error answer. Two shapes exist, `fault_message` and `error`, and the second
/// may hold a raw newline inside its string, which no JSON parser takes.
pub(crate) fn error_message(status: StatusCode, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let plain = without_control(&text);
    let parsed = serde_json::from_str::<serde_json::Value>(&plain).ok();
    let message = parsed.as_ref().and_then(|v| v.get("fault_message").or_else(|| v.get("error"))?.as_str());
    // JSON can spell a control character with plain ones.
    let message = without_control(message.unwrap_or(&plain));
    match message.trim() {
        "" => format!("HTTP {status} without a message"),
        message => stoker_schemas::limits::clip(message, MAX_MESSAGE_BYTES),
    }
}

fn without_control(text: &str) -> String {
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_of_error_are_read() {
        let bad = StatusCode::BAD_REQUEST;
        let fault = br#"{"fault_message":"Boot source error: no kernel"}"#;
        assert_eq!(error_message(bad, fault), "Boot source error: no kernel");
        let raw_newline = b"{ \"error\": \"Invalid request:\nmethod\" }";
        assert_eq!(error_message(bad, raw_newline), "Invalid request: method");
        assert_eq!(error_message(bad, b"nonsense\x1b"), "nonsense");
        assert_eq!(error_message(bad, br#"{"error":"no\u001b[2Jkernel"}"#), "no [2Jkernel", "nothing for a terminal");
        assert!(error_message(bad, b"").contains("400"));
        assert!(error_message(bad, &[b'x'; 9000]).len() <= MAX_MESSAGE_BYTES);
    }
}
