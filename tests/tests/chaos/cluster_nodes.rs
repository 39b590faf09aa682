//! Three nodes that are one broker, to be killed, frozen and restarted.

use std::time::Duration;

use stoker_tests::{setting, skipped};
use stoker_worker::net::Namespace;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    process::Command,
    sync::MutexGuard,
    task::JoinSet,
    time::sleep,
};

use crate::{
    PATIENCE,
    node::{Node, TURN, new_name},
};

/// Another process decides when it is whole: all one can do is look again.
const LOOK: Duration = Duration::from_millis(500);

/// Longest that a node may need to find the others again.
const BY_ITSELF: Duration = Duration::from_secs(60);
/// Whether three nodes run, each by the word of each, and none has been parted from another.
const SEES_ALL: &str = "3 =:= length([node() | nodes()]) andalso lists:all(fun(N) -> \
    3 =:= (catch length(rpc:call(N, rabbit_mnesia, cluster_nodes, [running]))) andalso \
    [] =:= rpc:call(N, rabbit_node_monitor, partitions, []) end, [node() | nodes()]).";

pub struct Cluster {
    nodes: Vec<Node>,
    /// Names every node.
    pub url: String,
    /// Ways into its network, where it has one of its own.
    _ways: JoinSet<()>,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// `None`, and said so, where no node can be made.
    pub async fn start(test: &str) -> Option<Self> {
        Self::start_with(test, &[]).await
    }

    /// On a network of its own, which can be cut.
    pub async fn start_apart(test: &str) -> Option<Self> {
        let user = std::process::Command::new("id").arg("-u").output().unwrap().stdout;
        if user.trim_ascii() != b"0" {
            skipped(test, "needs root");
            return None;
        }
        let mut cluster = Self::start_with(test, &["--apart"]).await?;
        let middle = cluster.nodes[0].cluster_name();
        let namespace = Namespace::open(&format!("st-{middle}")).await.unwrap();
        let mut fronts = Vec::new();
        for node in &cluster.nodes {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            fronts.push(listener.local_addr().unwrap().to_string());
            cluster._ways.spawn(pass_on(listener, namespace.clone(), node.address().to_owned()));
        }
        let (login, vhost) = (cluster.url.split('@').next().unwrap(), cluster.url.rsplit('/').next().unwrap());
        cluster.url = format!("{login}@{}/{vhost}", fronts.join(","));
        Some(cluster)
    }

    async fn start_with(test: &str, arguments: &[&str]) -> Option<Self> {
        let control = setting(test, "STOKER_TEST_BROKER_CTL")?;
        let (turn, name) = (TURN.lock().await, new_name());
        let mut command = Command::new(&control);
        command.args(["broker", "cluster", "--name", &name]).args(arguments).env_remove("STOKER_TEST_RUN");
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "broker cluster: {}", String::from_utf8_lossy(&output.stderr));
        let mut nodes = Vec::new();
        for n in 1..=3 {
            nodes.push(Node::of_cluster(&control, format!("{name}-{n}")).await);
        }
        let url = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        let cluster = Self { nodes, url, _ways: JoinSet::new(), _turn: turn };
        // A node answers clients before it has joined the others.
        tokio::time::timeout(PATIENCE, cluster.all_see_all()).await.expect("the nodes do not find each other");
        Some(cluster)
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
        self.nodes.iter().find(|node| node.is_called(leader)).unwrap_or_else(|| panic!("{leader}"))
    }

    /// Waits until all of them are there again, and see each other. A node that the others do not get back by itself is
    /// restarted, as its operators would: RabbitMQ 3.10 may need that after a partition.
    pub async fn is_whole(&self, node: &Node) {
        if tokio::time::timeout(BY_ITSELF, self.all_see_all()).await.is_ok() {
            return;
        }
        eprintln!("the cluster does not come together within {BY_ITSELF:?}: a node of it is restarted");
        node.keep_log();
        node.stop().await;
        node.start_again().await;
        tokio::time::timeout(PATIENCE, self.all_see_all()).await.expect("the cluster does not come together again");
    }

    /// The first asks all others: each question costs seconds on a busy machine.
    async fn all_see_all(&self) {
        while self.nodes[0].ctl_or_nothing(&["eval", SEES_ALL]).await.trim() != "true" {
            sleep(LOOK).await;
        }
    }
}

/// Everything that connects here comes out at that address of that network.
async fn pass_on(listener: TcpListener, network: Namespace, address: String) {
    let mut passing = JoinSet::new();
    while let Ok((mut client, _)) = listener.accept().await {
        let (network, address) = (network.clone(), address.clone());
        passing.spawn(async move {
            let node = network.within(async move { TcpStream::connect(address).await?.into_std() }).await;
            // A refusal is passed on as the end of the connection.
            if let Ok(mut node) = node.and_then(TcpStream::from_std) {
                let _ = copy_bidirectional(&mut client, &mut node).await;
            }
        });
        while passing.try_join_next().is_some() {}
    }
}
