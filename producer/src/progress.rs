//! What a person who waits for a job is shown: a line for each thing that happened, and what the job waits for.
//! Pure: the job's state and the time come in.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use stoker_schemas::event::{AttemptStarted, Stage, StageMark};
use stoker_schemas::spec::Network;
use stoker_schemas::state::Attempt;
use stoker_schemas::{Epoch, JobState, Phase, Time};

use crate::report::text::plain;
use crate::view::{duration, ms_between};

/// Columns of the time before each line.
const TIME: usize = 10;

/// Columns of the line that is written again; few terminals have fewer.
const LIVE_COLUMNS: usize = 79;

/// How long nothing happens before a line says what the job waits for.
pub const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// Whether a person who waits has the answer.
pub fn settled(phase: Phase) -> bool {
    phase == Phase::Ready || phase.is_closed()
}

/// What is shown of one job: lines that stay, and on a terminal one below them that is written again and again.
#[derive(Debug)]
pub struct Screen {
    terminal: bool,
    progress: Progress,
    began: Instant,
    said: Instant,
    live: bool,
}

impl Screen {
    /// Nothing is shown yet.
    pub fn new(terminal: bool, now: Instant) -> Self {
        Self { terminal, progress: Progress::default(), began: now, said: now, live: false }
    }

    /// Shows what is new and, while the job is not settled, what it waits for: on a terminal always, else when
    /// nothing was said for [`SIGN_OF_LIFE`]. To be called at each change and about once a second.
    pub fn show(&mut self, state: &JobState, now: Instant, out: &mut dyn Write) -> io::Result<()> {
        let settled = settled(state.phase());
        let news = self.progress.news(state);
        if self.live && (settled || !news.is_empty()) {
            write!(out, "\r\u{1b}[K")?;
            self.live = false;
        }
        for text in &news {
            writeln!(out, "{text}")?;
            self.said = now;
        }
        if settled {
            return out.flush();
        }
        let after = now.saturating_duration_since(self.began);
        let waiting = line(u64::try_from(after.as_millis()).unwrap_or(u64::MAX), &waiting(state));
        if self.terminal {
            write!(out, "\r\u{1b}[K{}", one_row(&waiting))?;
            self.live = true;
        } else if now.saturating_duration_since(self.said) >= SIGN_OF_LIFE {
            writeln!(out, "{waiting}")?;
            self.said = now;
        }
        out.flush()
    }
}

/// A line that is written again must not take two rows of the terminal: only the last one is cleared.
fn one_row(text: &str) -> String {
    if text.chars().count() <= LIVE_COLUMNS {
        return text.to_owned();
    }
    let head: String = text.chars().take(LIVE_COLUMNS - 1).collect();
    format!("{}…", head.trim_end())
}

fn waiting(state: &JobState) -> String {
    format!("waiting for {}", waiting_for(state))
}

/// The lines of one job, each once.
#[derive(Debug, Default)]
pub struct Progress {
    shown: BTreeSet<(Epoch, Time, String)>,
}

impl Progress {
    /// What is new since the last call, with the time since the job was enqueued.
    pub fn news(&mut self, state: &JobState) -> Vec<String> {
        let since = state.enqueued_at().unwrap_or(Time::UNIX_EPOCH);
        let mut lines: Vec<_> = state.attempts.iter().flat_map(|(epoch, a)| lines(*epoch, a)).collect();
        lines.extend(state.retries.values().map(|retry| {
            let r = &retry.value;
            let text = format!("attempt {} follows in {}", r.attempt, duration(r.delay_ms));
            (Epoch { attempt: r.attempt, delivery: 0 }, retry.at, text)
        }));
        lines.sort_by_key(|(epoch, at, _)| (*at, *epoch));
        lines.retain(|line| self.shown.insert(line.clone()));
        lines.into_iter().map(|(_, at, text)| line(ms_between(since, at), &plain(&text))).collect()
    }
}

/// A line with its time: milliseconds since the job was enqueued.
pub fn line(after_ms: u64, text: &str) -> String {
    format!("{:>TIME$}  {text}", duration(after_ms))
}

fn lines(epoch: Epoch, attempt: &Attempt) -> Vec<(Epoch, Time, String)> {
    let number = epoch.attempt;
    let started = attempt.started.iter().map(|started| {
        let host = &started.value.host;
        (started.at, format!("attempt {number} started on {host} ({})", started.value.driver.as_str()))
    });
    let marks = attempt.marks.iter().map(|mark| (mark.at, stage_line(mark)));
    let failed = attempt.failed.iter().map(|failed| {
        let diagnosis = &failed.value.diagnosis;
        (failed.at, format!("attempt {number} failed: {}: {}", diagnosis.cause.title(), diagnosis.summary))
    });
    let ready = attempt.ready.iter().map(|ready| {
        let proof = &ready.value;
        (ready.at, format!("ready: the agent at {} answered {}", proof.agent, proof.status))
    });
    started.chain(marks).chain(failed).chain(ready).map(|(at, text)| (epoch, at, text)).collect()
}

/// A stage for people, with its detail.
pub fn stage_line(mark: &StageMark) -> String {
    let name = mark.stage.as_str().replace('_', " ").replace("dhcp", "DHCP");
    match mark.detail.as_str() {
        "" => name,
        _ if mark.absent => format!("no {}", name.trim_end_matches(" ready")),
        detail => format!("{name} {detail}"),
    }
}

/// What the job waits for now.
pub fn waiting_for(state: &JobState) -> String {
    match state.phase() {
        Phase::Queued => "a host with room to take the job".to_owned(),
        Phase::Retrying => format!("attempt {} to begin", state.last_attempt()),
        Phase::Failing => "the failed VM to be removed".to_owned(),
        Phase::Booting => booting(state),
        Phase::Ready | Phase::Dead | Phase::Cancelled | Phase::Stopped => "nothing: the job is settled".to_owned(),
    }
}

fn booting(state: &JobState) -> String {
    let Some(attempt) = state.attempts.values().rev().find(|a| a.is_booting()) else { return "its VM".to_owned() };
    let is_unit = |stage| matches!(stage, Stage::UnitStarted | Stage::UnitFailed);
    let last = attempt.marks.iter().map(|mark| mark.stage).filter(|stage| !is_unit(*stage)).max();
    // A static guest asks for no address, and on a user network no DHCP message is seen.
    let dhcp = |started: &AttemptStarted| started.address.is_some() && started.spec.network == Network::Dhcp;
    let sees_dhcp = attempt.started.as_ref().is_some_and(|started| dhcp(&started.value));
    let agent = || {
        let port = state.spec().map_or(8080, |spec| spec.readiness.port);
        let path = state.spec().map_or("/health", |spec| spec.readiness.path.as_str());
        format!("the agent to answer GET {path} on port {port}")
    };
    match last {
        None | Some(Stage::Accepted) => "disk and network to be made".to_owned(),
        Some(Stage::DiskReady | Stage::NetworkReady) => "the hypervisor to start the VM".to_owned(),
        Some(Stage::Spawned) => "the kernel's first line on the console".to_owned(),
        Some(Stage::KernelStarted) if sees_dhcp => "the guest to ask for its address by DHCP".to_owned(),
        Some(Stage::DhcpRequested) => "the guest to take its address".to_owned(),
        Some(Stage::AgentHealthy) => units(state, attempt).unwrap_or_else(agent),
        Some(_) => agent(),
    }
}

/// The units that have not started.
fn units(state: &JobState, attempt: &Attempt) -> Option<String> {
    let started = |unit: &String| attempt.marks.iter().any(|m| m.stage == Stage::UnitStarted && m.detail == *unit);
    let missing: Vec<_> = state.spec()?.readiness.units.iter().filter(|unit| !started(unit)).cloned().collect();
    (!missing.is_empty()).then(|| format!("units to start: {}", missing.join(", ")))
}
