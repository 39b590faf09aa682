//! `amqps://` against a real RabbitMQ with a certificate of a CA that this host does not know.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a failed expectation is a failed test")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::json;
use stoker_producer::{
    clock,
    submit::{self, Asker, Submitter},
};
use stoker_schemas::{Event, PoolName, Time, spec::Priority};
use stoker_tests::{setting, within};
use stoker_worker::{
    broker::amqp::{AmqpBroker, AmqpConfig},
    ports::broker::{Broker, Source},
};

/// A refused certificate is refused at once, and tried again until this is over.
const BRIEFLY: Duration = Duration::from_millis(500);

struct Place {
    url: String,
    ca: PathBuf,
}

fn place(test: &str) -> Option<Place> {
    let url = setting(test, "STOKER_TEST_AMQPS_URL")?.into_os_string().into_string().unwrap();
    Some(Place { url, ca: setting(test, "STOKER_TEST_AMQPS_CA")? })
}

async fn refused(url: &str, ca: Option<&Path>) -> String {
    let ca = ca.map(Path::to_owned);
    let config = AmqpConfig { pools: Vec::new(), ca, connect_deadline: BRIEFLY, ..AmqpConfig::new(url) };
    let Err(error) = AmqpBroker::connect(config).await else { panic!("connected") };
    error.to_string()
}

#[tokio::test]
async fn a_job_travels_encrypted_when_the_ca_is_named() {
    let Some(place) = place("a_job_travels_encrypted_when_the_ca_is_named") else { return };
    // A pool of its own on a broker that other tests use too.
    let name = format!("tls-{}", &uuid::Uuid::now_v7().simple().to_string()[20..]);
    let pool: PoolName = name.parse().unwrap();
    let config = AmqpConfig { pools: vec![pool.clone()], ca: Some(place.ca), ..AmqpConfig::new(place.url.as_str()) };
    let broker = std::sync::Arc::new(AmqpBroker::connect(config).await.unwrap());
    let jobs = submit::prepare(&json!({"image": "sim", "pool": name}), None).unwrap();
    let id = jobs[0].id;
    let submitter = Submitter::new(broker.clone(), "test", clock::system());
    submitter.submit_all(jobs, &Asker::default()).await.unwrap();
    let mut work = broker.subscribe(Source::Jobs(pool, Priority::Normal)).await.unwrap();
    work.credit.send_replace(1);
    let delivery = within("the job arrived", work.deliveries.recv()).await.unwrap();
    assert_eq!(Event::decode(&delivery.body, Time::UNIX_EPOCH).unwrap().job(), Some(id));
    delivery.ack.ack().await.unwrap();
    broker.close().await;
}

#[tokio::test]
async fn a_ca_that_nobody_named_is_refused_with_the_way_out() {
    let Some(place) = place("a_ca_that_nobody_named_is_refused_with_the_way_out") else { return };
    let said = refused(&place.url, None).await;
    assert!(said.contains("UnknownIssuer") && said.contains("STOKER_BROKER_CA"), "{said}");
    assert!(!said.contains("guest:guest"), "a password is shown: {said}");
}

#[tokio::test]
async fn the_wrong_ca_is_refused_by_name() {
    let Some(place) = place("the_wrong_ca_is_refused_by_name") else { return };
    let dir = tempfile::tempdir().unwrap();
    let (ca, key) = (dir.path().join("other.pem"), dir.path().join("other.key"));
    let mut make = Command::new("openssl");
    make.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
    make.args(["-subj", "/CN=Another CA", "-out"]).arg(&ca).arg("-keyout").arg(&key);
    // Made by the same program as the broker's, so it is there.
    assert!(make.stderr(Stdio::null()).status().unwrap().success());
    let said = refused(&place.url, Some(&ca)).await;
    assert!(said.contains("other.pem") && said.contains("name the CA that signed"), "{said}");
    let said = refused(&place.url, Some(&key)).await;
    assert!(said.contains("other.key holds no certificate"), "{said}");
}

#[tokio::test]
async fn a_port_without_tls_is_recognised() {
    let test = "a_port_without_tls_is_recognised";
    let (Some(place), Some(plain)) = (place(test), setting(test, "STOKER_TEST_AMQP_URL")) else { return };
    let url = plain.to_str().unwrap().replacen("amqp://", "amqps://", 1);
    let said = refused(&url, Some(&place.ca)).await;
    assert!(said.contains("is this a TLS port?"), "{said}");
}
