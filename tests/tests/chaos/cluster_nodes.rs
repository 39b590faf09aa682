//! Three nodes that are one broker, to be killed, frozen and restarted.

use std::time::Duration;

use stoker_tests::setting;
use tokio::{process::Command, sync::MutexGuard, time::sleep};

use crate::{
    PATIENCE,
    node::{Node, TURN, new_name},
};

/// Another process decides when it is whole: all one can do is look again.
const LOOK: Duration = Duration::from_millis(500);

pub struct Cluster {
    nodes: Vec<Node>,
    /// Names every node.
    pub url: String,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// `None`, and said so, where no node can be made.
    pub async fn start(test: &str) -> Option<Self> {
        let control = setting(test, "STOKER_TEST_BROKER_CTL")?;
        let (turn, name) = (TURN.lock().await, new_name());
        let mut command = Command::new(&control);
        let output = command.args(["broker", "cluster", "--name", &name]).env_remove("STOKER_TEST_RUN").output().await;
        let output = output.unwrap();
        assert!(output.status.success(), "broker cluster: {}", String::from_utf8_lossy(&output.stderr));
        let mut nodes = Vec::new();
        for n in 1..=3 {
            nodes.push(Node::of_cluster(&control, format!("{name}-{n}")).await);
        }
        let url = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        Some(Self { nodes, url, _turn: turn })
    }

    /// One of them; the count goes round.
    pub fn node(&self, n: usize) -> &Node {
        &self.nodes[n % self.nodes.len()]
    }

    /// The node where a queue is written first.
    pub async fn leader_of(&self, queue: &str) -> &Node {
        let queues = self.nodes[0].ctl(&["list_queues", "--quiet", "name", "leader"]).await;
        let line = queues.lines().find(|line| line.split_whitespace().next() == Some(queue));
        let leader = line.and_then(|line| line.split_whitespace().nth(1)).unwrap_or_else(|| panic!("{queues}"));
        self.nodes.iter().find(|node| node.erlang_name() == leader).unwrap_or_else(|| panic!("{leader}"))
    }

    /// Waits until all of them are there again, and see each other.
    pub async fn is_whole(&self) {
        let whole = async {
            for node in &self.nodes {
                while running(&node.ctl_or_nothing(&STATUS).await) != Some(self.nodes.len()) {
                    sleep(LOOK).await;
                }
            }
        };
        tokio::time::timeout(PATIENCE, whole).await.expect("the cluster does not come together again");
    }
}

const STATUS: [&str; 3] = ["cluster_status", "--formatter", "json"];

/// The nodes that a node sees running, itself among them; none if it does not answer, or sees a partition.
fn running(status: &str) -> Option<usize> {
    let status: serde_json::Value = serde_json::from_str(status).ok()?;
    let whole = status["partitions"].as_object().is_none_or(serde_json::Map::is_empty);
    whole.then_some(status["running_nodes"].as_array()?.len())
}
