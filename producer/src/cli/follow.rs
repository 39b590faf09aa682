//! Following live events (server-sent events), over cut connections.

use std::collections::VecDeque;
use std::time::Duration;

use reqwest::Response;
use stoker_schemas::{Event, Time};

use super::CliError;
use super::client::Client;

/// Wait before a cut stream is opened again.
const REOPEN_AFTER: Duration = Duration::from_millis(500);
/// Openings that may fail one after the other before the user is told.
const MAX_REOPENINGS: u32 = 10;
/// Longest line of a stream: an event and its framing.
const MAX_LINE_BYTES: usize = 256 << 10;

/// An event as it came.
pub struct Live {
    /// The event.
    pub event: Event,
    /// Its JSON.
    pub json: String,
}

/// A stream of events.
pub struct Follower {
    client: Client,
    job: Option<String>,
    from: Option<u64>,
    response: Option<Response>,
    buffer: Vec<u8>,
    ready: VecDeque<Live>,
    data: String,
    failures: u32,
}

impl Follower {
    /// Events of one job or all, from a number on or (without) from now on; for one job, all of it.
    pub fn new(client: &Client, job: Option<String>, from: Option<u64>) -> Self {
        Self {
            client: client.clone(),
            job,
            from,
            response: None,
            buffer: Vec::new(),
            ready: VecDeque::new(),
            data: String::new(),
            failures: 0,
        }
    }

    /// Opens the stream now, so that nothing after this is missed.
    pub async fn open(&mut self) -> Result<(), CliError> {
        let mut query = Vec::new();
        if let Some(job) = &self.job {
            query.push(("job", job.clone()));
        }
        if let Some(from) = self.from {
            query.push(("from", from.to_string()));
        }
        self.buffer.clear();
        self.data.clear();
        self.response = Some(self.client.stream(&["v1", "events"], &query).await?);
        Ok(())
    }

    /// The next event.
    pub async fn next(&mut self) -> Result<Live, CliError> {
        loop {
            if let Some(live) = self.ready.pop_front() {
                return Ok(live);
            }
            let Some(response) = &mut self.response else {
                self.reopen().await?;
                continue;
            };
            match response.chunk().await {
                Ok(Some(chunk)) => {
                    self.failures = 0;
                    self.buffer.extend_from_slice(&chunk);
                    self.read_lines()?;
                }
                Ok(None) | Err(_) => self.response = None,
            }
        }
    }

    async fn reopen(&mut self) -> Result<(), CliError> {
        match self.open().await {
            Err(CliError::System { .. }) if self.failures < MAX_REOPENINGS => {
                self.failures += 1;
                tokio::time::sleep(REOPEN_AFTER).await;
                Ok(())
            }
            other => other,
        }
    }

    fn read_lines(&mut self) -> Result<(), CliError> {
        while let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            self.line(line.trim_end())?;
        }
        if self.buffer.len() > MAX_LINE_BYTES {
            return Err(CliError::system("the server's stream is not understood", "a line has no end", ""));
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> Result<(), CliError> {
        if let Some(id) = line.strip_prefix("id:") {
            self.from = id.trim().parse::<u64>().ok().map(|n| n + 1).or(self.from);
        } else if let Some(data) = line.strip_prefix("data:") {
            self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
        } else if line.is_empty() && !self.data.is_empty() {
            let json = std::mem::take(&mut self.data);
            // The server always sends the time.
            let event = Event::decode(json.as_bytes(), Time::UNIX_EPOCH).map_err(|e| {
                CliError::system("an event of the server is not understood", e, "are both of the same version?")
            })?;
            self.ready.push_back(Live { event, json });
        }
        Ok(())
    }
}
