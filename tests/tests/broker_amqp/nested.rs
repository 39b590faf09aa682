//! Headers that nest deeper than a thread's stack allows: no process that reads them ends by it.

use std::{sync::Arc, time::Duration};

use lapin::uri::AMQPUri;
use serde_json::json;
use stoker_schemas::{
    Event, EventData, JobId, JobSpec,
    event::{JOB_LEVEL, JobEnqueued},
    spec::Priority,
};
use stoker_tests::{
    conformance::broker::{HOST, POOL},
    control::Control,
    harness, within,
};
use stoker_worker::{
    broker::amqp::{AmqpBroker, AmqpConfig},
    clock::Clock,
    ports::broker::{Broker, Offset},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    host::SimHost,
    rabbit::{Rabbit, on_rabbit},
};

const LEVELS: usize = 1_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// A publisher that writes its frames itself: lapin would need a larger stack to write such headers.
struct Publisher(TcpStream);

impl Publisher {
    async fn connect(url: &str) -> Self {
        let uri: AMQPUri = url.parse().unwrap();
        let (authority, vhost) = (uri.authority, uri.vhost);
        let mut this = Self(TcpStream::connect((authority.host, authority.port)).await.unwrap());
        this.0.write_all(b"AMQP\0\0\x09\x01").await.unwrap();
        this.expect([10, 10]).await;
        let login = format!("\0{}\0{}", authority.userinfo.username, authority.userinfo.password);
        this.method(0, [10, 11], &[&[0; 4], &short("PLAIN")[..], &long(login.as_bytes()), &short("en_US")]).await;
        let mut limits = this.expect([10, 30]).await;
        // Without heartbeats.
        limits[6..].fill(0);
        this.method(0, [10, 31], &[&limits]).await;
        this.method(0, [10, 40], &[&short(&vhost), &[0, 0]]).await;
        this.expect([10, 41]).await;
        this.method(1, [20, 10], &[&[0]]).await;
        this.expect([20, 11]).await;
        this.method(1, [85, 10], &[&[0]]).await;
        this.expect([85, 11]).await;
        this
    }

    /// To a queue, with headers of so many levels; returns when it is confirmed.
    async fn publish(&mut self, queue: &str, body: &[u8]) {
        self.method(1, [60, 40], &[&[0, 0], &short("")[..], &short(queue), &[0]]).await;
        let headers = (1..LEVELS).fold(long(b""), |inner, _| long(&[b"\x01nF", &inner[..]].concat()));
        let size = (body.len() as u64).to_be_bytes();
        self.frame(2, 1, &[&[0, 60, 0, 0], &size[..], &[0x20, 0], &headers].concat()).await;
        self.frame(3, 1, body).await;
        self.expect([60, 80]).await;
    }

    async fn method(&mut self, channel: u8, [class, method]: [u8; 2], arguments: &[&[u8]]) {
        self.frame(1, channel, &[&[0, class, 0, method], &arguments.concat()[..]].concat()).await;
    }

    async fn frame(&mut self, kind: u8, channel: u8, payload: &[u8]) {
        let frame = [&[kind, 0, channel], &long(payload)[..], &[0xCE]].concat();
        self.0.write_all(&frame).await.unwrap();
    }

    /// The arguments of the next method, which has to be this one.
    async fn expect(&mut self, [class, method]: [u8; 2]) -> Vec<u8> {
        let (mut head, mut id) = ([0; 7], [0; 4]);
        within("RabbitMQ answers", self.0.read_exact(&mut head)).await.unwrap();
        self.0.read_exact(&mut id).await.unwrap();
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut arguments = vec![0; size - id.len() + 1];
        self.0.read_exact(&mut arguments).await.unwrap();
        arguments.pop();
        assert_eq!((head[0], id), (1, [0, class, 0, method]), "{}", arguments.escape_ascii());
        arguments
    }
}

fn short(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

async fn enqueue(broker: &dyn Broker) -> JobId {
    let id = JobId(uuid::Uuid::now_v7());
    let spec = json!({"image": "simulated", "pool": POOL, "kernel_args": "sim.healthy-ms=1"});
    let data = EventData::JobEnqueued(JobEnqueued { spec: JobSpec::from_value(&spec).unwrap(), by: "test".to_owned() });
    let event = Event::about_job(id, JOB_LEVEL, "/producers/test", Clock::system().now(), data);
    stoker_producer::submit::publish_event(broker, &event).await.unwrap();
    id
}

/// Job queue, dead letters and history, each read by whoever reads it: the worker and the control plane. RabbitMQ 3.10
/// keeps no nested headers in a stream, so there only a newer one shows whether the history's reader stands them.
async fn read_everywhere(place: &Rabbit) {
    let dir = tempfile::tempdir().unwrap();
    let config = harness::config(dir.path(), |config| {
        (config.host, config.pools) = (HOST.parse().unwrap(), vec![POOL.parse().unwrap()]);
    });
    let host = SimHost::start_with(&config, &place.url, |amqp| amqp.names = place.names.clone()).await;
    let front = AmqpConfig { host: None, pools: Vec::new(), ..place.config(HOST) };
    let front: Arc<dyn Broker> = Arc::new(AmqpBroker::connect(front).await.unwrap());
    let control = Control::start(front.clone()).await;

    let jobs = place.names.jobs_queue(&POOL.parse().unwrap(), Priority::Normal);
    let mut publisher = Publisher::connect(&place.url).await;
    publisher.publish(&place.names.history_stream(), b"told").await;
    publisher.publish(&place.names.dead_queue(), b"dead").await;
    publisher.publish(&jobs, b"work").await;
    let id = enqueue(&*front).await;

    control.until("the next job is ready", &format!("/v1/jobs/{id}"), |job| job["phase"] == "ready").await;
    let page = control
        .until("both are dead letters", "/v1/dead-letters", |page| page["letters"].as_array().unwrap().len() == 2)
        .await;
    let parked: Vec<_> = page["letters"].as_array().unwrap().iter().filter(|letter| letter["queue"] == jobs).collect();
    assert_eq!((parked.len(), &parked[0]["reason"]), (1, &json!("unreadable")), "{page:#}");
    let mut history = front.history(Offset::First).await.unwrap();
    let told = async { while history.recv().await.unwrap().body != b"told"[..] {} };
    within("the history has it", told).await;
    control.end().await;
    host.end(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_nest_too_deep_end_no_process() {
    on_rabbit("headers_that_nest_too_deep_end_no_process", read_everywhere).await;
}
