//! Given what the history says and how long nothing more came, then this is published.

use std::sync::Arc;

use serde_json::json;
use stoker_schemas::command::Begin;
use stoker_schemas::event::{DeferredWhy, JobEnqueued, Request};
use stoker_schemas::image::Driver;
use stoker_schemas::{Epoch, EventData, HostName, JobSpec, Phase, VmId};

use super::*;
use crate::clock;

#[path = "../../tests/support/broker.rs"]
#[allow(clippy::unwrap_used, missing_docs, dead_code, reason = "shared with the tests beside the crate")]
mod broker;

use broker::FakeBroker;

const AFTER: u64 = DEFAULT_AFTER_S;

struct Lab {
    broker: Arc<FakeBroker>,
    reconciler: Reconciler,
    read: usize,
    now: Instant,
    _dir: tempfile::TempDir,
}

impl Lab {
    fn new(broker: FakeBroker) -> Self {
        let (broker, dir) = (Arc::new(broker), tempfile::tempdir().unwrap());
        let model = ReadModel::open(dir.path(), clock::system()).unwrap();
        let submitter = Submitter::new(broker.clone(), "test", clock::system());
        let reconciler = Reconciler::new(model, submitter, Patience::default());
        Self { broker, reconciler, read: 0, now: Instant::now(), _dir: dir }
    }

    fn model(&self) -> &ReadModel {
        &self.reconciler.model
    }

    fn read(&mut self) {
        let all = self.broker.published();
        self.model().apply(&all[self.read..]).unwrap();
        self.read = all.len();
    }

    /// Somebody says something about a job; the rows know it at once.
    async fn say(&mut self, id: JobId, source: &str, epoch: Epoch, data: EventData) {
        let event = Event::about_job(id, epoch, source, self.reconciler.submitter.now(), data);
        publish_event(self.broker.as_ref(), &event).await.unwrap();
        self.read();
    }

    /// Somebody's command, as the rules have it.
    async fn tell(&mut self, id: JobId, source: &str, command: Command) {
        let state = self.state(id);
        let context = Context { now: self.reconciler.submitter.now(), jitter: Jitter::from_random(0) };
        for (epoch, data) in decide(&state, command, context).unwrap() {
            self.say(id, source, epoch, data).await;
        }
    }

    async fn enqueue(&mut self, name: &str, more: serde_json::Value) -> JobId {
        let id = JobId::from_key("default", name);
        let mut spec = json!({"image": "golden", "retry": {"max_attempts": 2, "base_ms": 0, "cap_ms": 0}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let spec = JobSpec::from_value(&spec).unwrap();
        self.say(id, "/producers/test", JOB_LEVEL, EventData::JobEnqueued(JobEnqueued { spec, by: "ada".into() }))
            .await;
        id
    }

    async fn begin(&mut self, id: JobId, host: &str, attempt: u32) {
        let (epoch, host): (_, HostName) = (Epoch::first(attempt), host.parse().unwrap());
        let spec = self.state(id).spec().unwrap().clone();
        let (vm, enqueued_at) = (VmId::derive(id, epoch, &host), self.reconciler.submitter.now());
        let source = format!("/hosts/{host}");
        let begin = Begin { epoch, host, vm, driver: Driver::Simulated, address: None, spec, enqueued_at };
        // The host knows of no other host's attempts.
        let context = Context { now: enqueued_at, jitter: Jitter::from_random(0) };
        for (epoch, data) in decide(&JobState::new(id), Command::Begin(begin), context).unwrap() {
            self.say(id, &source, epoch, data).await;
        }
    }

    fn state(&self, id: JobId) -> JobState {
        self.model().job(id).unwrap().unwrap()
    }

    fn phase(&self, id: JobId) -> Phase {
        self.state(id).phase()
    }

    /// Time passes; what the reconciler publishes then, by routing key.
    async fn after(&mut self, seconds: u64) -> Vec<String> {
        let before = self.broker.published().len();
        self.now += Duration::from_secs(seconds);
        self.reconciler.pass(self.now).await.unwrap();
        self.read();
        self.broker.keys().split_off(before)
    }
}

const MESSAGE: [&str; 2] = ["job.enqueued.default.normal", "job.republished"];

#[tokio::test]
async fn a_message_that_nobody_takes_is_published_again_as_it_was_and_later_each_time() {
    let mut lab = Lab::new(FakeBroker::default());
    let id = lab.enqueue("a", json!({})).await;
    assert_eq!(lab.after(0).await, [""; 0]);
    assert_eq!(lab.after(AFTER - 1).await, [""; 0]);
    assert_eq!(lab.after(1).await, MESSAGE);
    let published = lab.broker.published();
    assert_eq!(published[0].body, published[1].body, "the same message");
    let said = lab.state(id).republished.first().unwrap().value.clone();
    assert_eq!((said.attempt, said.by), (1, None));
    assert_eq!(said.reason, "no host has taken it for 5 min 0 s, and its queue is empty");
    assert_eq!(lab.after(0).await, [""; 0]);
    assert_eq!(lab.after(2 * AFTER - 1).await, [""; 0]);
    assert_eq!(lab.after(1).await, MESSAGE);
    // Taken by a host, it is left alone.
    lab.begin(id, "h-1", 1).await;
    assert_eq!(lab.after(0).await, [""; 0]);
    assert_eq!(lab.after(AFTER).await, [""; 0]);
    assert_eq!(lab.phase(id), Phase::Booting);
}

#[tokio::test]
async fn a_long_queue_is_not_doubled() {
    let mut lab = Lab::new(FakeBroker::default());
    *lab.broker.depth.lock().unwrap() = 3;
    let ids = [lab.enqueue("a", json!({})).await, lab.enqueue("b", json!({})).await, lab.enqueue("c", json!({})).await];
    let high = lab.enqueue("d", json!({"priority": "high"})).await;
    lab.after(0).await;
    assert_eq!(lab.after(100 * AFTER).await, [""; 0], "they wait in order");
    lab.begin(high, "h-1", 1).await;
    assert_eq!(lab.after(AFTER).await, [""; 0], "another lane says nothing");
    // The second one was taken: the first one's message is gone, the third one's is not due.
    lab.begin(ids[1], "h-1", 1).await;
    assert_eq!(lab.after(1).await, MESSAGE);
    let said = lab.state(ids[0]).republished.first().unwrap().value.reason.clone();
    assert!(said.ends_with("jobs behind it were taken"), "{said}");
    assert!(lab.state(ids[2]).republished.is_empty());
}

#[tokio::test]
async fn of_many_lost_messages_some_are_published_in_each_pass_until_all_are() {
    let mut lab = Lab::new(FakeBroker::default());
    let jobs = MAX_ACTS * 2 + 7;
    for n in 0..jobs {
        lab.enqueue(&n.to_string(), json!({})).await;
    }
    lab.after(0).await;
    let counts = [lab.after(AFTER).await.len() / 2, lab.after(1).await.len() / 2, lab.after(1).await.len() / 2];
    assert_eq!(counts, [MAX_ACTS, MAX_ACTS, 7]);
}

#[tokio::test]
async fn a_retry_counts_as_silent_from_when_it_was_due() {
    let mut lab = Lab::new(FakeBroker::default());
    let id = lab
        .enqueue("a", json!({"retry": {"max_attempts": 3, "base_ms": 600_000, "cap_ms": 600_000, "jitter_percent": 0}}))
        .await;
    lab.begin(id, "h-1", 1).await;
    lab.tell(id, "/hosts/h-1", Command::Abandon).await;
    assert_eq!(lab.phase(id), Phase::Retrying);
    lab.after(0).await;
    assert_eq!(lab.after(600 + AFTER - 1).await, [""; 0]);
    assert_eq!(lab.after(1).await, ["job.retry-scheduled.default.normal.100", "job.republished"], "without its wait");
}

#[tokio::test]
async fn a_job_that_a_host_put_back_is_left_to_go_round() {
    let mut lab = Lab::new(FakeBroker::default());
    let id = lab.enqueue("a", json!({})).await;
    let (spec, enqueued_at) = (lab.state(id).spec().unwrap().clone(), lab.reconciler.submitter.now());
    let why = DeferredWhy::Full;
    let defer = Command::Defer { attempt: 1, delay_ms: 1_000, why, reason: "full".into(), spec, enqueued_at };
    lab.tell(id, "/hosts/h-1", defer).await;
    lab.after(0).await;
    assert_eq!(lab.after(12 * AFTER).await, [""; 0]);
    assert_eq!(lab.after(1).await, MESSAGE, "its first message, not the deferral");
}

#[tokio::test]
async fn a_cancellation_and_a_time_to_live_need_no_host_and_no_message() {
    for may_lose in [true, false] {
        let mut broker = FakeBroker::default();
        broker.may_lose = may_lose;
        let mut lab = Lab::new(broker);
        *lab.broker.depth.lock().unwrap() = 1;
        let request = Request { by: "ada".into(), reason: String::new() };
        let cancelled = lab.enqueue("a", json!({})).await;
        let mortal = lab.enqueue("b", json!({"ttl_s": 60})).await;
        lab.tell(cancelled, "/producers/test", Command::Cancel(request)).await;
        lab.after(0).await;
        assert_eq!(lab.after(9).await, [""; 0], "a host would have been quicker");
        assert_eq!(lab.after(1).await, ["job.cancelled"]);
        assert_eq!(lab.after(59).await, [""; 0]);
        assert_eq!(lab.after(1).await, ["job.dead"]);
        assert_eq!([lab.phase(cancelled), lab.phase(mortal)], [Phase::Cancelled, Phase::Dead]);
        assert_eq!(lab.after(AFTER).await, [""; 0]);
    }
}

#[tokio::test]
async fn a_job_whose_host_is_silent_goes_on_without_it() {
    let mut lab = Lab::new(FakeBroker::default());
    let id = lab.enqueue("a", json!({})).await;
    lab.begin(id, "h-1", 1).await;
    lab.after(0).await;
    // Twice its deadline of two minutes, and the patience on top.
    assert_eq!(lab.after(240 + AFTER - 1).await, [""; 0]);
    *lab.broker.depth.lock().unwrap() = 1;
    assert_eq!(lab.after(1).await, [""; 0], "the broker gave its message to nobody else yet");
    *lab.broker.depth.lock().unwrap() = 0;
    assert_eq!(lab.after(1).await, ["job.retry-scheduled.default.normal.100"]);
    assert_eq!(lab.phase(id), Phase::Retrying);
    lab.begin(id, "h-2", 2).await;
    lab.after(0).await;
    assert_eq!(lab.after(240 + AFTER).await, ["job.dead"], "as many attempts as it may have");
    let dead = lab.state(id).dead.values().next().unwrap().value.clone();
    assert!(dead.diagnosis.unwrap().summary.contains("host h-2 has told nothing"));
}

#[tokio::test]
async fn a_cancelled_job_ends_though_its_host_is_silent() {
    let mut lab = Lab::new(FakeBroker::default());
    let id = lab.enqueue("a", json!({})).await;
    lab.begin(id, "h-1", 1).await;
    let request = Request { by: "ada".into(), reason: String::new() };
    lab.tell(id, "/producers/test", Command::Cancel(request)).await;
    lab.after(0).await;
    assert_eq!(lab.after(AFTER - 1).await, [""; 0]);
    assert_eq!(lab.after(1).await, ["job.cancelled"]);
    assert_eq!(lab.phase(id), Phase::Cancelled);
    // Its VM, should the host come back with it, is one too many.
    assert_eq!(stoker_schemas::state::duplicates(&lab.state(id)).len(), 1);
}

#[tokio::test]
async fn while_nothing_could_be_heard_silence_says_nothing() {
    let mut lab = Lab::new(FakeBroker::default());
    lab.enqueue("a", json!({})).await;
    lab.after(0).await;
    lab.broker.status.send_replace(BrokerStatus::Down("away".into()));
    assert_eq!(lab.after(10 * AFTER).await, [""; 0]);
    lab.broker.status.send_replace(BrokerStatus::Connected);
    assert_eq!(lab.after(0).await, [""; 0]);
    lab.broker.history_status.send_replace(HistoryStatus::Away("lost".into()));
    assert_eq!(lab.after(10 * AFTER).await, [""; 0]);
    lab.broker.history_status.send_replace(HistoryStatus::Available);
    assert_eq!(lab.after(0).await, [""; 0]);
    assert_eq!(lab.after(AFTER - 1).await, [""; 0]);
    assert_eq!(lab.after(1).await, MESSAGE);
}

#[tokio::test]
async fn what_one_job_is_refused_holds_no_other_back_and_is_tried_again_later() {
    let mut lab = Lab::new(FakeBroker::default());
    let without_queue = lab.enqueue("a", json!({"pool": "gone"})).await;
    let other = lab.enqueue("b", json!({})).await;
    lab.after(0).await;
    *lab.broker.no_queue.lock().unwrap() = Some("job.enqueued.gone.normal".to_owned());
    assert_eq!(lab.after(AFTER).await, MESSAGE);
    assert_eq!([without_queue, other].map(|id| lab.state(id).republished.len()), [0, 1]);
    *lab.broker.no_queue.lock().unwrap() = None;
    assert_eq!(lab.after(AFTER - 1).await, [""; 0], "it is not asked for all the time");
    assert_eq!(lab.after(1).await, ["job.enqueued.gone.normal", "job.republished"]);
}

#[tokio::test]
async fn a_broker_that_confirms_nothing_is_not_asked_for_each_job() {
    let mut lab = Lab::new(FakeBroker::default());
    lab.enqueue("a", json!({})).await;
    lab.enqueue("b", json!({})).await;
    lab.after(0).await;
    *lab.broker.confirms.lock().unwrap() = Some(0);
    lab.now += Duration::from_secs(AFTER);
    assert!(lab.reconciler.pass(lab.now).await.is_err());
    *lab.broker.confirms.lock().unwrap() = None;
    assert_eq!(lab.after(1).await.len(), 4, "both, in the next pass");
}
