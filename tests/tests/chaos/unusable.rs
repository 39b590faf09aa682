//! A broker that answers no, whatever one tries: whoever starts says so once, with what to do, and ends.

use std::time::Duration;

use stoker_tests::skipped;
use stoker_worker::{
    broker::amqp::{AmqpBroker, AmqpConfig},
    ports::broker::{Broker, BrokerError, BrokerStatus},
};
use tokio::time::timeout;

use crate::{PATIENCE, node::Node};

/// Much longer than an answer takes: who ends before has not tried again until then.
const TRIED_AGAIN: Duration = Duration::from_secs(60);

/// What a worker says that cannot start.
async fn refusal(url: &str) -> String {
    let config = AmqpConfig { connect_deadline: TRIED_AGAIN * 2, ..AmqpConfig::new(url) };
    let connecting = timeout(TRIED_AGAIN, AmqpBroker::connect(config));
    let refused = connecting.await.unwrap_or_else(|_| panic!("{url}: went on trying")).map(|_| ());
    assert!(matches!(refused, Err(BrokerError::Unusable(_))), "{url}: {refused:?}");
    refused.unwrap_err().to_string()
}

/// A URL of the same node for another user and virtual host.
fn url(node: &Node, login: &str, vhost: &str) -> String {
    let (_, address) = node.url.rsplit_once('@').unwrap();
    let (address, _) = address.split_once('/').unwrap();
    format!("amqp://{login}@{address}/{vhost}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_rights_are_one_sentence() {
    let Some(node) = Node::start("missing_rights_are_one_sentence").await else { return };
    node.ctl(&["add_user", "stranger", "secret"]).await;
    node.ctl(&["add_user", "reader", "secret"]).await;
    node.ctl(&["set_permissions", "-p", "/", "reader", "^$", ".*", ".*"]).await;
    let mut told = String::new();
    for (login, vhost) in
        [("guest:wrong", "%2f"), ("guest:guest", "nowhere"), ("stranger:secret", "%2f"), ("reader:secret", "%2f")]
    {
        let refusal = refusal(&url(&node, login, vhost)).await;
        assert!(!refusal.contains("secret") && !refusal.contains("wrong"), "{refusal}");
        told.push_str(&refusal);
        told.push('\n');
    }
    // RabbitMQ 4 says which right is missing.
    insta::assert_snapshot!(told.replace("configure access to", "access to"));

    // What it advises helps.
    let own = r"^stoker\.";
    node.ctl(&["set_permissions", "-p", "/", "reader", own, own, own]).await;
    let broker = AmqpBroker::connect(AmqpConfig::new(url(&node, "reader:secret", "%2f"))).await.unwrap();

    // Rights that are taken away later end nothing: they may come back.
    node.ctl(&["set_permissions", "-p", "/", "reader", "^$", "^$", "^$"]).await;
    node.ctl(&["close_all_user_connections", "reader", "test"]).await;
    let mut status = broker.status();
    let down = timeout(PATIENCE, status.wait_for(|status| matches!(status, BrokerStatus::Down(_)))).await;
    down.expect("the connection stays").unwrap();
    node.ctl(&["set_permissions", "-p", "/", "reader", own, own, own]).await;
    let back = timeout(PATIENCE, status.wait_for(|status| *status == BrokerStatus::Connected)).await;
    back.expect("does not come back").unwrap();
    broker.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_without_quorum_queues_is_refused() {
    let test = "a_broker_without_quorum_queues_is_refused";
    if std::env::var_os("STOKER_RABBITMQ_ROOT").is_some() {
        // From 4.0 on they cannot be switched off.
        skipped(test, "needs RabbitMQ 3");
        return;
    }
    let Some(node) = Node::start_with(test, &[("RABBITMQ_FEATURE_FLAGS", "")]).await else { return };
    let refusal = refusal(&node.url).await;
    assert!(refusal.contains("enable_feature_flag all"), "{refusal}");
    node.ctl(&["enable_feature_flag", "all"]).await;
    AmqpBroker::connect(AmqpConfig::new(node.url.as_str())).await.unwrap().close().await;
}
