//! What no worker can work on, and what RabbitMQ gives up: nothing of it waits in a queue that nobody reads, all
//! of it is seen, and the jobs that it was about end.

use std::sync::Arc;
use std::time::Duration;

use lapin::{BasicProperties, Connection, ConnectionProperties, options::BasicPublishOptions};
use serde_json::{Value, json};
use stoker_schemas::{
    Event, EventData, JobId, JobSpec,
    event::{JOB_LEVEL, JobEnqueued},
    spec::Priority,
    topology::Names,
};
use stoker_tests::{
    conformance::broker::{jobs, next, subscribe},
    control::Control,
    harness, within,
};
use stoker_worker::{
    broker::amqp::{AmqpBroker, AmqpConfig},
    clock::Clock,
    ports::broker::Broker,
};

use crate::{PATIENCE, host::SimHost, node::Node};

const OPEN: &str = "/v1/dead-letters";

fn queue() -> String {
    Names::default().jobs_queue(&"default".parse().unwrap(), Priority::Normal)
}

/// As a program does that knows the queue and nothing else.
async fn publish_straight(url: &str, queue: &str, bodies: &[Vec<u8>]) {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    for body in bodies {
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        channel.basic_publish("".into(), queue.into(), options, body, properties).await.unwrap().await.unwrap();
    }
    connection.close(200, "bye".into()).await.unwrap();
}

/// A front's broker: it serves no pool and is no host.
async fn front(url: &str) -> Arc<dyn Broker> {
    Arc::new(AmqpBroker::connect(AmqpConfig { pools: Vec::new(), ..AmqpConfig::new(url) }).await.unwrap())
}

fn letters(page: &Value) -> &Vec<Value> {
    page["letters"].as_array().unwrap()
}

fn with_reason<'a>(page: &'a Value, reason: &str) -> Vec<&'a Value> {
    letters(page).iter().filter(|letter| letter["reason"] == reason).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_worker_can_work_on_is_seen_refused_and_dismissed() {
    let Some(node) = Node::start("what_no_worker_can_work_on_is_seen_refused_and_dismissed").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let host = SimHost::start(&harness::config(dir.path(), |_| {}), &node.url).await;
    let broker = front(&node.url).await;
    let control = Control::start(broker.clone()).await;
    let bare = json!({"image": "golden"}).to_string().into_bytes();
    let (larger_than_an_event, larger_than_we_send) = (vec![b'x'; 70 * 1024], vec![b'y'; 9 << 20]);
    let bodies = [bare, b"not json".to_vec(), Vec::new(), larger_than_an_event, larger_than_we_send];
    publish_straight(&node.url, &queue(), &bodies).await;
    let page = control.until("all are seen", OPEN, |page| letters(page).len() == bodies.len()).await;
    assert_eq!((&page["open"]["unreadable"], &page["open"]["too_large"]), (&json!(3), &json!(2)), "{page:#}");
    let sizes: Vec<_> = with_reason(&page, "too_large").iter().map(|letter| letter["size"].clone()).collect();
    assert!(sizes.contains(&json!(70 * 1024)) && sizes.contains(&json!(9 << 20)), "{sizes:?}");
    for letter in letters(&page) {
        assert_eq!((&letter["queue"], &letter["deaths"]), (&json!(queue()), &json!(1)), "{letter:#}");
    }
    within("the queue of dead letters is empty", async { while broker.dead_depth().await.unwrap() > 0 {} }).await;

    let not_json = letters(&page).iter().find(|letter| letter["size"] == 8).unwrap();
    let id = not_json["id"].as_str().unwrap();
    let whole = control.get(&format!("{OPEN}/{id}")).await;
    assert_eq!((&whole["body"]["content"], &whole["body"]["encoding"]), (&json!("not json"), &json!("text")));
    let (status, problem) = control.post(&format!("{OPEN}/{id}/redrive"), &json!({})).await;
    assert_eq!(status, 409, "{problem:#}");
    assert!(problem["detail"].as_str().unwrap().contains("not a CloudEvent"), "{problem:#}");
    seen_everywhere(&control, id).await;

    let (code, _) = control.cli(&["dead", "dismiss", id, "--reason", "a mistake"]).await;
    assert_eq!(code, 0);
    let (code, dismissed) = control.cli(&["dead", "dismiss", "--all"]).await;
    assert_eq!((code, dismissed.lines().count()), (0, bodies.len() - 1));
    let none = control.until("none is open", OPEN, |page| letters(page).is_empty()).await;
    assert_eq!(none["open"], json!({}));
    let done = control.get(&format!("{OPEN}?state=done")).await;
    assert!(letters(&done).iter().all(|letter| letter["state"] == "dismissed"), "{done:#}");

    // The same again is news: that it was dismissed once says nothing about the next time.
    publish_straight(&node.url, &queue(), &[b"not json".to_vec()]).await;
    let again = control.until("it is open again", OPEN, |page| letters(page).len() == 1).await;
    assert_eq!((&again["letters"][0]["id"], &again["letters"][0]["deaths"]), (&json!(id), &json!(2)));
    control.end().await;
    host.end(PATIENCE).await;
}

/// API, pages, command line and metrics say the same.
async fn seen_everywhere(control: &Control, id: &str) {
    let page = control.text("/dead").await;
    assert!(page.contains("Messages that no worker could work on") && page.contains(id), "{page}");
    let one = control.text(&format!("/dead-letters/{id}")).await;
    assert!(one.contains("not json") && one.contains("What to do"), "{one}");
    assert!(control.text("/").await.contains("3 messages no worker could work on: cannot be read"));
    let metrics = control.text("/metrics").await;
    assert!(metrics.contains("stoker_dead_letters{reason=\"unreadable\"} 3"), "{metrics}");
    assert!(metrics.contains("stoker_dead_letter_queue_messages 0"), "{metrics}");
    let (code, list) = control.cli(&["dead", "list"]).await;
    assert!(code == 0 && list.contains(id), "{list}");
    let (code, json) = control.cli(&["dead", "list", "--json"]).await;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, letters(&json["messages"]).len(), &json["jobs"]), (0, 5, &json!([])));
    let (code, shown) = control.cli(&["dead", "show", id]).await;
    assert!(code == 0 && shown.contains("not json"), "{shown}");
    let (code, _) = control.cli(&["dead", "redrive", id]).await;
    assert_ne!(code, 0, "it still cannot be read");
}

/// Enqueues a job as a front does, whether or not anybody works.
async fn enqueue(broker: &Arc<dyn Broker>) -> JobId {
    let id = JobId(uuid::Uuid::now_v7());
    let spec = JobSpec::from_value(&json!({"image": "simulated", "kernel_args": "sim.healthy-ms=1"})).unwrap();
    let data = EventData::JobEnqueued(JobEnqueued { spec, by: "test".to_owned() });
    let event = Event::about_job(id, JOB_LEVEL, "/producers/test", Clock::system().now(), data);
    stoker_producer::submit::publish_event(broker.as_ref(), &event).await.unwrap();
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_whose_message_the_broker_gave_up_is_dead_and_runs_when_it_is_redriven() {
    let test = "a_job_whose_message_the_broker_gave_up_is_dead_and_runs_when_it_is_redriven";
    let Some(node) = Node::start(test).await else { return };
    let config = AmqpConfig { delivery_limit: 2, ..AmqpConfig::new(node.url.as_str()) };
    let crashing: Arc<dyn Broker> = Arc::new(AmqpBroker::connect(config).await.unwrap());
    // Two of them: each message goes to one, and what they tell is the same.
    let broker = front(&node.url).await;
    let planes = [Control::start(broker.clone()).await, Control::start(front(&node.url).await).await];

    let poison = enqueue(&crashing).await;
    let mut subscription = subscribe(&*crashing, jobs("default", Priority::Normal), 1).await;
    for _ in 0..=2 {
        next(&mut subscription).await.ack.requeue().await.unwrap();
    }
    subscription.credit.send_replace(0);
    planes[0].until("the poison is seen", OPEN, |page| with_reason(page, "delivery_limit").len() == 1).await;

    node.ctl(&["set_policy", "short-lived", "^stoker\\.jobs\\.", "{\"message-ttl\":100}", "--apply-to", "queues"])
        .await;
    let expiring = enqueue(&crashing).await;
    let page = planes[0].until("both are seen", OPEN, |page| letters(page).len() == 2).await;
    let expired = with_reason(&page, "expired")[0];
    assert_eq!(expired["work"], json!({"job": expiring, "attempt": 1, "kind": "job.enqueued"}));
    assert_eq!(expired["detail"], format!("it expired in queue {} before a worker took it", queue()));
    for (plane, job) in planes.iter().zip([poison, expiring]) {
        let dead = plane.until("the job is dead", &format!("/v1/jobs/{job}"), |job| job["phase"] == "dead").await;
        assert_eq!(dead["dead"]["reason"], "message_lost", "{dead:#}");
    }
    node.ctl(&["clear_policy", "short-lived"]).await;

    let dir = tempfile::tempdir().unwrap();
    let host = SimHost::start(&harness::config(dir.path(), |_| {}), &node.url).await;
    let id = expired["id"].as_str().unwrap();
    let (code, answer) = planes[1].cli(&["dead", "redrive", id, "--json"]).await;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((code, &answer["messages"][0]["state"]), (0, &json!("redriven")), "{answer:#}");
    // The other one is tried again as a job: its letter needs nothing any more.
    let (status, _) = planes[0].post(&format!("/v1/jobs/{poison}/retry"), &json!({})).await;
    assert_eq!(status, 202);
    for job in [poison, expiring] {
        planes[0].until("the job is ready", &format!("/v1/jobs/{job}"), |job| job["phase"] == "ready").await;
    }
    for plane in &planes {
        let none = plane.until("nothing is open", OPEN, |page| letters(page).is_empty()).await;
        assert_eq!(none["open"], json!({}));
        let done = plane.get(&format!("{OPEN}?state=done")).await;
        let states: Vec<_> = letters(&done).iter().map(|letter| letter["state"].as_str().unwrap()).collect();
        assert!(states.contains(&"redriven") && states.contains(&"overtaken"), "{done:#}");
    }
    assert_eq!(host.world.running(), 2);
    for plane in planes {
        plane.end().await;
    }
    host.end(PATIENCE).await;
}

/// What it has in hand when it ends is another's: nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_that_ends_leaves_the_rest_to_the_next() {
    let Some(node) = Node::start("a_control_plane_that_ends_leaves_the_rest_to_the_next").await else { return };
    let broker = front(&node.url).await;
    let worker: Arc<dyn Broker> = Arc::new(AmqpBroker::connect(AmqpConfig::new(node.url.as_str())).await.unwrap());
    // What an older Stoker left there is in the history; nobody needs to look at it.
    let old = stoker_schemas::event::sample("job.dead").unwrap().encode().unwrap();
    publish_straight(&node.url, &Names::default().dead_queue(), &[old]).await;
    let bodies: Vec<_> = (0..200).map(|n: u32| format!("nonsense {n}").into_bytes()).collect();
    publish_straight(&node.url, &Names::default().dead_queue(), &bodies).await;
    let first = Control::start(broker.clone()).await;
    first.until("some are seen", OPEN, |page| !letters(page).is_empty()).await;
    first.end().await;
    let second = Control::start(front(&node.url).await).await;
    let page = format!("{OPEN}?limit=500");
    let all = second.until("all are seen", &page, |page| letters(page).len() == bodies.len()).await;
    assert!(letters(&all).iter().all(|letter| letter["reason"] == "unknown"), "{all:#}");
    assert_eq!(worker.dead_depth().await.unwrap(), 0);
    tokio::time::timeout(Duration::from_secs(30), second.end()).await.unwrap();
    worker.close().await;
}
