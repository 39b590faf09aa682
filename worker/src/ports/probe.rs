//! Asking a VM's agent whether it is up.

use std::{
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use stoker_schemas::{VmId, id::Mac, spec::Readiness};
use tokio::time::Instant;

/// Whom to ask, and what answer counts.
#[derive(Debug, Clone)]
pub struct ProbeTarget {
    /// The VM that must answer.
    pub vm: VmId,
    /// Its MAC, to tell it by when the answer carries no identity.
    pub mac: Mac,
    /// Where.
    pub agent: SocketAddr,
    /// What counts.
    pub readiness: Readiness,
}

/// One try's outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// Nothing is listening.
    Refused,
    /// No route or no neighbour; the system's words.
    Unreachable(String),
    /// No connection in time.
    ConnectTimeout,
    /// Connected, but no answer in time.
    ReadTimeout,
    /// The connection was cut.
    Reset(String),
    /// An answer that does not count, and why.
    Wrong(Answer, WrongAnswer),
    /// The answer asked for.
    Ready(Answer),
}

/// An HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Beginning of the body (bounded).
    pub body: String,
    /// Request sent to answer read.
    pub latency: Duration,
    /// `vmId` of the answer.
    pub vm_id: Option<String>,
}

/// Why an answer does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WrongAnswer {
    /// Another status than asked.
    Status,
    /// The text asked for is not in the body.
    Body,
    /// Another VM answered; which, by id or MAC.
    Identity(String),
}

/// What the tries so far showed; shared with whoever writes the diagnosis.
#[derive(Debug, Default)]
pub struct ProbeLog(Mutex<ProbeSummary>);

/// Tries in short.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbeSummary {
    /// Tries made.
    pub tries: u32,
    /// Outcomes in order of first appearance, with how often each kind came.
    pub kinds: Vec<(ProbeOutcome, u32)>,
    /// When TCP first connected, as time since the first try.
    pub connected_after: Option<Duration>,
    /// How long the last try was connected and without an answer when it was given up.
    pub unanswered: Option<Duration>,
}

/// By how much a busy machine may be late to give up a connection.
const SLACK: Duration = Duration::from_millis(100);

/// A try under way. Given up with its future, it leaves how long it waited.
pub struct Asking<'a> {
    log: &'a ProbeLog,
    since: Instant,
    /// Without a connection it would be over by then.
    connected_by: Duration,
    over: bool,
}

impl Asking<'_> {
    /// It is over.
    pub fn note(mut self, outcome: ProbeOutcome, elapsed: Duration) {
        self.over = true;
        self.log.note(outcome, elapsed);
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let waited = self.since.elapsed();
        if !self.over && waited > self.connected_by + SLACK {
            self.log.lock().unanswered = Some(waited);
        }
    }
}

/// Kinds kept apart in a summary; further ones are counted under the last.
const MAX_KINDS: usize = 16;

impl ProbeLog {
    /// Notes one outcome, `elapsed` after the first try.
    pub fn note(&self, outcome: ProbeOutcome, elapsed: Duration) {
        let mut summary = self.lock();
        summary.tries += 1;
        summary.unanswered = None;
        let connected =
            !matches!(outcome, ProbeOutcome::Refused | ProbeOutcome::Unreachable(_) | ProbeOutcome::ConnectTimeout);
        if connected && summary.connected_after.is_none() {
            summary.connected_after = Some(elapsed);
        }
        let same = |known: &ProbeOutcome| match (known, &outcome) {
            (ProbeOutcome::Wrong(a, why), ProbeOutcome::Wrong(b, other)) => why == other && a.status == b.status,
            (known, new) => std::mem::discriminant(known) == std::mem::discriminant(new),
        };
        if let Some((_, count)) = summary.kinds.iter_mut().find(|(known, _)| same(known)) {
            *count += 1;
        } else if summary.kinds.len() < MAX_KINDS {
            summary.kinds.push((outcome, 1));
        } else if let Some((_, count)) = summary.kinds.last_mut() {
            *count += 1;
        }
    }

    /// The tries so far.
    pub fn summary(&self) -> ProbeSummary {
        self.lock().clone()
    }

    /// Begins a try that waits so long for its connection.
    pub fn asking(&self, connected_by: Duration) -> Asking<'_> {
        Asking { log: self, since: Instant::now(), connected_by, over: false }
    }

    fn lock(&self) -> MutexGuard<'_, ProbeSummary> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks agents.
#[async_trait]
pub trait Prober: Send + Sync + 'static {
    /// Asks until the answer is as asked, tight at first, then slower. Never gives up: the caller
    /// holds the deadline and drops the future.
    async fn until_ready(&self, target: &ProbeTarget, seen: &ProbeLog) -> Answer;

    /// Asks once.
    async fn once(&self, target: &ProbeTarget) -> ProbeOutcome;

    /// Asks an agent to end its guest, by a POST to this path. The error says why it will not.
    async fn ask_to_end(&self, agent: SocketAddr, path: &str) -> Result<(), String>;
}
