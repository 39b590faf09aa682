//! The events of a job's life, told at fixed times: the operators' own case and the usual ones.

use std::time::Duration;

use serde_json::json;
use stoker_schemas::diagnosis::{Cause, Confidence, Diagnosis};
use stoker_schemas::event::{
    AttemptFailed, AttemptProgressed, AttemptReady, AttemptStarted, DeadReason, GoneWhy, HostPublishingRefused,
    HostPublishingResumed, HostStarted, Identity, JOB_LEVEL, JobCancelled, JobDead, JobEnqueued, JobRetryScheduled,
    Request, Stage, StageMark, VmGone, WarmGone, WarmGoneWhy, WarmReady, WarmStarted,
};
use stoker_schemas::image::Driver;
use stoker_schemas::{Epoch, Event, EventData, HostName, JobId, JobSpec, JobState, Time, VmId};

/// 2025-11-24T16:00:00Z.
const START_MICROS: i64 = 1_764_000_000_000_000;

pub struct Story {
    pub id: JobId,
    pub spec: JobSpec,
    pub events: Vec<Event>,
    start: Time,
    host: HostName,
}

impl Story {
    /// A job of this name: the same name, the same id.
    pub fn of(name: &str) -> Self {
        let spec = JobSpec::from_value(&json!({
            "image": "golden@7",
            "labels": {"team": "web"},
            "readiness": {"units": ["VM Browser OAuth Agent", "Openbox Window Manager"]}
        }));
        let start = Time::from_unix_micros(START_MICROS);
        let host = "h-01".parse().unwrap();
        Self { id: JobId::from_key("default", name), spec: spec.unwrap(), events: Vec::new(), start, host }
    }

    /// The rest of the life of a job that was enqueued by this event.
    pub fn after(enqueued: &Event) -> Self {
        let EventData::JobEnqueued(data) = &enqueued.data else { panic!("not an enqueued event") };
        let (spec, id) = (data.spec.clone(), enqueued.job().unwrap());
        Self { id, spec, events: Vec::new(), start: enqueued.time, host: "h-01".parse().unwrap() }
    }

    /// The whole story so much later.
    pub fn later(mut self, seconds: u64) -> Self {
        self.start = self.start.plus(Duration::from_secs(seconds));
        self
    }

    pub fn at(&self, ms: u64) -> Time {
        self.start.plus(Duration::from_millis(ms))
    }

    fn tell(mut self, source: &str, epoch: Epoch, ms: u64, data: EventData) -> Self {
        self.events.push(Event::about_job(self.id, epoch, source, self.at(ms), data));
        self
    }

    fn by_host(self, attempt: u32, ms: u64, data: EventData) -> Self {
        let source = format!("/hosts/{}", self.host);
        self.tell(&source, Epoch::first(attempt), ms, data)
    }

    pub fn vm(&self, attempt: u32) -> VmId {
        VmId::derive(self.id, Epoch::first(attempt), &self.host)
    }

    pub fn state(&self) -> JobState {
        JobState::replay(self.id, &self.events).unwrap()
    }

    pub fn enqueued(self) -> Self {
        let data = EventData::JobEnqueued(JobEnqueued { spec: self.spec.clone(), by: "cli/ada".to_owned() });
        self.tell("/producers/api", JOB_LEVEL, 0, data)
    }

    pub fn on(mut self, host: &str) -> Self {
        self.host = host.parse().unwrap();
        self
    }

    pub fn started(self, attempt: u32, ms: u64, address: &str) -> Self {
        self.started_by(Driver::Firecracker, Some(address), attempt, ms)
    }

    /// Started by this driver, on a user network where there is no address.
    pub fn started_by(self, driver: Driver, address: Option<&str>, attempt: u32, ms: u64) -> Self {
        let data = EventData::AttemptStarted(AttemptStarted {
            host: self.host.clone(),
            vm: self.vm(attempt),
            driver,
            address: address.map(|address| address.parse().unwrap()),
            spec: self.spec.clone(),
            enqueued_at: self.at(0),
            asked_at: None,
            asked_attempt: 0,
        });
        self.by_host(attempt, ms, data)
    }

    pub fn mark(&self, stage: Stage, ms: u64, detail: &str) -> StageMark {
        StageMark { stage, at: self.at(ms), detail: detail.to_owned(), absent: false }
    }

    pub fn progressed(self, attempt: u32, ms: u64, marks: Vec<StageMark>) -> Self {
        self.by_host(attempt, ms, EventData::AttemptProgressed(AttemptProgressed { marks }))
    }

    /// Disk, network, VMM, kernel and DHCP, beginning at `ms`.
    pub fn booted(self, attempt: u32, ms: u64, address: &str) -> Self {
        let marks = vec![
            self.mark(Stage::DiskReady, ms + 9, ""),
            self.mark(Stage::NetworkReady, ms + 13, ""),
            self.mark(Stage::Spawned, ms + 26, ""),
            self.mark(Stage::KernelStarted, ms + 310, ""),
            self.mark(Stage::DhcpRequested, ms + 1_020, ""),
            self.mark(Stage::DhcpAck, ms + 1_550, address),
        ];
        self.progressed(attempt, ms + 1_560, marks)
    }

    /// The console shows its first byte.
    pub fn kernel_started(self, attempt: u32, ms: u64) -> Self {
        let marks = vec![self.mark(Stage::KernelStarted, ms, "")];
        self.by_host(attempt, ms, EventData::AttemptProgressed(AttemptProgressed { marks }))
    }

    /// The agent answers, and units that the job waits for have not started.
    pub fn healthy(self, attempt: u32, ms: u64) -> Self {
        let marks = vec![self.mark(Stage::AgentHealthy, ms, "HTTP 200")];
        self.by_host(attempt, ms, EventData::AttemptProgressed(AttemptProgressed { marks }))
    }

    pub fn ready(self, attempt: u32, ms: u64, address: &str) -> Self {
        let marks = vec![
            self.mark(Stage::AgentConnected, ms - 40, ""),
            self.mark(Stage::UnitStarted, ms - 30, "Openbox Window Manager"),
            self.mark(Stage::UnitStarted, ms - 20, "VM Browser OAuth Agent"),
            self.mark(Stage::AgentHealthy, ms, ""),
        ];
        self.answered(attempt, ms, address, marks)
    }

    /// Ready, with these marks.
    pub fn answered(self, attempt: u32, ms: u64, address: &str, marks: Vec<StageMark>) -> Self {
        let data = EventData::AttemptReady(AttemptReady {
            agent: format!("{address}:8080").parse().unwrap(),
            status: 200,
            body: "{\"status\":\"healthy\",\"uptime\":2.003244407}".to_owned(),
            identity: Identity::VmId,
            marks,
        });
        self.by_host(attempt, ms, data)
    }

    /// The operators' own case.
    pub fn conflicting() -> Diagnosis {
        Diagnosis {
            stage: Stage::DhcpAck,
            cause: Cause::ConflictingNetwork,
            confidence: Some(Confidence::Certain),
            summary: "the kernel line sets ip=192.168.100.2 while the image asks DHCP; the lease is 192.168.100.79, \
                      nobody answers on 192.168.100.2"
                .to_owned(),
            remedy: "remove ip= from the kernel_args of image golden@7: it uses DHCP".to_owned(),
            evidence: vec![
                "console: IP-Config: Complete: device=eth0, ipaddr=192.168.100.2 <b>|x|</b>".to_owned(),
                "DHCP: ACK 192.168.100.79".to_owned(),
                "probe: EHOSTUNREACH x31".to_owned(),
            ],
            retryable: false,
        }
    }

    /// The usual hiccup.
    pub fn not_listening() -> Diagnosis {
        Diagnosis {
            stage: Stage::DhcpAck,
            cause: Cause::AgentNotListening,
            confidence: Some(Confidence::Likely),
            summary: "nothing listens on 192.168.100.17:8080".to_owned(),
            remedy: "see the console for the agent's unit".to_owned(),
            evidence: vec!["probe: ECONNREFUSED x120".to_owned()],
            retryable: true,
        }
    }

    pub fn failed(self, attempt: u32, ms: u64, diagnosis: Diagnosis) -> Self {
        let data = EventData::AttemptFailed(AttemptFailed { diagnosis, marks: Vec::new() });
        self.by_host(attempt, ms, data)
    }

    pub fn gone(self, attempt: u32, ms: u64, why: GoneWhy) -> Self {
        self.by_host(attempt, ms, EventData::VmGone(VmGone { why, detail: String::new() }))
    }

    pub fn retry(self, attempt: u32, ms: u64, delay_ms: u64) -> Self {
        let data = EventData::JobRetryScheduled(JobRetryScheduled {
            attempt,
            not_before: self.at(ms + delay_ms),
            delay_ms,
            cause: Some(Cause::AgentNotListening),
            by: None,
            spec: self.spec.clone(),
            enqueued_at: self.at(0),
            asked_at: None,
            asked_attempt: 0,
        });
        self.by_host(attempt, ms, data)
    }

    pub fn dead(self, attempt: u32, ms: u64, diagnosis: Diagnosis) -> Self {
        let reason = DeadReason::NotRetryable;
        let (diagnosis, detail, spec) = (Some(diagnosis), String::new(), self.spec.clone());
        let data = EventData::JobDead(JobDead { attempt, reason, diagnosis, detail, spec });
        self.by_host(attempt, ms, data)
    }

    pub fn cancelled(self, ms: u64) -> Self {
        let by = || "cli/ada".to_owned();
        let request = EventData::CancelRequested(Request { by: by(), reason: "wrong image".to_owned() }.into());
        let done = EventData::JobCancelled(JobCancelled { attempt: 1, by: by() });
        self.tell("/producers/api", JOB_LEVEL, ms, request).by_host(1, ms + 5, done)
    }

    /// Ready at the first try, in 1.93 s.
    pub fn ready_at_first(name: &str) -> Self {
        let address = "192.168.100.17";
        Self::of(name).enqueued().started(1, 3, address).booted(1, 3, address).ready(1, 1_933, address)
    }

    /// Failed once, ready at the second try on another host.
    pub fn failed_then_ready(name: &str) -> Self {
        let address = "192.168.100.17";
        let failed = Self::of(name).enqueued().started(1, 3, address).booted(1, 3, address);
        let failed = failed.failed(1, 47_003, Self::not_listening()).gone(1, 47_050, GoneWhy::Failed);
        let again = failed.retry(2, 47_060, 1_000).on("h-02");
        again.started(2, 48_070, address).booted(2, 48_070, address).ready(2, 50_000, address)
    }

    /// The operators' own case: two owners of eth0.
    pub fn conflict(name: &str) -> Self {
        // The ip= is in the image's own kernel line: in a job's it would have been refused.
        let address = "192.168.100.2";
        let booted = Self::of(name).enqueued().started(1, 3, address).booted(1, 3, "192.168.100.79");
        let failed = booted.failed(1, 47_003, Self::conflicting()).gone(1, 47_050, GoneWhy::Failed);
        failed.dead(1, 47_050, Self::conflicting())
    }
}

/// A host keeps two VMs up: one waits, one boots, one before them was of no use.
pub fn warm_vms(name: &str) -> Vec<Event> {
    let host: HostName = name.parse().unwrap();
    let began = host_started(name);
    let vm = |number| VmId::warm(&host, began.time, number);
    let event = |seconds, data| Event { time: began.time.plus(Duration::from_secs(seconds)), data, ..began.clone() };
    let started = |number| {
        let (image, address) = ("golden@7".parse().unwrap(), "192.168.100.90".parse().ok());
        EventData::WarmStarted(WarmStarted { vm: vm(number), image, vcpus: 2, memory_mib: 1_024, address, wanted: 2 })
    };
    let (why, diagnosis, detail) = (WarmGoneWhy::Failed, Some(Story::conflicting()), String::new());
    vec![
        event(1, started(1)),
        event(2, started(2)),
        event(3, EventData::WarmReady(WarmReady { vm: vm(1), agent: "192.168.100.90:8080".parse().unwrap() })),
        event(4, EventData::WarmGone(WarmGone { vm: vm(2), why, diagnosis, detail })),
        event(5, started(3)),
    ]
}

/// A queue refuses what the host publishes, some time after the host began.
pub fn publishing_refused(host: &str, seconds: u64) -> Event {
    let queue = "stoker.delay.2000".to_owned();
    let reason = "broker refused the message: a queue it goes to is full or unavailable".to_owned();
    let refused = HostPublishingRefused { queue, reason, messages: 12, oldest: host_started(host).time };
    later(host, seconds, EventData::HostPublishingRefused(refused))
}

/// It takes it again.
pub fn publishing_resumed(host: &str, seconds: u64) -> Event {
    let resumed = HostPublishingResumed { queue: "stoker.delay.2000".to_owned() };
    later(host, seconds, EventData::HostPublishingResumed(resumed))
}

fn later(host: &str, seconds: u64, data: EventData) -> Event {
    let started = host_started(host);
    Event { data, time: started.time.plus(Duration::from_secs(seconds)), ..started }
}

/// A host that takes jobs.
pub fn host_started(name: &str) -> Event {
    Event {
        source: format!("/hosts/{name}"),
        subject: name.to_owned(),
        time: Time::from_unix_micros(START_MICROS),
        epoch: JOB_LEVEL,
        traceparent: None,
        data: EventData::HostStarted(HostStarted {
            slots: 32,
            vcpus: 64,
            memory_mib: 65_536,
            max_booting: Some(8),
            labels: [("rack".to_owned(), "7".to_owned())].into(),
            pools: vec!["default".to_owned()],
            hypervisor: "Firecracker 1.12.1, KVM".to_owned(),
            version: "0.1.0".to_owned(),
            adopted: 0,
        }),
    }
}
