//! A million jobs of the usual kinds, told as their hosts told them: what a control plane has to
//! show after a busy day.

use std::time::Duration;

use serde_json::json;
use stoker_schemas::diagnosis::{Cause, Confidence, Diagnosis};
use stoker_schemas::event::{
    AttemptFailed, AttemptReady, AttemptStarted, DeadReason, GoneWhy, HOST_SOURCE, Identity, JOB_LEVEL, JobDead,
    JobEnqueued, Stage, StageMark, VmGone,
};
use stoker_schemas::image::Driver;
use stoker_schemas::{Epoch, Event, EventData, HostName, JobId, JobSpec, Time, VmId};
use uuid::{NoContext, Timestamp, Uuid};

/// Any error: who asks only ever prints it.
type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Events of a job that became ready; the others have as many within one.
pub const EVENTS_PER_JOB: u64 = 3;
/// Of so many jobs one is dead, and one still waits.
const DEAD_OF: u64 = 20;
const BOOT: Duration = Duration::from_millis(1_900);
/// So many hosts, and of each label value and image so many jobs.
const HOSTS: u64 = 20;
const TEAMS: u64 = 50;
const IMAGES: [&str; 4] = ["golden@7", "golden@8", "probe@1", "linux-minimal@3"];
const CAUSES: [Cause; 3] = [Cause::KernelPanic, Cause::AgentNotListening, Cause::NoDhcpRequest];

/// Tells one job after the other.
#[derive(Default)]
pub struct Crowd {
    next: u64,
    all_dead: bool,
}

impl Crowd {
    /// All of them ended dead.
    pub fn of_the_dead() -> Self {
        Self { all_dead: true, ..Self::default() }
    }

    /// The next job's events, as if it had ended at this time.
    pub fn tell(&mut self, ended: Time) -> Fallible<Vec<Event>> {
        let n = if self.all_dead { self.next * DEAD_OF } else { self.next };
        self.next += 1;
        let enqueued_at = before(ended, BOOT);
        let id = JobId(Uuid::new_v7(at(enqueued_at)));
        let spec = spec(n)?;
        let mut events = vec![Event::about_job(
            id,
            JOB_LEVEL,
            "/producers/bench",
            enqueued_at,
            EventData::JobEnqueued(JobEnqueued { spec: spec.clone(), by: "bench".to_owned() }),
        )];
        if n % DEAD_OF != 1 {
            events.extend(attempt(id, n, &spec, enqueued_at)?);
        }
        Ok(events)
    }
}

/// So much earlier.
pub fn before(time: Time, by: Duration) -> Time {
    Time::from_unix_micros(time.unix_micros() - i64::try_from(by.as_micros()).unwrap_or(i64::MAX))
}

fn at(time: Time) -> Timestamp {
    let micros = u64::try_from(time.unix_micros()).unwrap_or_default();
    let nanos = u32::try_from(micros % 1_000_000).unwrap_or_default() * 1_000;
    Timestamp::from_unix(NoContext, micros / 1_000_000, nanos)
}

fn spec(n: u64) -> Fallible<JobSpec> {
    let image = IMAGES[usize::try_from(n)? % IMAGES.len()];
    let labels = json!({"team": format!("team-{}", n % TEAMS), "build": format!("b{}", n / 100)});
    Ok(JobSpec::from_value(&json!({"image": image, "labels": labels}))?)
}

fn attempt(id: JobId, n: u64, spec: &JobSpec, enqueued_at: Time) -> Fallible<Vec<Event>> {
    let (epoch, host): (_, HostName) = (Epoch::first(1), format!("h-{:02}", n % HOSTS).parse()?);
    let source = format!("{HOST_SOURCE}{host}");
    let vm = VmId::derive(id, epoch, &host);
    let (taken, ended) = (enqueued_at.plus(Duration::from_millis(3)), enqueued_at.plus(BOOT));
    let address = Some(std::net::Ipv4Addr::new(192, 168, 100, 17));
    let (driver, asked_at, asked_attempt) = (Driver::Firecracker, None, 0);
    let started =
        AttemptStarted { host, vm, driver, address, spec: spec.clone(), enqueued_at, asked_at, asked_attempt };
    let tell = |time, data| Event::about_job(id, epoch, &source, time, data);
    let mut events = vec![tell(taken, EventData::AttemptStarted(started))];
    if !n.is_multiple_of(DEAD_OF) {
        let ready = AttemptReady {
            agent: "192.168.100.17:8080".parse()?,
            status: 200,
            body: r#"{"status":"ok"}"#.to_owned(),
            identity: Identity::VmId,
            marks: marks(taken),
        };
        events.push(tell(ended, EventData::AttemptReady(ready)));
        return Ok(events);
    }
    let diagnosis = diagnosis(n)?;
    let failed = AttemptFailed { diagnosis: diagnosis.clone(), marks: marks(taken) };
    let gone = VmGone { why: GoneWhy::Failed, detail: String::new() };
    let (reason, diagnosis, detail) = (DeadReason::NotRetryable, Some(diagnosis), String::new());
    let dead = JobDead { attempt: 1, reason, diagnosis, detail, spec: spec.clone() };
    events.push(tell(ended, EventData::AttemptFailed(failed)));
    events.push(tell(ended, EventData::VmGone(gone)));
    events.push(tell(ended, EventData::JobDead(dead)));
    Ok(events)
}

fn diagnosis(n: u64) -> Fallible<Diagnosis> {
    Ok(Diagnosis {
        stage: Stage::KernelStarted,
        cause: CAUSES[usize::try_from(n / DEAD_OF)? % CAUSES.len()],
        confidence: Some(Confidence::Certain),
        summary: "the guest's kernel panicked before its agent answered".to_owned(),
        remedy: "look at the console".to_owned(),
        evidence: vec!["Kernel panic - not syncing: VFS: Unable to mount root fs".to_owned()],
        retryable: false,
    })
}

fn marks(taken: Time) -> Vec<StageMark> {
    let stages = [
        (Stage::DiskReady, 9),
        (Stage::NetworkReady, 14),
        (Stage::Spawned, 27),
        (Stage::KernelStarted, 60),
        (Stage::DhcpRequested, 700),
        (Stage::DhcpAck, 1_500),
        (Stage::AgentConnected, 1_700),
    ];
    let mark = |(stage, ms)| StageMark {
        stage,
        at: taken.plus(Duration::from_millis(ms)),
        detail: String::new(),
        absent: false,
    };
    stages.map(mark).to_vec()
}
