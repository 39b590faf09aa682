//! Turns by hand: what comes in together, and what a broker refuses.

use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use stoker_schemas::event::{Event, JOB_LEVEL, JobEnqueued, Request};
use stoker_schemas::{JobSpec, JobState, Phase};

use super::*;
use crate::broker::embedded::EmbeddedBroker;
use crate::clock::Clock;
use crate::images::ImageStore;
use crate::log::LogOptions;
use crate::ports::broker::{About, Ack, NotDeferred, Source};
use crate::ports::handle::Handles;
use crate::vm::simulated::{SimWorld, Simulated, SimulatedNetwork, SimulatedProber};

/// How messages were settled, in order.
type Settled = Arc<Mutex<Vec<(u32, &'static str)>>>;

/// A message with a number; `refuses`: the broker does not take it back.
struct Message {
    number: u32,
    refuses: bool,
    delays: Arc<Mutex<Vec<Duration>>>,
    settled: Settled,
}

impl Message {
    fn note(&self, how: &'static str) -> Result<(), BrokerError> {
        self.settled.lock().unwrap().push((self.number, how));
        Ok(())
    }
}

#[async_trait]
impl Ack for Message {
    async fn ack(self: Box<Self>) -> Result<(), BrokerError> {
        self.note("ack")
    }
    async fn requeue(self: Box<Self>) -> Result<(), BrokerError> {
        self.note("requeue")
    }
    async fn defer(self: Box<Self>, delay: Duration) -> Result<(), NotDeferred> {
        if self.refuses {
            return Err(NotDeferred { ack: self, error: BrokerError::Refused("full".to_owned()) });
        }
        self.delays.lock().unwrap().push(delay);
        match self.note("defer") {
            Ok(()) => Ok(()),
            Err(error) => Err(NotDeferred { ack: self, error }),
        }
    }
    async fn dead_letter(self: Box<Self>) -> Result<(), BrokerError> {
        self.note("dead_letter")
    }
}

/// A supervisor whose turns are made by hand, on a broker that is not in its log.
struct Bench {
    supervisor: Supervisor,
    settled: Settled,
    delays: Arc<Mutex<Vec<Duration>>>,
    clock: Clock,
    handles: Handles,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new(change: impl FnOnce(&mut Settings)) -> Self {
        let (dir, world, clock) = (tempfile::tempdir().unwrap(), SimWorld::new(), Clock::system());
        let log = EventLog::open(dir.path().join("log"), LogOptions::default()).unwrap();
        let rig = Rig {
            hypervisor: Arc::new(Simulated::new(world.clone())),
            network: Arc::new(SimulatedNetwork::new(world.clone())),
            prober: Arc::new(SimulatedProber::new(world)),
            images: Arc::new(ImageStore::Simulated),
            dirs: None,
            clock,
            stop_grace: Duration::ZERO,
        };
        let mut settings = Settings {
            host: "h-1".parse().unwrap(),
            labels: BTreeMap::new(),
            pools: vec![PoolName::default()],
            capacity: Capacity { slots: 4, vcpus: 4, memory_mib: 1_024 },
            max_booting: 4,
            hold: Duration::from_secs(60),
            settle_after: Duration::from_secs(60),
            drain: Duration::ZERO,
            shares_log: false,
            warm: Vec::new(),
            seed: 7,
        };
        change(&mut settings);
        let broker = Arc::new(EmbeddedBroker::open(log.clone(), clock).unwrap());
        let supervisor = Supervisor::open(settings, rig, log, broker).unwrap();
        // Of a subscription that has ended: what a test leaves in hand is no fault.
        let (out, _) = mpsc::channel(1);
        let handles = Handles::new(Source::HostCommands, &out, tokio_util::sync::CancellationToken::new());
        Self { supervisor, settled: Settled::default(), delays: Arc::default(), clock, handles, _dir: dir }
    }

    fn message(&self, number: u32, refuses: bool, event: &Event) -> Delivery {
        let ack = Message { number, refuses, delays: self.delays.clone(), settled: self.settled.clone() };
        let (ack, about) = (self.handles.issue(Box::new(ack)), About::default());
        let body = Bytes::from(event.encode().unwrap());
        Delivery { routing_key: String::new(), delivery_count: 0, deferrals: 0, about, body, ack }
    }

    fn event(&self, job: JobId, data: EventData) -> Event {
        Event::about_job(job, JOB_LEVEL, "/producers/test", self.clock.now(), data)
    }

    async fn turn(&mut self, inputs: Vec<Input>) {
        let mut turn = Turn::default();
        // What was published needs no waiting for here.
        for input in [Input::Published(Progress::up_to(u64::MAX - 1))].into_iter().chain(inputs) {
            self.supervisor.handle(input, &mut turn).unwrap();
        }
        self.supervisor.commit(turn).await.unwrap();
    }

    fn state(&self, job: JobId) -> JobState {
        self.supervisor.load(job, &Turn::default()).unwrap().unwrap_or_else(|| JobState::new(job))
    }

    /// Waits until so many messages are settled.
    async fn settled(&self, count: usize) -> Vec<(u32, &'static str)> {
        let settled = async {
            while self.settled.lock().unwrap().len() < count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), settled).await.unwrap();
        self.settled.lock().unwrap().clone()
    }
}

fn new_job() -> JobId {
    JobId(uuid::Uuid::now_v7())
}

fn enqueued(memory_mib: u32) -> EventData {
    let spec = serde_json::json!({"image": "sim", "memory_mib": memory_mib});
    EventData::JobEnqueued(JobEnqueued { spec: JobSpec::from_value(&spec).unwrap(), by: "test".to_owned() })
}

fn cancel() -> EventData {
    EventData::CancelRequested(Request { by: "test".to_owned(), reason: String::new() }.into())
}

#[tokio::test]
async fn a_job_and_its_cancellation_in_one_turn_start_nothing() {
    let mut bench = Bench::new(|_| {});
    let id = new_job();
    let job = bench.message(1, false, &bench.event(id, enqueued(256)));
    let command = bench.message(2, false, &bench.event(id, cancel()));
    bench.turn(vec![Input::Command(command), Input::Job(job)]).await;
    let state = bench.state(id);
    assert_eq!((state.phase(), state.attempts.len()), (Phase::Cancelled, 0));
    assert_eq!(bench.settled(2).await.len(), 2);
}

#[tokio::test]
async fn of_two_messages_of_a_job_that_waits_one_stays_and_its_cancellation_ends_it() {
    let mut bench = Bench::new(|_| {});
    let (first, id) = (new_job(), new_job());
    let fills = bench.message(1, false, &bench.event(first, enqueued(1_024)));
    let event = bench.event(id, enqueued(256));
    let [waits, double] = [2, 3].map(|number| bench.message(number, false, &event));
    bench.turn(vec![Input::Job(fills), Input::Job(waits)]).await;
    bench.turn(vec![Input::Job(double)]).await;
    assert_eq!(bench.supervisor.waiting.len(), 1);
    assert_eq!(bench.settled(1).await, [(2, "ack")]);
    let command = bench.message(4, false, &bench.event(id, cancel()));
    bench.turn(vec![Input::Command(command), Input::Tick]).await;
    assert_eq!(bench.state(id).phase(), Phase::Cancelled);
    assert!(bench.supervisor.waiting.is_empty());
    bench.settled(3).await;
}

#[tokio::test]
async fn what_the_broker_does_not_take_back_stays_as_long_as_a_message_may() {
    let mut bench = Bench::new(|settings| {
        settings.hold = Duration::ZERO;
        settings.settle_after = Duration::ZERO;
    });
    let id = new_job();
    // It never fits, so it is put back at once.
    let job = bench.message(1, true, &bench.event(id, enqueued(2_048)));
    bench.turn(vec![Input::Job(job)]).await;
    assert_eq!(bench.state(id).deferred.map(|d| d.value.attempt), Some(1));
    let back = bench.supervisor.not_put_back_in.recv().await.unwrap();
    bench.supervisor.settings.settle_after = Duration::from_secs(60);
    bench.turn(vec![Input::StillHere(Box::new(back))]).await;
    assert_eq!(bench.supervisor.waiting.len(), 1, "it is tried again later");
    bench.turn(vec![Input::Tick]).await;
    let back = bench.supervisor.not_put_back_in.recv().await.unwrap();
    bench.supervisor.settings.settle_after = Duration::ZERO;
    bench.turn(vec![Input::StillHere(Box::new(back))]).await;
    assert_eq!(bench.settled(1).await, [(1, "requeue")]);
    assert!(bench.supervisor.waiting.is_empty());
}

#[tokio::test]
async fn a_message_of_an_attempt_that_owns_itself_is_not_kept_again() {
    let mut bench = Bench::new(|settings| settings.settle_after = Duration::ZERO);
    let id = new_job();
    let mut never = enqueued(256);
    if let EventData::JobEnqueued(e) = &mut never {
        e.spec.kernel_args = "sim.agent=never".to_owned();
    }
    let event = bench.event(id, never);
    let [job, again] = [1, 2].map(|number| bench.message(number, false, &event));
    bench.turn(vec![Input::Job(job)]).await;
    bench.turn(vec![Input::Tick]).await;
    assert_eq!(bench.settled(1).await, [(1, "ack")]);
    assert!(bench.state(id).attempts.values().all(|a| a.message_settled.is_some()));
    bench.turn(vec![Input::Job(again), Input::Tick]).await;
    assert_eq!(bench.settled(2).await, [(1, "ack"), (2, "ack")]);
    let settled = bench.state(id).attempts.values().filter(|a| a.message_settled.is_some()).count();
    assert_eq!((settled, bench.supervisor.boots_without_message), (1, 1));
}

#[tokio::test]
async fn a_job_is_back_before_its_time_to_live_is_over() {
    let mut bench = Bench::new(|_| {});
    let mut never = enqueued(2_048);
    if let EventData::JobEnqueued(e) = &mut never {
        e.spec.ttl_s = Some(3);
    }
    let mut job = bench.message(1, false, &bench.event(new_job(), never));
    job.deferrals = 9;
    bench.turn(vec![Input::Job(job)]).await;
    bench.settled(1).await;
    let delay = bench.delays.lock().unwrap()[0];
    assert!(delay <= Duration::from_secs(3), "{delay:?}");
}

/// After a restart the messages of what boots are still to come: they must find room.
#[tokio::test]
async fn a_boot_whose_message_comes_again_leaves_room_for_it() {
    let mut bench = Bench::new(|_| {});
    let id = new_job();
    let job = bench.message(1, false, &bench.event(id, enqueued(256)));
    bench.turn(vec![Input::Job(job)]).await;
    let live = bench.supervisor.jobs.get_mut(&id).unwrap();
    (live.ack, live.live.is_up) = (None, false);
    bench.turn(vec![Input::Tick]).await;
    assert_eq!(bench.supervisor.boots_without_message, 0);
}
