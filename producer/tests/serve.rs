//! `stoker serve` while its broker is away: it shows what it knew, says so, and takes nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{self, Write};
use std::sync::Arc;

use reqwest::StatusCode;
use serde_json::{Value, json};
use stoker_producer::clock;
use stoker_producer::control_plane::Front;
use stoker_producer::http::Access;
use stoker_producer::readmodel::ReadModel;
use stoker_producer::reconcile::Patience;
use stoker_producer::serve::{self, Serve};
use stoker_producer::submit::publish_event;
use stoker_worker::broker::amqp::{AmqpBroker, AmqpConfig};
use stoker_worker::supervisor::Shutdown;
use support::story::Story;
use support::{FakeBroker, SOON};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// What it prints, as it comes.
struct Printed(mpsc::UnboundedSender<String>);

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.send(String::from_utf8_lossy(bytes).into_owned());
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The address in what it prints.
async fn address(printed: &mut mpsc::UnboundedReceiver<String>) -> String {
    let mut text = String::new();
    loop {
        text += &timeout(SOON, printed.recv()).await.unwrap().expect("it prints its address");
        if let Some((address, _)) = text.split_once("http://").and_then(|(_, rest)| rest.split_once("/\n")) {
            return format!("http://{address}");
        }
    }
}

#[tokio::test]
async fn a_broker_that_is_away_leaves_what_was_known() {
    let dir = tempfile::tempdir().unwrap();
    let story = Story::conflict("known");
    let earlier = FakeBroker::default();
    for event in &story.events {
        publish_event(&earlier, event).await.unwrap();
    }
    let rows = ReadModel::open(&dir.path().join("control"), clock::system()).unwrap();
    rows.apply(&earlier.published()).unwrap();
    drop(rows);

    // Nothing listens on port 1.
    let broker = Arc::new(AmqpBroker::open(AmqpConfig::new("amqp://127.0.0.1:1")).unwrap());
    let serve = Serve {
        broker,
        broker_name: "amqp://127.0.0.1:1".to_owned(),
        data: dir.path().to_owned(),
        front: Front {
            listen: "127.0.0.1:0".parse().unwrap(),
            access: Access::Open,
            hooks: None,
            patience: Patience::default(),
            stalled_after: SOON,
        },
    };
    let (ask, asked) = watch::channel(Shutdown::No);
    let (out, mut printed) = mpsc::unbounded_channel();
    let running = tokio::spawn(async move { serve::run(serve, asked, &mut Printed(out)).await });
    let server = address(&mut printed).await;
    let http = reqwest::Client::builder().no_proxy().timeout(SOON).build().unwrap();
    let get = async |path: &str| http.get(format!("{server}{path}")).send().await.unwrap();

    let job: Value = get(&format!("/v1/jobs/{}", story.id)).await.json().await.unwrap();
    assert_eq!(job["phase"], "dead");
    let page = get("/").await.text().await.unwrap();
    assert!(page.contains("conflicting network") && page.contains("what you see may be old"), "{page}");
    assert_eq!(get("/health").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    let refused = http.post(format!("{server}/v1/jobs")).json(&json!({"image": "golden"})).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key("retry-after"));
    let console = get(&format!("/v1/jobs/{}/console", story.id)).await;
    assert_eq!(console.status(), StatusCode::NOT_FOUND);
    assert!(console.text().await.unwrap().contains("kept on the host that ran it"));

    ask.send(Shutdown::Drain).unwrap();
    timeout(SOON, running).await.unwrap().unwrap().unwrap();
}
