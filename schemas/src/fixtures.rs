//! Values and a small language for tests: `given(…)` a history, `when(…)` a command, then facts or
//! a refusal.

use std::time::Duration;

use serde_json::json;

use crate::command::{Begin, Command, Context, Rejection};
use crate::decide::{Fact, decide};
use crate::diagnosis::{Cause, Signals, diagnose};
use crate::event::{AttemptReady, GoneWhy, HOST_SOURCE, Identity, Request, Stage, StageMark};
use crate::id::{Epoch, HostName, JobId, VmId};
use crate::image::Driver;
use crate::retry::Jitter;
use crate::{Event, JobSpec, JobState, Time};

pub fn job() -> JobId {
    "018f6f0e-0a52-7c0e-9d1c-7a4b3b0d5e11".parse().unwrap()
}

pub fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

pub fn at(seconds: u64) -> Time {
    Time::from_unix_micros(1_764_000_000_000_000).plus(Duration::from_secs(seconds))
}

pub fn spec() -> JobSpec {
    JobSpec::from_value(&json!({"image": "golden@7", "retry": {"max_attempts": 2, "jitter_percent": 0}})).unwrap()
}

pub fn request(by: &str) -> Request {
    Request { by: by.to_owned(), reason: String::new() }
}

pub fn mark(stage: Stage, seconds: u64) -> StageMark {
    StageMark { stage, at: at(seconds), detail: String::new(), absent: false }
}

pub fn proof() -> AttemptReady {
    AttemptReady {
        agent: "192.168.100.79:8080".parse().unwrap(),
        status: 200,
        body: r#"{"status":"healthy"}"#.to_owned(),
        identity: Identity::VmId,
        marks: vec![mark(Stage::AgentHealthy, 9)],
    }
}

/// Fails the attempt for this cause.
pub fn fail(epoch: Epoch, cause: Cause) -> Command {
    let mut diagnosis = diagnose(&Signals::default());
    (diagnosis.cause, diagnosis.retryable) = (cause, cause.retryable());
    Command::Fail { epoch, diagnosis, marks: Vec::new() }
}

pub fn lost(epoch: Epoch) -> Command {
    let diagnosis = diagnose(&Signals::default());
    Command::Lost { epoch, diagnosis, detail: String::new() }
}

pub fn gone(epoch: Epoch, why: GoneWhy) -> Command {
    Command::Gone { epoch, why, detail: String::new() }
}

pub fn ready(epoch: Epoch) -> Command {
    Command::Ready { epoch, proof: proof() }
}

pub fn enqueue() -> Command {
    Command::Enqueue { spec: spec(), by: "ada".to_owned() }
}

pub fn cancel() -> Command {
    Command::Cancel(request("bob"))
}

pub fn retry() -> Command {
    Command::Retry { by: "eve".to_owned(), spec: None }
}

pub fn snooze(until: u64) -> Command {
    Command::Snooze { until: at(until), request: request("bob") }
}

pub fn begin_on(name: &str, epoch: Epoch) -> Command {
    let host = host(name);
    let vm = VmId::derive(job(), epoch, &host);
    let (spec, enqueued_at) = (spec(), at(0));
    Command::Begin(Begin { epoch, host, vm, driver: Driver::Simulated, address: None, spec, enqueued_at })
}

pub fn begin(epoch: Epoch) -> Command {
    begin_on("h-1", epoch)
}

/// Attempt `attempt`, first delivery.
pub const fn e(attempt: u32) -> Epoch {
    Epoch::first(attempt)
}

/// One teller's view of one job: each command moves the clock on by a second.
#[derive(Debug, Clone)]
pub struct History {
    pub state: JobState,
    pub events: Vec<Event>,
    pub seconds: u64,
    /// How far its clock is off, microseconds.
    pub skew: i64,
    source: String,
}

impl History {
    pub fn on(name: &str) -> Self {
        let source = format!("{HOST_SOURCE}{name}");
        Self { state: JobState::new(job()), events: Vec::new(), seconds: 0, skew: 0, source }
    }

    /// What its clock shows.
    pub fn now(&self) -> Time {
        Time::from_unix_micros(at(self.seconds).unix_micros() + self.skew)
    }

    /// What the rules say, without doing it.
    pub fn when(&self, command: Command) -> Result<Vec<Fact>, Rejection> {
        decide(&self.state, command, Context { now: self.now(), jitter: Jitter::from_random(0) })
    }

    /// Does it, if the rules allow it.
    pub fn tell(&mut self, command: Command) -> Result<Vec<Event>, Rejection> {
        self.seconds += 1;
        let facts = self.when(command)?;
        let about = |(epoch, data)| Event::about_job(job(), epoch, &self.source, self.now(), data);
        let events: Vec<_> = facts.into_iter().map(about).collect();
        events.iter().for_each(|event| self.state.apply(event));
        self.events.extend(events.iter().cloned());
        Ok(events)
    }
}

/// A history that these commands made; each must be allowed.
pub fn given(commands: impl IntoIterator<Item = Command>) -> History {
    let mut history = History::on("h-1");
    for command in commands {
        let shown = format!("{command:?}");
        history.tell(command).unwrap_or_else(|rejection| panic!("given {shown}: {rejection}"));
    }
    history
}

/// Facts by kind (`vm.gone+job.dead`), `nothing`, or the name of the refusal.
pub fn outcome(result: &Result<Vec<Fact>, Rejection>) -> String {
    match result {
        Ok(facts) if facts.is_empty() => "nothing".to_owned(),
        Ok(facts) => facts.iter().map(|(_, data)| data.kind()).collect::<Vec<_>>().join("+"),
        Err(rejection) => {
            let debug = format!("{rejection:?}");
            debug.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
        }
    }
}
