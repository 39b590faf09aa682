//! A job as people and programs see it: a pure function of its state. The HTTP API serves it, the
//! command line and the pages show it.

use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use stoker_schemas::diagnosis::{Cause, Diagnosis};
use stoker_schemas::event::{AttemptStarted, DeadReason, GoneWhy, Identity, Stage};
use stoker_schemas::image::Driver;
use stoker_schemas::state::Attempt;
use stoker_schemas::{Epoch, HostName, JobId, JobSpec, JobState, Phase, Time, VmId};

/// One job with everything known of it.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct JobView {
    /// Which.
    pub id: JobId,
    /// Where it stands.
    pub phase: Phase,
    /// Somebody asked to cancel it, and that is not settled yet.
    pub cancelling: bool,
    /// When it was first enqueued.
    pub enqueued_at: Option<Time>,
    /// Who enqueued it.
    pub by: Option<String>,
    /// What is booted.
    pub spec: Option<JobSpec>,
    /// Tries, the first one first.
    pub attempts: Vec<AttemptView>,
    /// The attempt that is scheduled and has not started.
    pub next: Option<NextView>,
    /// Why it is dead, if it is.
    pub dead: Option<DeadView>,
    /// Why the last host that got it put it back.
    pub deferred: Option<String>,
    /// Since when it is put back for that reason: each time it comes to a host again, until something changes.
    #[serde(default)]
    pub deferred_since: Option<Time>,
    /// Its message was published again, and no host has taken it since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub republished: Option<RepublishedView>,
}

/// A message that was published again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct RepublishedView {
    /// How often.
    pub times: usize,
    /// When, the last time.
    pub at: Time,
    /// Why, the last time.
    pub reason: String,
}

/// One try.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct AttemptView {
    /// Its number.
    pub attempt: u32,
    /// How often its message had been given out before.
    pub delivery: u32,
    /// How it went.
    pub outcome: Outcome,
    /// Where it ran.
    pub host: Option<HostName>,
    /// Its VM.
    pub vm: Option<VmId>,
    /// The VM's MAC address.
    pub mac: Option<String>,
    /// The VM's tap device; none on a user network and for simulated guests.
    pub tap: Option<String>,
    /// With which hypervisor.
    pub driver: Option<Driver>,
    /// Address from the host's pool.
    pub address: Option<Ipv4Addr>,
    /// When a host took it.
    pub started_at: Option<Time>,
    /// From taken to ready or failed, ms.
    pub took_ms: Option<u64>,
    /// Stages in order, each with how long it took.
    pub stages: Vec<StageView>,
    /// systemd units seen on the console.
    pub units: Vec<UnitView>,
    /// The proof that it was up.
    pub proof: Option<ProofView>,
    /// Why it failed.
    pub diagnosis: Option<Diagnosis>,
    /// Why and when the VM went.
    pub gone: Option<GoneView>,
    /// Times a restarted worker took the VM over.
    pub adopted: usize,
    /// Another VM of the job was chosen to stay: this one goes.
    pub superseded: bool,
}

/// How a try went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[schemars(rename = "AttemptOutcome")]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Not decided yet.
    Booting,
    /// Became ready and is up.
    Ready,
    /// Became ready and is gone.
    WasReady,
    /// Did not become ready.
    Failed,
    /// Removed before it was decided.
    Removed,
}

impl Outcome {
    /// For people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Booting => "booting",
            Self::Ready => "ready",
            Self::WasReady => "was ready",
            Self::Failed => "failed",
            Self::Removed => "removed",
        }
    }

    /// Whether its VM was proven reachable, now or earlier.
    pub const fn was_proven(self) -> bool {
        matches!(self, Self::Ready | Self::WasReady)
    }
}

/// A stage with its place in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct StageView {
    /// Which (`queued` stands before the first).
    pub name: String,
    /// When it was reached.
    pub at: Time,
    /// Milliseconds from the attempt's start to when it began; 0 for the wait in the queue.
    pub begin_ms: u64,
    /// How long it took, ms.
    pub took_ms: u64,
    /// More (the address, …).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// The VM has no such part (a disk): nothing was done; the detail says why.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub absent: bool,
}

/// A systemd unit on the console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct UnitView {
    /// Its name as printed.
    pub name: String,
    /// Started, not failed.
    pub ok: bool,
    /// Milliseconds after the attempt's start.
    pub after_ms: u64,
}

/// The answer that made it ready.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ProofView {
    /// Where the agent answered.
    pub agent: SocketAddr,
    /// HTTP status.
    pub status: u16,
    /// Beginning of the body.
    pub body: String,
    /// How we know that it was this VM.
    pub identity: Identity,
    /// When.
    pub at: Time,
}

/// The end of a VM.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct GoneView {
    /// Why.
    pub why: GoneWhy,
    /// More, for people.
    pub detail: String,
    /// When.
    pub at: Time,
}

/// A scheduled attempt.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct NextView {
    /// Its number.
    pub attempt: u32,
    /// Not before.
    pub not_before: Time,
    /// Who wanted it to wait so long; none for the retry policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snoozed_by: Option<String>,
    /// The failure it follows; none when somebody asked.
    pub cause: Option<Cause>,
    /// Who asked.
    pub by: Option<String>,
}

/// Why no attempt follows.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct DeadView {
    /// Why.
    pub reason: DeadReason,
    /// More, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// When.
    pub at: Time,
}

/// Milliseconds from one time to a later one.
pub fn ms_between(from: Time, to: Time) -> u64 {
    u64::try_from(to.since(from).as_millis()).unwrap_or(u64::MAX)
}

impl JobView {
    /// The view of a job.
    pub fn of(state: &JobState) -> Self {
        let last = state.last_attempt();
        let phase = state.phase();
        let enqueued_at = state.enqueued_at();
        let next = state.retries.get(&last).filter(|_| phase == Phase::Retrying).map(|r| NextView {
            attempt: last,
            not_before: state.due(last).unwrap_or(r.value.not_before),
            snoozed_by: state.snooze(last).map(|snooze| snooze.value.by.clone()),
            cause: r.value.cause,
            by: r.value.by.clone(),
        });
        let dead = state.dead.values().next_back().filter(|_| phase == Phase::Dead);
        let waits = matches!(phase, Phase::Queued | Phase::Retrying);
        let deferred = state.deferred.as_ref().filter(|_| waits);
        Self {
            id: state.id,
            phase,
            cancelling: state.pending_cancel().is_some(),
            enqueued_at,
            by: state.enqueued.as_ref().map(|e| e.value.by.clone()),
            spec: state.spec().cloned(),
            attempts: attempts(state),
            next,
            dead: dead.map(|d| DeadView { reason: d.value.reason, detail: d.value.detail.clone(), at: d.at }),
            deferred: deferred.map(|d| d.value.reason.clone()),
            deferred_since: deferred.map(|d| d.at),
            republished: republished(state).filter(|_| waits),
        }
    }

    /// The latest try.
    pub fn last(&self) -> Option<&AttemptView> {
        self.attempts.last()
    }
}

impl AttemptView {
    /// The view of one try.
    pub fn of(state: &JobState, epoch: Epoch, a: &Attempt) -> Self {
        let started = a.started.as_ref();
        let start = started.map(|s| s.at).or_else(|| a.marks.iter().map(|m| m.at).min());
        let decided = a.ready.as_ref().map(|r| r.at).or(a.failed.as_ref().map(|f| f.at));
        let vm = started.map(|s| s.value.vm);
        Self {
            attempt: epoch.attempt,
            delivery: epoch.delivery,
            outcome: outcome(a),
            host: a.host().cloned(),
            vm,
            mac: vm.map(|vm| vm.mac().to_string()),
            tap: started.filter(|s| has_tap(&s.value)).map(|s| s.value.vm.tap()),
            driver: started.map(|s| s.value.driver),
            address: started.and_then(|s| s.value.address),
            started_at: start,
            took_ms: start.zip(decided).map(|(from, to)| ms_between(from, to)),
            stages: start.map(|start| stages(state, epoch, a, start)).unwrap_or_default(),
            units: start.map(|start| units(a, start)).unwrap_or_default(),
            proof: a.ready.as_ref().map(|r| ProofView {
                agent: r.value.agent,
                status: r.value.status,
                body: r.value.body.clone(),
                identity: r.value.identity,
                at: r.at,
            }),
            diagnosis: a.failed.as_ref().map(|f| f.value.diagnosis.clone()),
            gone: a.gone.as_ref().map(|g| GoneView { why: g.value.why, detail: g.value.detail.clone(), at: g.at }),
            adopted: a.adopted.len(),
            superseded: a.superseded.is_some(),
        }
    }
}

/// Whether its network is a tap on a bridge: a user network has no pool of addresses.
fn has_tap(started: &AttemptStarted) -> bool {
    started.driver != Driver::Simulated && started.address.is_some()
}

fn republished(state: &JobState) -> Option<RepublishedView> {
    let attempt = state.last_attempt().max(1);
    let told = || state.republished.iter().filter(|told| told.value.attempt == attempt);
    let last = told().next_back()?;
    Some(RepublishedView { times: told().count(), at: last.at, reason: last.value.reason.clone() })
}

/// Every try, those of the same epoch on other hosts included.
fn attempts(state: &JobState) -> Vec<AttemptView> {
    let mut tries: Vec<_> = state.tries().collect();
    tries.sort_by_key(|(epoch, a)| (*epoch, a.started.as_ref().map(|s| s.at)));
    tries.into_iter().map(|(epoch, a)| AttemptView::of(state, epoch, a)).collect()
}

fn outcome(a: &Attempt) -> Outcome {
    match (&a.ready, &a.failed, &a.gone) {
        (Some(_), None, None) => Outcome::Ready,
        (Some(_), _, _) => Outcome::WasReady,
        (None, Some(_), _) => Outcome::Failed,
        (None, None, Some(_)) => Outcome::Removed,
        (None, None, None) => Outcome::Booting,
    }
}

const fn is_unit(stage: Stage) -> bool {
    matches!(stage, Stage::UnitStarted | Stage::UnitFailed)
}

fn stages(state: &JobState, epoch: Epoch, a: &Attempt, start: Time) -> Vec<StageView> {
    let marks = a.stages();
    let since = state.waits_since(epoch.attempt);
    let mut views = Vec::with_capacity(marks.len() + 1);
    if let Some(since) = since {
        let took_ms = ms_between(since, start);
        let (name, detail) = ("queued".to_owned(), String::new());
        views.push(StageView { name, at: start, begin_ms: 0, took_ms, detail, absent: false });
    }
    let mut before = start;
    for mark in marks {
        views.push(StageView {
            name: mark.stage.as_str().to_owned(),
            at: mark.at,
            begin_ms: ms_between(start, before),
            took_ms: ms_between(before, mark.at),
            detail: mark.detail.clone(),
            absent: mark.absent,
        });
        before = before.max(mark.at);
    }
    views
}

fn units(a: &Attempt, start: Time) -> Vec<UnitView> {
    let mut marks: Vec<_> = a.marks.iter().filter(|m| is_unit(m.stage)).collect();
    marks.sort_by_key(|m| m.at);
    let view = |m: &&stoker_schemas::event::StageMark| UnitView {
        name: m.detail.clone(),
        ok: m.stage == Stage::UnitStarted,
        after_ms: ms_between(start, m.at),
    };
    marks.iter().map(view).collect()
}

/// A duration for people: `3 ms`, `1.93 s`, `2 min 5 s`, `3 h 2 min`.
pub fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{:02} s", ms / 1_000, ms % 1_000 / 10),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1_000),
        3_600_000..86_400_000 => format!("{} h {} min", ms / 3_600_000, ms % 3_600_000 / 60_000),
        _ => format!("{} d {} h", ms / 86_400_000, ms % 86_400_000 / 3_600_000),
    }
}

/// The beginning of an id, for tables; long enough to be told apart by the eye, and
/// accepted wherever an id is, as long as it is the only one with it.
pub fn short_id(id: &str) -> &str {
    id.get(..18).unwrap_or(id)
}
